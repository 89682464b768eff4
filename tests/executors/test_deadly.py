"""An image that ends the process that decodes it costs itself alone, whoever scores; and how attempts are counted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_trt.errors import RunError
from fiqa_trt.executors import sifting
from fiqa_trt.executors.attempts import CAREFUL, LIMIT, Attempts, Dispatch
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.sifting import sift
from fiqa_trt.outcomes import Origin
from fiqa_trt.runs.state import FolderUnits
from tests.helpers import ROOT, call, tar

DEADLY = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent / 'deadly'}{os.pathsep}{ROOT}"}


class Counted:
    """Units that are numbers alone."""

    def __init__(self, count: int) -> None:
        self.left, self.recorded = set(range(count)), dict[int, int]()

    def pending(self) -> Iterator[int]:
        return iter(sorted(self.left))

    def inputs(self, number: int) -> pa.Table:
        return pa.table({"path": [str(number)]})

    def keep(self, number: int, rows: pa.Table) -> None:
        self.left.discard(number)

    def deaths(self) -> dict[int, int]:
        return dict(self.recorded)

    def record_deaths(self, deaths: dict[int, int]) -> None:
        self.recorded = dict(deaths)


def kill(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"deadly")


def errors(output: Path) -> dict[str, str]:
    return {Path(row["path"]).name: row["error"] for row in pq.read_table(output).to_pylist() if row["status"] != "ok"}


@pytest.mark.slow
def test_this_process(crops: Path, tmp_path: Path) -> None:
    """Two commands die, the third one knows."""
    output, expected = tmp_path / "s.parquet", tmp_path / "expected.parquet"
    kill(crops / "b" / "5.jpg")
    command = ("score", crops, "-o", output, "--device", "cpu", "--unit-size", "3")
    for _ in range(CAREFUL):
        assert not call(*command, code=-signal.SIGABRT, env=DEADLY).stdout
    assert max(json.loads((tmp_path / "s.parquet.partial" / "deaths.json").read_text()).values()) == CAREFUL
    done = call(*command, env=DEADLY)
    assert f"has ended its process before: 1 image does, {crops}/b/5.jpg" in done.stderr
    assert errors(output) == {"5.jpg": "the decoder died: SIGABRT"}
    call("score", crops, "-o", expected, "--device", "cpu", "--unit-size", "3")  # by a decoder that bears it
    found, whole = pq.read_table(output), pq.read_table(expected)
    assert whole["score"].null_count == 0
    good = pa.array([not path.endswith("5.jpg") for path in found["path"].to_pylist()])
    assert found.filter(good).equals(whole.filter(good))
    assert found.select(["bytes", "modified"]).equals(whole.select(["bytes", "modified"]))  # --update leaves it alone
    assert not (tmp_path / "s.parquet.partial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("devices", ["cpu", "cpu,cpu"])
def test_processes(crops: Path, tmp_path: Path, devices: str) -> None:
    """In a shard, two of them."""
    files = sorted(crops.rglob("*.jpg"))
    for path in (files[2], files[7]):
        kill(path)
    shard = tar(tmp_path / "x.tar", [(path.name, path.read_bytes()) for path in files])
    output = tmp_path / "s.parquet"
    done = call("score", shard, "-o", output, "--devices", devices, "--unit-size", "5", env=DEADLY)
    assert "the process for cpu was killed by SIGABRT; another takes its place" in done.stderr
    died = "the decoder died: SIGABRT"
    assert errors(output) == {f"x.tar::{files[2].name}": died, f"x.tar::{files[7].name}": died}


def test_an_interrupted_run_counts_no_death() -> None:
    units = Counted(3)
    attempts = Attempts(units)
    attempts.begin(0)
    attempts.begin(1)
    assert units.recorded == {0: 1, 1: 1}
    attempts.end(0)
    attempts.close()
    assert units.recorded == {}


@pytest.mark.slow
def test_nothing_is_found_where_nothing_dies(crops: Path) -> None:
    paths = [str(path) for path in sorted(crops.rglob("*.jpg"))]
    setup = Setup(decoder="cpu")
    assert sift(0, pa.table({"path": [*paths, "gone.jpg"]}), setup, "cpu") == {}
    assert sift(0, pa.table({"path": pa.array([], pa.string())}), setup, "cpu") == {}


def test_what_grants_access_is_not_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, path = list[str](), "https://host.test/a.jpg?X-Amz-Signature=s3cret"
    done = subprocess.CompletedProcess([], 0, stdout=b"0 SIGABRT\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **options: done)
    monkeypatch.setattr(sifting, "origin_of", lambda address, known: Origin())
    sift(4, pa.table({"path": [path]}), Setup(decoder="cpu"), "cpu", said.append)
    assert said == ["unit 4 has ended its process before: 1 image does, https://host.test/a.jpg"]


def test_deaths_are_kept_and_what_is_no_record_is_none(tmp_path: Path) -> None:
    units = FolderUnits(tmp_path, tmp_path)
    assert units.deaths() == {}
    units.record_deaths({3: 2})
    assert units.deaths() == {3: 2}
    for damaged in ("", "[1]", '{"a": 1}', '{"1": null}'):
        (tmp_path / "deaths.json").write_text(damaged)
        assert units.deaths() == {}


def test_a_unit_that_goes_on_dying_ends_the_run() -> None:
    units = Counted(2)
    dispatch = Dispatch(units)
    for _ in range(CAREFUL):
        assert dispatch.give("a") == (0, False)
        assert dispatch.lost("a", "it was killed") == [0]
    assert dispatch.give("a") == (0, True)
    said = "unit 0 ended the process 3 times, though each of its images can be decoded, at last: it was killed; run the"
    with pytest.raises(RunError, match=f"^{said} same command again to resume$"):
        dispatch.lost("a", "it was killed")
    again = Dispatch(units)  # the same command, which looks first and has one attempt more
    assert again.give("a") == (0, True)
    with pytest.raises(RunError, match="4 times"):
        again.lost("a", "it was killed")


def test_what_has_died_often_is_scored_alone() -> None:
    """Or it would be blamed for what another one does."""
    units = Counted(4)
    units.recorded = {0: CAREFUL, 1: CAREFUL}
    dispatch = Dispatch(units)
    assert dispatch.give("a") == (0, True)
    assert dispatch.give("a") is None
    assert dispatch.give("b") == (1, True)
    assert dispatch.finished("b", 1)
    assert dispatch.give("b") == (2, False)
    assert dispatch.give("b") == (3, False)
    assert dispatch.lost("b", "it was killed") == [2, 3]
    assert dispatch.give("c") == (2, False)
    assert dispatch.lost("c", "it was killed") == [2]
    assert dispatch.give("c") == (2, True)
    assert dispatch.give("d") == (3, False)
    assert dispatch.lost("d", "it was killed") == [3]
    assert dispatch.finished("a", 0)
    assert dispatch.give("a") == (3, True)


def test_a_unit_that_goes_on_failing_ends_the_run() -> None:
    dispatch = Dispatch(Counted(1))
    for _ in range(LIMIT - 1):
        assert dispatch.give("a") == (0, False)
        dispatch.failed("a", 0, "cannot write x: I/O error; run the same command again once that is mended")
    dispatch.give("b")
    expected = "unit 0 failed 3 times, at last: cannot write x: I/O error; run the same command again to resume"
    with pytest.raises(RunError, match=f"^{expected}$"):
        dispatch.failed("b", 0, "cannot write x: I/O error; run the same command again once that is mended")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["give", "finish", "lose", "wait"])), max_size=200))
def test_every_unit_is_finished_once(events: list[tuple[int, str]]) -> None:
    """Whoever takes, finishes and dies when, copies included."""
    now, units = 0.0, Counted(12)
    dispatch = Dispatch(units, lambda: now, copies=True)
    held: dict[int, list[int]] = {worker: [] for worker in range(4)}
    done, deaths = list[int](), dict[int, int]()

    def step(worker: int, event: str) -> None:
        nonlocal now
        now += 30.0 if event == "wait" else 0.01
        if event == "give" and len(held[worker]) < 2 and (found := dispatch.give(worker)) is not None:
            assert found[0] not in done
            assert found[1] == (deaths.get(found[0], 0) >= CAREFUL)
            assert not held[worker] or deaths.get(found[0], 0) < CAREFUL or held[worker][0] in done
            held[worker].append(found[0])
        elif event == "finish" and held[worker]:
            number = held[worker].pop(0)
            first = dispatch.finished(worker, number)
            assert first == (number not in done)
            done.extend([number] if first else [])
        elif event == "lose" and all(deaths.get(number, 0) < CAREFUL for number in held[worker]):
            lost = dispatch.lost(worker, "")
            assert sorted(lost) == sorted(number for number in held[worker] if number not in done)
            for number in lost:
                deaths[number] = deaths.get(number, 0) + 1
            held[worker] = []

    for worker, event in events:
        step(worker, event)
    for _ in range(40):
        for worker in range(4):
            step(worker, "give")
            step(worker, "finish")
    assert dispatch.over
    assert sorted(done) == list(range(12))


def test_what_takes_long_is_given_twice() -> None:
    now = 0.0
    dispatch = Dispatch(Counted(2), lambda: now, copies=True)
    assert dispatch.give("slow") == (0, False)
    assert dispatch.give("quick") == (1, False)
    now = 10.0
    assert dispatch.finished("quick", 1)
    assert dispatch.give("quick") is None  # 10 s are what a unit takes
    assert dispatch.give("slow") is None
    now = 16.0
    assert dispatch.give("quick") == (0, False)
    assert dispatch.give("third") is None  # two have it
    assert dispatch.finished("quick", 0)
    assert not dispatch.finished("slow", 0)
    assert dispatch.over
