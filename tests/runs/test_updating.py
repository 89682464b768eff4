"""`score --update`: what is unchanged keeps its row, what is new or changed is scored, what is gone leaves."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.cli import group
from fiqa_trt.decoding.base import Decoded
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.errors import DifferentRun, InputError
from fiqa_trt.executors.base import Executor
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.run import Options, Summary
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.update import update_dataset
from fiqa_trt.scores.files import read_output
from tests.helpers import MeanEngine, jpeg, mean_executor, tar

SUFFIXES = (".parquet", ".csv", ".jsonl")


class Counting(CpuDecoder):
    """Notes how many images it was given; stops, as a kill would, when there is no more patience."""

    def __init__(self, patience: int = 1 << 30) -> None:
        super().__init__(threads=1)
        self.seen, self.patience = 0, patience

    def decode(self, blobs: Any, batch: int) -> Decoded:
        self.seen += len(blobs)
        if self.seen > self.patience:
            raise KeyboardInterrupt
        return super().decode(blobs, batch)


def workers(decoder: CpuDecoder) -> Callable[[], Executor]:
    return lambda: InProcess(MeanEngine(1), decoder)


def rows(output: Path) -> list[dict[str, Any]]:
    return [row for table in read_output(output, ["path"]) for row in table.to_pylist()]


def update(folder: Path | Source, output: Path, **options: Any) -> tuple[Summary, int, str]:
    """The summary, how many images were looked at, and what was said."""
    decoder, said = Counting(options.pop("patience", 1 << 30)), list[str]()
    source = folder if isinstance(folder, Source) else Source((str(folder),))
    run = Options(unit_rows=2)
    return (
        update_dataset(source, output, workers(decoder), run, say=said.append, **options),
        decoder.seen,
        "\n".join(said),
    )


def image(level: int) -> bytes:
    return jpeg(Image.new("RGB", (16, 16), (level, level // 2, 0)))


def put(path: Path, level: int, moment: int, more: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image(level) + more)
    os.utime(path, ns=(moment * 10**9, moment * 10**9))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(6):
        put(tmp_path / "d" / f"{number}.jpg", 40 * number, 1_000 + number)
    (tmp_path / "d" / "bad.jpg").write_bytes(b"x")
    return tmp_path / "d"


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_what_differs_is_scored(folder: Path, tmp_path: Path, suffix: str) -> None:
    output, anew = tmp_path / f"s{suffix}", tmp_path / f"anew{suffix}"
    assert update(folder, output)[1] == 7  # there is none yet
    assert update(folder, output)[1] == 0
    put(folder / "1.jpg", 250, 1_001, b"longer")
    put(folder / "2.jpg", 80, 5_000)
    put(folder / "a" / "new.jpg", 7, 1)
    (folder / "3.jpg").unlink()
    summary, seen, said = update(folder, output)
    assert "1 new, 2 changed, 4 unchanged, 1 gone" in said
    assert "1 row leaves, of inputs that are gone; --keep-gone keeps them" in said
    assert (summary.images, summary.scored_now, seen) == (7, 3, 3)
    score_dataset(Source((str(folder),)), anew, workers(Counting()))
    assert rows(output) == rows(anew)
    again, more = list[str](), Counting()
    score_dataset(Source((str(folder),)), output, workers(more), Options(unit_rows=2), say=again.append)
    assert more.seen == 0
    assert any("already complete" in line for line in again)


def test_gone_rows_are_kept_on_request(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    update(folder, output)
    before = {row["path"]: row for row in rows(output)}
    (folder / "0.jpg").unlink()
    (folder / "4.jpg").unlink()
    summary, seen, _ = update(folder, output, keep_gone=True)
    assert (summary.images, seen) == (7, 0)
    assert [Path(row["path"]).name for row in rows(output)][-2:] == ["0.jpg", "4.jpg"]
    assert {row["path"]: row for row in rows(output)} == before
    assert update(folder, output)[0].images == 5


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("keep_gone", [False, True])
def test_columns_that_only_the_output_has_stay(folder: Path, tmp_path: Path, suffix: str, keep_gone: bool) -> None:
    """A person, say, that a list brought along, and that a run over the folder would not."""
    listing, output = tmp_path / "list.csv", tmp_path / f"s{suffix}"
    names = sorted(path.name for path in folder.iterdir())
    lines = [f"{folder / name},p{number},{number}" for number, name in enumerate(names)]
    listing.write_text("path,person,shot\n" + "\n".join(lines) + "\n")
    update(Source(list_file=str(listing)), output)
    put(folder / "1.jpg", 250, 1_001, b"longer")
    put(folder / "a" / "new.jpg", 7, 1)
    (folder / "3.jpg").unlink()
    _, seen, said = update(folder, output, keep_gone=keep_gone)
    assert seen == 2
    assert f"kept from {output}, as the inputs do not bring it (null for what is new): person, shot" in said
    expected = {name: (f"p{number}", str(number)) for number, name in enumerate(names)} | {"new.jpg": (None, None)}
    if not keep_gone:
        del expected["3.jpg"]
    assert {Path(row["path"]).name: (row["person"], row["shot"]) for row in rows(output)} == expected
    listing.write_text(f"path,person\n{folder / '0.jpg'},other\n")
    assert "(null for what is new): shot" in update(Source(list_file=str(listing)), output)[2]
    assert [(row["person"], row["shot"]) for row in rows(output)] == [("other", "0")]


@pytest.mark.slow
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changes_give_what_scoring_anew_gives(tmp_path: Path, data: st.DataObject) -> None:
    """Of a list in any order, with repetitions, files that are missing, and a column that is carried along."""
    shutil.rmtree(tmp_path / "d", ignore_errors=True)
    output, anew = tmp_path / "s.parquet", tmp_path / "anew.parquet"
    output.unlink(missing_ok=True)
    files = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 3))
    for turn in range(3):
        there = data.draw(files)
        for name in "abcdef":
            path = tmp_path / "d" / f"{name}.jpg"
            path.unlink(missing_ok=True)
            if name in there:
                put(path, 60 * there[name], there[name])  # another content has another time, as in life
        listed = data.draw(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=9))
        (tmp_path / "l.csv").write_text(
            "path,turn\n" + "".join(f"{tmp_path}/d/{name}.jpg,{turn}{index}\n" for index, name in enumerate(listed))
        )
        source = Source(list_file=str(tmp_path / "l.csv"))
        known = {Path(row["path"]).stem for row in rows(output)} if output.exists() else set(listed)
        if not known & set(listed):
            with pytest.raises(InputError, match="not one of the inputs"):
                update(source, output)
            continue
        update(source, output)
        score_dataset(source, anew, workers(Counting()), Options(restart=True))
        assert rows(output) == rows(anew)


@pytest.mark.parametrize("patience", range(4))
def test_a_stopped_update_goes_on(folder: Path, tmp_path: Path, patience: int) -> None:
    output = tmp_path / "s.parquet"
    update(folder, output)
    before = output.read_bytes()
    for number in range(4):
        put(folder / f"{number}.jpg", 10 * number + 5, 9_000)
    with pytest.raises(KeyboardInterrupt):
        update(folder, output, patience=patience)
    assert output.read_bytes() == before
    summary, seen, _ = update(folder, output)
    assert summary.images == 7
    assert seen <= 4
    assert not (tmp_path / "s.parquet.partial").exists()
    score_dataset(Source((str(folder),)), tmp_path / "anew.parquet", workers(Counting()))
    assert rows(output) == rows(tmp_path / "anew.parquet")


def test_changes_between_two_attempts(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    update(folder, output)
    put(folder / "0.jpg", 5, 9_000)
    put(folder / "1.jpg", 5, 9_000)
    with pytest.raises(KeyboardInterrupt):
        update(folder, output, patience=1)
    put(folder / "new.jpg", 5, 9_000)
    (folder / "1.jpg").unlink()
    update(folder, output)
    score_dataset(Source((str(folder),)), tmp_path / "anew.parquet", workers(Counting()))
    assert rows(output) == rows(tmp_path / "anew.parquet")


def test_shards(tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    made = [(f"{number}.jpg", image(40 * number)) for number in range(4)]
    tar(tmp_path / "d.tar", made[:3])
    pq.write_table(pa.table({"image": [data for _, data in made]}), tmp_path / "t.parquet")
    source = Source((str(tmp_path / "d.tar"), str(tmp_path / "t.parquet")))
    update(source, output)
    assert [row["bytes"] for row in rows(output)][:3] == [len(data) for _, data in made[:3]]
    assert update(source, output)[1] == 0
    tar(tmp_path / "d.tar", made)
    os.utime(tmp_path / "d.tar", (9, 9))
    assert update(source, output)[1] == 4  # a shard that was written to is scored anew, the table is not
    assert [row["status"] for row in rows(output)] == ["ok"] * 8


def test_what_could_not_be_read_is_tried_again_when_it_can_be(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    listed = tmp_path / "l.txt"
    listed.write_text(f"{folder}/0.jpg\n{folder}/later.jpg\n")
    source = Source(list_file=str(listed))
    assert update(source, output)[0].statuses == {"ok": 1, "missing": 1}
    assert update(source, output)[0].scored_now == 0
    put(folder / "later.jpg", 3, 1)
    assert update(source, output)[0].statuses == {"ok": 2}
    (folder / "later.jpg").unlink()
    assert update(source, output)[0].statuses == {"ok": 1, "missing": 1}


def test_the_same_folder_by_another_name_is_no_other_data_set(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "s.parquet"
    update(folder, output)
    before = output.read_bytes()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"not one of the inputs .* there, \./d/0\.jpg now"):
        update(Source(("./d",)), output)
    assert output.read_bytes() == before
    assert not (tmp_path / "s.parquet.partial").exists()


def test_scores_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    update(folder, output)

    class Other(MeanEngine):
        def __init__(self) -> None:
            super().__init__()
            self.info = dataclasses.replace(self.info, model="1" * 64)

    with pytest.raises(DifferentRun, match="model: 000000000000 there, 111111111111 now"):
        update_dataset(Source((str(folder),)), output, lambda: InProcess(Other(), CpuDecoder()))


def test_outputs_that_cannot_be_updated(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    update(folder, output)
    whole = pq.read_table(output)
    pq.write_table(whole.drop_columns(["modified"]), output)
    with pytest.raises(InputError, match="does not record the sizes and times"):
        update(folder, output)
    retry_failed(output, mean_executor)  # which needs them as little as every other command
    pq.write_table(whole.replace_schema_metadata(None), output)
    with pytest.raises(InputError, match="does not say which model"):
        update(folder, output)
    pq.write_table(whole, output)
    kept = tmp_path / "k.parquet"
    CliRunner().invoke(group, ["filter", str(output), "-o", str(kept), "--keep", "50%"], catch_exceptions=False)
    with pytest.raises(DifferentRun, match="holds what filter kept"):
        update(folder, kept)


@pytest.mark.slow
def test_a_disk_that_fails_costs_no_rows(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, inner, shard = tmp_path / "s.parquet", folder / os.fsdecode(b"caf\xe9"), folder / "s.tar"
    put(inner / "deep" / "0.jpg", 5, 1)
    tar(shard, [("x/1.jpg", image(5)), ("\udcff.jpg", image(5))])
    update(folder, output)
    before, whole, real = rows(output), shard.read_bytes(), os.scandir

    def scandir(path: str) -> Any:
        if path == str(inner):
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", scandir)
        with pytest.raises(InputError, match=r"caf%E9 cannot be read to its end, and the rows of what"):
            update(folder, output)
        assert rows(output) == before
        update(folder, output, keep_gone=True)
    assert {row["path"] for row in before} < {row["path"] for row in rows(output)}
    assert len(rows(output)) == len(before) + 1
    update(folder, output)  # all is well again
    assert rows(output) == before
    inner.rename(tmp_path / "disk")
    inner.symlink_to(tmp_path / "disk")
    update(folder, output)
    (tmp_path / "disk").rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"caf%E9 cannot be read to its end"):
        update(folder, output)
    inner.unlink()
    (tmp_path / "away").rename(inner)
    shard.write_bytes(b"not a tar any more" * 100)
    with pytest.raises(InputError, match=r"s\.tar cannot be read to its end"):
        update(folder, output)
    shard.write_bytes(whole)
    shutil.rmtree(inner)
    put(inner, 5, 1)  # a file instead: what was in the folder is gone indeed
    update(folder, output)
    assert len(rows(output)) == len(before) - 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--update", "--restart"], "no --limit, no --restart"),
        (["--update", "--limit", "3"], "no --limit, no --restart"),
        (["--keep-gone"], "--keep-gone goes with --update"),
    ],
)
def test_usage(folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    done = CliRunner().invoke(group, ["score", str(folder), "-o", str(tmp_path / "s.parquet"), *arguments])
    assert (done.exit_code, message in done.output) == (2, True)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("moment", [-1_000_000_000_000_000_000, 0, 9_000_000_000_123_456_789, None])
def test_times_that_broken_clocks_set(tmp_path: Path, suffix: str, moment: int | None) -> None:
    """None: not one image can be read, so the columns are null throughout."""
    path, output = tmp_path / "d" / "0.jpg", tmp_path / f"s{suffix}"
    put(path, 5, 1)
    if moment is None:
        path.write_bytes(b"")
    else:
        os.utime(path, ns=(moment, moment))
    update(path.parent, output)
    assert update(path.parent, output)[1] == 0
    assert len(rows(output)) == 1


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_times_name_their_zone_and_those_of_earlier_versions_are_read(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    output = tmp_path / f"s{suffix}"
    update(folder, output)
    if suffix == ".parquet":
        table = pq.read_table(output)
        assert table.schema.field("modified").type == pa.timestamp("us", "UTC")
        place = table.column_names.index("modified")
        pq.write_table(table.set_column(place, "modified", table["modified"].cast(pa.timestamp("us"))), output)
    else:
        written = output.read_text()
        zoned = re.compile(r"(\d\d:\d\d:\d\d\.\d{6})Z")
        assert len(zoned.findall(written)) == len(rows(output))
        output.write_text(zoned.sub(r"\1", written))
    before = rows(output)
    retry_failed(output, mean_executor)
    assert rows(output) == before
    assert update(folder, output)[1] == 0
    assert rows(output) == before
    assert suffix == ".parquet" or len(zoned.findall(output.read_text())) == len(before)
