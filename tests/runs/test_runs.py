"""The working state of a run: resumed, damaged, or somebody else's."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.errors import OutputError
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.state import rechunk
from tests.helpers import SMALL, Stop, mean_executor, rows, score, stop_after


def test_a_run_goes_on_with_another_batch_size(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        score(crops, tmp_path / "s.parquet", report=stop_after(5))
    summary = score_dataset(Source((str(crops),)), tmp_path / "s.parquet", lambda: mean_executor(5), SMALL)
    assert (summary.images, summary.scored_now < 10) == (10, True)


def test_what_is_kept_of_a_run_may_be_damaged(crops: Path, tmp_path: Path) -> None:
    expected, output = tmp_path / "expected.parquet", tmp_path / "s.parquet"
    score(crops, expected)
    with pytest.raises(Stop):
        score(crops, output, report=stop_after(9))
    state = tmp_path / "s.parquet.partial"
    (state / "inputs.parquet").unlink()
    part = state / "parts" / "00000000.parquet"
    data = bytearray(part.read_bytes())
    data[4 : len(data) // 3] = bytes(len(data) // 3 - 4)  # its footer is whole
    part.write_bytes(data)
    assert score(crops, output).scored_now >= 4
    assert rows(output) == rows(expected)


def test_a_folder_of_that_name_is_left_alone(crops: Path, tmp_path: Path) -> None:
    notes = tmp_path / "s.parquet.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("precious")
    with pytest.raises(OutputError, match=r"s\.parquet\.partial is no run's state, it holds notes\.txt"):
        score(crops, tmp_path / "s.parquet")
    assert notes.read_text() == "precious"


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(1, 7))
def test_rechunk_keeps_every_row(sizes: list[int], unit: int) -> None:
    start, batches = 0, []
    for size in sizes:
        batches.append(pa.record_batch([pa.array(range(start, start + size), pa.int64())], names=["n"]))
        start += size
    tables = list(rechunk(batches, unit))
    assert [n for table in tables for n in table["n"].to_pylist()] == list(range(start))
    assert all(table.num_rows == unit for table in tables[:-1])
    assert len(tables) == max(1, -(-start // unit))


def test_a_damaged_part_is_done_again(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        score(crops, tmp_path / "s.parquet", report=stop_after(10))
    part = tmp_path / "s.parquet.partial" / "parts" / "00000000.parquet"
    part.write_bytes(part.read_bytes()[:50])
    score(crops, tmp_path / "s.parquet")
    score(crops, tmp_path / "t.parquet")
    assert rows(tmp_path / "s.parquet") == rows(tmp_path / "t.parquet")
