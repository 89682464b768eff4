"""Runs end to end on the real pipeline, with a quick engine: rows, parts, resume, retry, faults."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.curation.delivery import write_rows
from fiqa_trt.curation.kept import Kept
from fiqa_trt.decoding.base import Images
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.base import Judged, finished
from fiqa_trt.errors import DifferentRun, FiqaError, InputError, OutputError, RunError
from fiqa_trt.executors.base import Units
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.outcomes import Status
from fiqa_trt.pipeline import bounded_map
from fiqa_trt.progress import Progress
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.state import RunFolder
from fiqa_trt.scores.files import output_metadata
from fiqa_trt.storage.base import Read
from fiqa_trt.storage.local import LocalStore
from tests.helpers import SMALL, MeanEngine, Stop, in_process, mean_executor, rows, score, spoil, stop_after


def test_one_row_for_each_input_in_order(crops: Path, tmp_path: Path) -> None:
    spoil(crops)
    summary = score(crops, tmp_path / "s.parquet")
    table = rows(tmp_path / "s.parquet")
    assert [os.path.relpath(str(row["path"]), crops) for row in table] == [
        *("a/0.jpg", "a/1.jpg", "a/2.jpg", "a/3.png", "a/4.jpg", "a/6.jpg", "a/8.jpg"),
        *("b/1.jpg", "b/2.jpg", "b/3.jpg", "b/5.jpg", "b/7.jpg", "b/9.jpg", "b/gone.jpg"),
    ]
    for row in table:
        good = row["status"] == "ok"
        assert all((row[name] is not None) == good for name in ("score", *(f"score_{member}" for member in MEMBERS)))
        assert (row["error"] is None) == good
        if good:
            pixels = np.asarray(Image.open(str(row["path"])))
            assert row["score"] == pytest.approx(pixels[..., :2].mean() / 255, abs=1e-3)
            assert (row["width"], row["height"]) == (224, 224)
    assert summary.statuses == {"ok": 10, "empty": 1, "not_an_image": 1, "truncated": 1, "missing": 1}
    assert summary.failed == 4
    assert not (tmp_path / "s.parquet.partial").exists()


def test_good_images_score_exactly_as_without_the_bad_ones(crops: Path, tmp_path: Path) -> None:
    score(crops, tmp_path / "before.parquet")
    spoil(crops)
    score(crops, tmp_path / "after.parquet")
    before = {row["path"]: row for row in rows(tmp_path / "before.parquet")}
    after = {row["path"]: row for row in rows(tmp_path / "after.parquet")}
    assert all(after[path] == row for path, row in before.items())


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_other_formats_hold_the_same(crops: Path, tmp_path: Path, suffix: str) -> None:
    spoil(crops)
    score(crops, tmp_path / "s.parquet")
    score(crops, tmp_path / f"s.{suffix}")
    assert rows(tmp_path / f"s.{suffix}") == rows(tmp_path / "s.parquet")


def test_metadata_says_how_the_scores_were_made(crops: Path, tmp_path: Path) -> None:
    score(crops, tmp_path / "s.parquet")
    metadata = output_metadata(tmp_path / "s.parquet")
    assert metadata is not None
    assert metadata["engine"]["model"] == "0" * 64
    assert metadata["preprocess"]["size"] == 224
    assert {"version", "fingerprint"} <= set(metadata)


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    stops=st.lists(st.integers(1, 14), max_size=5),
    unit=st.integers(1, 16),
    batch=st.integers(1, 6),
    workers=st.integers(1, 3),
)
def test_any_number_of_interruptions_changes_nothing(
    crops: Path, tmp_path: Path, stops: list[int], unit: int, batch: int, workers: int
) -> None:
    if not (crops / "a" / "3.png").exists():
        spoil(crops)
    expected, output = tmp_path / "expected.parquet", tmp_path / "s.parquet"
    options = Options(unit_rows=unit)
    source = Source((str(crops),))
    score_dataset(source, expected, lambda: mean_executor(batch), Options(restart=True))
    output.unlink(missing_ok=True)
    for count in stops:
        try:
            score_dataset(source, output, lambda: mean_executor(batch, workers), options, stop_after(count))
        except Stop:
            assert not output.exists()
    summary = score_dataset(source, output, lambda: mean_executor(batch, workers), options)
    assert rows(output) == rows(expected)
    assert summary.images == 14
    assert not (tmp_path / "s.parquet.partial").exists()


def test_finished_units_are_not_done_again(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        score(crops, tmp_path / "s.parquet", report=stop_after(9))
    said = list[str]()
    seen = list[Progress]()
    summary = score(crops, tmp_path / "s.parquet", report=seen.append, say=said.append)
    assert summary.scored_now < 10
    assert seen[-1].done == seen[-1].total == 10
    assert seen[0].before == 10 - summary.scored_now > 0
    assert "resuming" in said[0]


def test_same_command_again_finds_it_complete(crops: Path, tmp_path: Path) -> None:
    first = score(crops, tmp_path / "s.parquet")
    before = (tmp_path / "s.parquet").stat().st_mtime_ns
    said = list[str]()
    again = score(crops, tmp_path / "s.parquet", say=said.append)
    assert (again.statuses, again.quantiles, again.scored_now) == (first.statuses, first.quantiles, 0)
    assert (tmp_path / "s.parquet").stat().st_mtime_ns == before
    assert "already complete" in said[0]


def test_another_run_is_refused_and_named(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        score(crops, tmp_path / "s.parquet", report=stop_after(5))
    with pytest.raises(DifferentRun, match=r"unit_rows: 4 there, 5 now.*--restart"):
        score(crops, tmp_path / "s.parquet", Options(unit_rows=5))
    (crops / "new.jpg").write_bytes(b"")
    with pytest.raises(DifferentRun, match=r"count: 10 there, 11 now"):
        score(crops, tmp_path / "s.parquet")
    (crops / "new.jpg").unlink()
    assert score(crops, tmp_path / "s.parquet").scored_now < 10
    (crops / "new.jpg").write_bytes(b"")
    with pytest.raises(DifferentRun, match="--restart"):
        score(crops, tmp_path / "s.parquet")
    assert score(crops, tmp_path / "s.parquet", Options(restart=True)).images == 11


def test_an_input_is_not_replaced(crops: Path, tmp_path: Path) -> None:
    for suffix in ("parquet", "csv"):
        path = tmp_path / f"i.{suffix}"
        path.write_text(f"path\n{crops}/a/0.jpg\n")
        sources = (Source((str(crops), str(path))), Source(list_file=str(path)))
        for source in sources:
            with pytest.raises(OutputError, match="is one of the inputs"):
                score_dataset(source, path, mean_executor, Options(restart=True))
    with pytest.raises(InputError, match=r"cannot read .*/gone: No such file"):
        score_dataset(Source((str(tmp_path / "gone"),)), tmp_path / "s.parquet", pytest.fail)


def test_what_a_filter_kept_is_no_complete_run(crops: Path, tmp_path: Path) -> None:
    score(crops, tmp_path / "s.parquet")
    write_rows(Kept(tmp_path / "s.parquet", np.arange(10) < 5), tmp_path / "best.parquet")
    with pytest.raises(DifferentRun, match="holds what filter kept"):
        score(crops, tmp_path / "best.parquet")


def test_a_foreign_output_is_not_touched(crops: Path, tmp_path: Path) -> None:
    for name in ("s.parquet", "s.csv"):
        (tmp_path / name).write_text("precious")
        with pytest.raises(DifferentRun, match="exists already"):
            score(crops, tmp_path / name)
        assert (tmp_path / name).read_text() == "precious"
        assert not (tmp_path / f"{name}.partial").exists()
        assert score(crops, tmp_path / name, Options(restart=True)).images == 10


def test_restart_keeps_the_old_output_until_the_new_one_is_there(crops: Path, tmp_path: Path) -> None:
    score(crops, tmp_path / "s.parquet")
    (crops / "new.jpg").write_bytes(b"")
    with pytest.raises(Stop):
        score(crops, tmp_path / "s.parquet", Options(restart=True, unit_rows=4), report=stop_after(5))
    assert len(rows(tmp_path / "s.parquet")) == 10
    assert score(crops, tmp_path / "s.parquet").images == 11


def test_killed_after_the_output_was_in_place(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(folder: RunFolder) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(RunFolder, "remove", killed)
        score(crops, tmp_path / "s.parquet")
    assert score(crops, tmp_path / "s.parquet").images == 10
    assert not (tmp_path / "s.parquet.partial").exists()


def test_two_runs_at_once(crops: Path, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "s.parquet", 4), pytest.raises(OutputError, match="another run is writing"):
        score(crops, tmp_path / "s.parquet")


def test_carried_columns(crops: Path, tmp_path: Path) -> None:
    paths = sorted(str(path) for path in crops.rglob("*.jpg"))
    table = pa.table({"score": range(10), "path": paths, "box": [[1, 2]] * 10})
    pq.write_table(table, tmp_path / "l.parquet")
    source = Source(list_file=str(tmp_path / "l.parquet"))
    score_dataset(source, tmp_path / "s.parquet", mean_executor, SMALL)
    assert [row["input_score"] for row in rows(tmp_path / "s.parquet")] == list(range(10))
    assert pq.read_schema(tmp_path / "s.parquet").names[-2:] == ["input_score", "box"]
    score_dataset(source, tmp_path / "s.csv", mean_executor, SMALL)
    assert [row["box"] for row in rows(tmp_path / "s.csv")] == ["[1, 2]"] * 10
    pq.write_table(table.append_column("raw", pa.array([b"x"] * 10)), tmp_path / "l.parquet")
    with pytest.raises(
        OutputError, match=r"\.csv cannot hold column `raw` \(binary\); leave it out, or write \.parquet"
    ):
        score_dataset(source, tmp_path / "b.csv", mean_executor, SMALL)
    assert not (tmp_path / "b.csv.partial").exists()
    pq.write_table(table, tmp_path / "l.parquet")
    score_dataset(source, tmp_path / "s.jsonl", mean_executor, SMALL)
    assert json.loads((tmp_path / "s.jsonl").read_text().splitlines()[3])["box"] == [1, 2]


@pytest.mark.parametrize(
    ("name", "message"),
    [("s.txt", "name it"), ("s", "name it"), ("gone/s.parquet", "does not exist"), ("dir.parquet", "it is a folder")],
)
def test_outputs_that_cannot_be_written(crops: Path, tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "dir.parquet").mkdir()
    with pytest.raises(OutputError, match=message):
        score(crops, tmp_path / name)


def test_nothing_is_left_when_the_input_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    for source in (Source((str(tmp_path / "nothing"),)), Source((str(tmp_path / "gone"),)), Source(list_file="x.csv")):
        with pytest.raises(InputError):
            score_dataset(source, tmp_path / "s.parquet", mean_executor, SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["nothing"]


def test_a_file_deleted_or_replaced_after_listing(crops: Path, tmp_path: Path) -> None:
    class Meddling(InProcess):
        def work(self, units: Units, report: Callable[[int, int], None]) -> None:
            (crops / "b" / "9.jpg").unlink()
            (crops / "b" / "7.jpg").write_bytes(b"now text")
            super().work(units, report)

    workers = Meddling(MeanEngine(), CpuDecoder())
    score_dataset(Source((str(crops),)), tmp_path / "s.parquet", lambda: workers, SMALL)
    assert [row["status"] for row in rows(tmp_path / "s.parquet")][-2:] == ["not_an_image", "missing"]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_a_slow_disk_and_a_fast_one(crops: Path, tmp_path: Path, delay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sorted(map(str, crops.rglob("*.jpg"))) * 30
    (tmp_path / "l.txt").write_text("\n".join(files))
    rng = random.Random(0)

    read = LocalStore.read

    def slow(self: LocalStore, path: str) -> Read:
        time.sleep(delay * rng.random())
        return read(self, path)

    monkeypatch.setattr(LocalStore, "read", slow)
    output = tmp_path / "s.parquet"
    score_dataset(Source(list_file=str(tmp_path / "l.txt")), output, lambda: mean_executor(3, 2), Options(unit_rows=64))
    found = rows(output)
    assert [row["path"] for row in found] == files
    expected = {row["path"]: row["score"] for row in found[:10]}
    assert all(row["score"] == expected[row["path"]] for row in found)


class _Slow(MeanEngine):
    """Answers from another thread, later and out of order."""

    slots = 4

    def __init__(self) -> None:
        super().__init__(2)
        self._pool = ThreadPoolExecutor(4)
        self._calls = 0

    def submit(self, images: Images) -> Future[Judged]:
        self._calls += 1
        wait, copy = 0.01 * (self._calls % 3), np.array(images)
        return self._pool.submit(lambda: (threading.Event().wait(wait), super(_Slow, self).submit(copy).result())[1])


def test_an_engine_that_answers_out_of_order(crops: Path, tmp_path: Path) -> None:
    spoil(crops)
    score_dataset(Source((str(crops),)), tmp_path / "slow.parquet", lambda: in_process(_Slow()), SMALL)
    score(crops, tmp_path / "s.parquet")
    assert rows(tmp_path / "slow.parquet") == rows(tmp_path / "s.parquet")


class _Broken(MeanEngine):
    def submit(self, images: Images) -> Future[Judged]:
        scores = super().submit(images).result().scores
        scores[0] = np.nan
        return finished(scores)


def test_a_score_that_is_not_a_number_ends_the_run(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="not a number"):
        score_dataset(Source((str(crops),)), tmp_path / "s.parquet", lambda: in_process(_Broken()), SMALL)
    assert not (tmp_path / "s.parquet").exists()


def test_full_disk(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a real limit on the size of a file: see test_cli. Here: the state is kept and the run can go on."""

    def full(*args: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(RunError, match="no space left"):
        patch.setattr(pq, "write_table", full)
        score(crops, tmp_path / "s.parquet")
    assert score(crops, tmp_path / "s.parquet").images == 10


@pytest.mark.slow
@given(st.integers(0, 40), st.integers(1, 9))
def test_bounded_map_is_in_order_and_bounded(count: int, ahead: int) -> None:
    begun = 0

    def items() -> Iterator[int]:
        nonlocal begun
        for item in range(count):
            begun += 1
            yield item

    taken = 0
    with ThreadPoolExecutor(3) as pool:
        for value in bounded_map(lambda item: pool.submit(pow, item, 2), items(), lambda: ahead):
            assert value == taken**2
            taken += 1
            assert begun - taken <= ahead
    assert taken == count


def test_every_error_of_ours_has_an_exit_code() -> None:
    def tree(kind: type[FiqaError]) -> set[type[FiqaError]]:
        return {kind}.union(*map(tree, kind.__subclasses__()))

    assert {kind.exit_code for kind in tree(FiqaError)} == {1, 2}
    assert RunError.exit_code == 1
    assert all(Status(status.value) is status for status in Status)
