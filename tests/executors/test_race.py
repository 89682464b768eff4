"""`--devices auto`: a second process at the work of the run, which stays if that is quicker."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fiqa_trt.executors import race
from fiqa_trt.executors.base import Executor, Setup
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.executors.processes import Worker, started
from fiqa_trt.executors.race import Race
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset

SETUP = Setup(device="cpu", precision="fp32", batch=4)


@pytest.fixture
def raced(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], list[str]]:
    """Score ten crops many times in a race, compare with one process, and return what was said."""
    source = Source(tuple(str(crops) for _ in range(40)))

    def run(gain: float, long: float) -> list[str]:
        for name, value in (("WARM_UP", 0.0), ("MEASURED", 0.3), ("LONG", long), ("GAIN", gain)):
            monkeypatch.setattr(race, name, value)
        said = list[str]()
        openers: dict[str, Callable[[], Executor]] = {
            "one": lambda: InProcess.open(SETUP),
            "race": lambda: Race(["cpu"], SETUP, said.append),
        }
        for name, opened in openers.items():
            score_dataset(source, tmp_path / f"{name}.parquet", opened, Options(unit_rows=8))
        tables = [pq.read_table(tmp_path / f"{name}.parquet") for name in openers]
        assert tables[0].num_rows == 400
        assert tables[0].equals(tables[1])
        return said

    return run


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "end"), [(0.0, "two go on"), (1e9, "one goes on")])
def test_what_is_quicker_goes_on(raced: Callable[[float, float], list[str]], gain: float, end: str) -> None:
    assert [line.partition(": ")[2] for line in raced(gain, 0.0) if "images/s with two" in line] == [end]


@pytest.mark.slow
def test_no_race_for_a_short_run(raced: Callable[[float, float], list[str]]) -> None:
    assert raced(0.0, 1e9) == []


@pytest.mark.slow
def test_a_second_process_that_cannot_be_had_costs_nothing(
    raced: Callable[[float, float], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(setup: Setup) -> Worker:
        return started(dataclasses.replace(setup, engine="/nowhere"))

    monkeypatch.setattr(race, "started", without_memory)
    said = raced(0.0, 0.0)
    assert len(said) == 1
    assert said[0].startswith("one process on cpu, as another cannot be had: ")
