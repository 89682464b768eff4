"""`import fiqa_trt`, and `fiqa-trt show`: the same scores as the command line's, whatever form an image comes in."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

import fiqa_trt
from fiqa_trt import Scorer, filter_scores, retry_failed, score_dataset, undo_move
from fiqa_trt.analysis.explain import Distribution, read_distribution
from fiqa_trt.cli import group
from fiqa_trt.curation.select import Selection
from fiqa_trt.decoding.base import Images
from fiqa_trt.engines.base import Engine, Judged
from fiqa_trt.engines.opening import open_sizes
from fiqa_trt.errors import InputError, OutputError, UsageError
from fiqa_trt.inputs.containers.tar import TarContainer
from fiqa_trt.scores.files import output_metadata
from fiqa_trt.storage.base import Blob
from tests.helpers import tar


@pytest.fixture(scope="module")
def scorer() -> Iterator[Scorer]:
    with Scorer("cpu", "fp32") as opened:
        yield opened


@pytest.mark.slow
def test_every_form_of_an_image(scorer: Scorer, crops: Path, tmp_path: Path) -> None:
    path = crops / "a" / "0.jpg"
    data = path.read_bytes()
    shard = tar(tmp_path / "s.tar", [("x.jpg", data)])
    with Image.open(path) as image:
        array = np.asarray(image)
    found = scorer.score([str(path), path, data, array, f"{shard}::x.jpg"])
    assert {(s.score, s.width, s.height, s.status) for s in found} == {(found[0].score, 224, 224, "ok")}
    assert [s.path for s in found] == [str(path), str(path), None, None, f"{shard}::x.jpg"]
    assert found[0].score == pytest.approx(np.mean(list(found[0].members.values())))
    assert np.array_equal(scorer.pixels(path), array)
    grey, wide = scorer.score([array[..., 0], np.dstack([array[:100]] * 1)])
    assert (grey.status, wide.width, wide.height) == ("ok", 224, 100)


def test_failures_are_statuses(scorer: Scorer, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"text")
    found = scorer.score([str(tmp_path / "gone.jpg"), tmp_path / "bad.jpg", b"", b"x"])
    assert [s.status for s in found] == ["missing", "not_an_image", "empty", "not_an_image"]
    assert all(s.score is None and s.members == {} and s.error for s in found)
    assert scorer.score([]) == []
    for wrong in (3, None, np.zeros((5, 5)), np.zeros((5, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8)):
        with pytest.raises(UsageError):
            scorer.score([wrong])  # type: ignore[list-item]


@pytest.mark.slow
def test_the_command_lines_scores(scorer: Scorer, crops: Path, tmp_path: Path) -> None:
    summary = score_dataset(crops, tmp_path / "s.parquet", device="cpu", precision="fp32")
    assert summary.statuses == {"ok": 10}
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    expected = pytest.approx([row["score"] for row in rows], abs=1e-4)
    assert [s.score for s in scorer.score(row["path"] for row in rows)] == expected
    filtered = filter_scores(tmp_path / "s.parquet", tmp_path / "k.txt", keep="30%")
    assert filtered.delivered is not None
    assert filtered.delivered.written == filtered.selection.kept == 3
    best = sorted(rows, key=lambda row: -row["score"])[:3]
    assert set((tmp_path / "k.txt").read_text().split()) == {row["path"] for row in best}
    assert filter_scores(tmp_path / "s.parquet", keep=2).delivered is None
    files = sorted(map(str, crops.rglob("*.jpg")))
    score_dataset(files, tmp_path / "t.parquet", device="cpu", precision="fp32", limit=4)
    assert pq.read_table(tmp_path / "t.parquet")["path"].to_pylist() == files[:4]


@pytest.mark.slow
def test_retrying(crops: Path, tmp_path: Path) -> None:
    output, said = tmp_path / "s.parquet", list[str]()
    good = (crops / "a" / "0.jpg").read_bytes()
    (crops / "a" / "0.jpg").write_bytes(b"x")
    assert score_dataset(crops, output, device="cpu", precision="fp32", command="made so", say=said.append).failed == 1
    assert [line.partition(",")[0] for line in said if line.startswith("engine: ")]
    metadata = output_metadata(output)
    assert metadata is not None
    assert metadata["command"] == "made so"
    (crops / "a" / "0.jpg").write_bytes(good)
    assert retry_failed(output, device="cpu", precision="fp32").statuses == {"ok": 10}
    with pytest.raises(InputError, match="no such file"):
        retry_failed(tmp_path / "gone.parquet")


@pytest.mark.slow
def test_filtering_in_steps(scores: Path, crops: Path, tmp_path: Path) -> None:
    kept = list[int]()

    def chosen(selection: Selection) -> None:
        assert not (tmp_path / "out").exists()
        kept.append(selection.kept)

    measured = filter_scores(scores, keep=3, way="copy", dry_run=True, chosen=chosen).delivered
    wanted = filter_scores(scores, tmp_path / "out", keep=3, way="copy", dry_run=True, chosen=chosen).delivered
    moved = filter_scores(scores, tmp_path / "out", keep=3, way="move", chosen=chosen).delivered
    assert measured is not None
    assert wanted is not None
    assert moved is not None
    assert kept == [3, 3, 3]
    assert (measured.written, wanted.written, moved.written) == (3, 3, 3)
    assert measured.bytes == wanted.bytes > 0
    assert len(list(crops.rglob("*.jpg"))) == 8
    assert undo_move(tmp_path / "out").returned == 3
    with pytest.raises(UsageError, match="--per-group x: neither"):
        filter_scores(scores, per_group="x")


class _Counted:
    """An engine that remembers how many images it was given at a time."""

    def __init__(self, engine: Engine, calls: list[int]) -> None:
        self.info, self.slots, self.place, self.kept = engine.info, engine.slots, engine.place, engine.kept
        self._engine, self._calls, self.close = engine, calls, engine.close

    def submit(self, images: Images) -> Future[Judged]:
        self._calls.append(len(images))
        return self._engine.submit(images)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of engines, from when they were found to score as they should."""
    found = list[int]()

    def opened(*args: Any) -> tuple[Engine, Engine]:
        large, small = open_sizes(*args)
        return _Counted(large, found), _Counted(small, found)

    monkeypatch.setattr("fiqa_trt.scorer.open_sizes", opened)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_small_calls_run_small(engine: str, crops: Path, calls: list[int]) -> None:
    path = crops / "a" / "0.jpg"
    with Scorer("cpu", "fp32", engine, batch=8) as scorer:
        for count, expected in ((1, [1]), (3, [1] * 3), (4, [8]), (8, [8]), (10, [8, 1, 1]), (14, [8, 8])):
            calls.clear()
            assert len(scorer.score([path] * count)) == count
            assert sorted(calls, reverse=True) == expected


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_score_does_not_depend_on_how_many_are_asked_for(precision: str, crops: Path) -> None:
    files = sorted(map(str, crops.rglob("*.jpg")))[:8]
    with Scorer("cpu", precision, batch=8) as scorer:
        together, alone = scorer.score(files), [scorer.score([file])[0] for file in files]
    assert [s.score for s in alone] == pytest.approx([s.score for s in together], abs=1e-3)


@pytest.mark.slow
def test_threads(scorer: Scorer, crops: Path) -> None:
    files = sorted(map(str, crops.rglob("*.jpg"))) * 3
    expected, wrong = scorer.score(files), list[int]()

    def work() -> None:
        if scorer.score(files) != expected:
            wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_names() -> None:
    assert all(getattr(fiqa_trt, name) for name in fiqa_trt.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = fiqa_trt.nothing
    program = "import sys, fiqa_trt; print(sorted({'numpy', 'openvino', 'pyarrow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def show(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(group, ["show", "--device", "cpu", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == code, done.output
    return done.output


@pytest.mark.slow
def test_show(crops: Path, tmp_path: Path) -> None:
    good, bad = crops / "a" / "0.jpg", tmp_path / "bad.jpg"
    bad.write_bytes(b"x")
    said = show(good, bad)
    assert f"224 x 224  {good}" in said
    assert f"{bad}: not_an_image, no known image format" in said
    show(bad, code=3)
    odd = tmp_path / "\x1b[31m\n.jpg"
    odd.write_bytes(good.read_bytes())
    assert r"\x1b[31m\n.jpg" in show(odd)
    score_dataset(crops, tmp_path / "s.parquet", device="cpu")
    show(good, bad, "--explain", "--scores", tmp_path / "s.parquet", "-q")
    with Image.open(f"{good}.explain.png") as image:
        assert image.width == 592
        assert image.height >= 256  # more with causes
    assert not Path(f"{bad}.explain.png").exists()
    assert "better than" in show(good, bad, "--scores", tmp_path / "s.parquet").splitlines()[-3]
    facts = json.loads(show(good, bad, "--scores", tmp_path / "s.parquet", "-q", "--json"))["images"]
    assert 0 <= facts[0]["better_than"] < 1
    assert facts[1]["better_than"] is None
    show(good, "--explain", "-o", tmp_path)
    assert (tmp_path / "0.jpg.explain.png").exists()
    with pytest.raises(OutputError, match="no such folder"):
        show(good, "--explain", "-o", tmp_path / "gone")
    twin = crops / "b" / "0.jpg"
    twin.write_bytes(good.read_bytes())
    with pytest.raises(OutputError, match="would be written twice"):
        show(good, twin, "--explain", "-o", tmp_path)
    shard = tar(tmp_path / "s.tar", [("p/a.jpg", good.read_bytes())])
    with pytest.raises(OutputError, match="no such folder; -o says where else"):
        show(f"{shard}::p/a.jpg", "--explain")
    show(f"{shard}::p/a.jpg", "--explain", "-o", tmp_path)
    assert (tmp_path / "a.jpg.explain.png").exists()


@pytest.mark.slow
def test_scores_of_another_engine_are_named(tmp_path: Path, crops: Path) -> None:
    score_dataset(crops, tmp_path / "s.parquet", device="cpu", precision="fp32", engine="openvino")
    score_dataset(crops, tmp_path / "s.csv", device="cpu", precision="fp32", engine="openvino")
    with Scorer("cpu", "fp32", "openvino", batch=1) as scorer:
        info = scorer.info
    found = read_distribution(tmp_path / "s.parquet")
    assert found.difference(info) is None
    cases: list[tuple[dict[str, Any], str]] = [
        ({"precision": "fp16", "executed": "bf16"}, "(precision fp32 there, fp16 here)"),
        ({"model": "a" * 64}, f"(model {info.model[:12]} there, aaaaaaaaaaaa here)"),
        ({"backend": "tensorrt 11"}, f"(backend {info.backend} there, tensorrt 11 here)"),
    ]
    for changes, message in cases:
        assert message in str(found.difference(dataclasses.replace(info, **changes)))
    assert "does not record" in str(read_distribution(tmp_path / "s.csv").difference(info))


@pytest.mark.slow
def test_distributions(tmp_path: Path, crops: Path) -> None:
    among = Distribution(np.zeros(50, np.int64), np.array([0.1, 0.2, 0.2, 0.9], np.float32))
    assert [among.share_below(score) for score in (0.0, 0.2, 0.5, 1.0)] == [0, 0.25, 0.75, 1]
    (tmp_path / "bad.jpg").write_bytes(b"x")
    score_dataset(tmp_path / "bad.jpg", tmp_path / "s.parquet", device="cpu")
    with pytest.raises(InputError, match="holds no score"):
        read_distribution(tmp_path / "s.parquet")


@pytest.mark.slow
def test_members_of_a_tar_are_read_together(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [path.read_bytes() for path in sorted(crops.rglob("*.jpg"))]
    members = [(f"{number}.jpg", images[number % len(images)]) for number in range(100)]
    path, asked, real = tar(tmp_path / "t.tar", members), list[int](), TarContainer.read_all

    def counted(self: TarContainer, keys: Sequence[str]) -> list[Blob]:
        asked.append(len(keys))
        return real(self, keys)

    monkeypatch.setattr(TarContainer, "read_all", counted)
    with Scorer("cpu", "fp32", batch=8, threads=2) as scorer:
        found = scorer.score(f"{path}::{name}" for name, _ in members)
    assert {score.status for score in found} == {"ok"}
    assert asked == [8] * 12 + [4]
