"""`--retry-failed`: only what failed, in place, whoever is killed."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fiqa_trt.errors import DifferentRun, InputError
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.state import RunFolder
from tests.helpers import SMALL, MeanEngine, Stop, in_process, jpeg, mean_executor, rows, score, spoil, stop_after


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_retry_scores_only_the_failed_rows_in_place(crops: Path, tmp_path: Path, suffix: str) -> None:
    good = (
        (crops / "b" / "2.jpg").read_bytes() if (crops / "b" / "2.jpg").exists() else jpeg(Image.new("RGB", (80, 90)))
    )
    spoil(crops)
    listing, output = tmp_path / "list.csv", tmp_path / f"s.{suffix}"
    paths = sorted(str(path) for path in crops.rglob("*.*"))
    listing.write_text("person,path\n" + "".join(f"00{index},{path}\n" for index, path in enumerate(paths)))
    source = Source(list_file=str(listing))
    score_dataset(source, output, mean_executor, SMALL)
    before = rows(output)
    (crops / "b" / "2.jpg").write_bytes(good)
    (crops / "b" / "gone.jpg").unlink()
    (crops / "b" / "gone.jpg").write_bytes(good)
    (crops / "a" / "0.jpg").unlink()  # a good row must not be looked at again
    said = list[str]()
    summary = retry_failed(output, mean_executor, SMALL, say=said.append)
    assert any("does not record what its scores are from" in line for line in said) == (suffix != "parquet")
    after = rows(output)
    assert summary.scored_now == 4
    assert summary.statuses == {"ok": 12, "empty": 1, "not_an_image": 1}
    assert [row["path"] for row in after] == [row["path"] for row in before]
    assert [row["person"] for row in after] == [f"00{index}" for index in range(len(paths))]
    assert [row for row in after if row["path"] in {r["path"] for r in before if r["status"] == "ok"}] == [
        row for row in before if row["status"] == "ok"
    ]
    assert all(
        row["width"] == 80
        for row in after
        if str(row["path"]).endswith(("2.jpg", "gone.jpg")) and "/b/" in str(row["path"])
    )
    assert not Path(f"{output}.partial").exists()


@pytest.mark.slow
def test_retry_survives_kills(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(crops)
    output = tmp_path / "s.parquet"
    score(crops, output)
    (crops / "a" / "1.jpg").write_bytes(jpeg(Image.new("RGB", (80, 90))))
    single = Options(unit_rows=1)
    with pytest.raises(Stop):
        retry_failed(output, lambda: mean_executor(1, 1), single, stop_after(2))

    def killed(folder: RunFolder) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(RunFolder, "remove", killed)
        retry_failed(output, lambda: mean_executor(1, 1), single)
    summary = retry_failed(output, mean_executor, SMALL)
    assert summary.statuses["ok"] == 11
    assert len(rows(output)) == 14
    with pytest.raises(DifferentRun):
        retry_failed(output, lambda: in_process(_Other()), SMALL)


class _Other(MeanEngine):
    def __init__(self) -> None:
        super().__init__()
        self.info = type(self.info)("mean 1", "none", "fp32", "bf16", 4, "1" * 64, MEMBERS)


def test_retry_of_what_is_none_of_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        retry_failed(tmp_path / "gone.parquet", mean_executor)
    pq.write_table(pa.table({"path": ["a"]}), tmp_path / "x.parquet")
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    (tmp_path / "y.parquet").write_text("junk")
    for name in ("x.parquet", "x.csv", "y.parquet"):
        with pytest.raises(InputError):
            retry_failed(tmp_path / name, mean_executor)
        assert not (tmp_path / f"{name}.partial").exists()


def test_retry_from_another_folder_changes_nothing(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative paths lead nowhere there, by which every failure would become `missing`."""
    (crops / "bad.jpg").write_bytes(b"x")
    monkeypatch.chdir(crops.parent)
    output = tmp_path / "s.parquet"
    score_dataset(Source((crops.name,)), output, mean_executor)
    before = rows(output)
    monkeypatch.chdir(crops)
    with pytest.raises(InputError, match=f"not one of the images that have .*, which is looked for in {crops}"):
        retry_failed(output, mean_executor)
    assert rows(output) == before
    monkeypatch.chdir(crops.parent)
    for path in crops.glob("a/*.jpg"):
        path.unlink()  # some are gone
    assert retry_failed(output, mean_executor).statuses == {"ok": 10, "not_an_image": 1}


def test_retry_when_nothing_failed(crops: Path, tmp_path: Path) -> None:
    score(crops, tmp_path / "s.parquet")
    said = list[str]()
    assert retry_failed(tmp_path / "s.parquet", mean_executor, say=said.append).images == 10
    assert "nothing to retry" in said[0]
