"""Files of rows: what they hold, and what is none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_trt.errors import InputError
from fiqa_trt.scores.files import read_output, write_output


@pytest.mark.slow
def test_rows_as_json(tmp_path: Path) -> None:
    values = [None] * 9000 + [3, 2**64 - 1]
    table = pa.table({"path": [str(i) for i in range(9002)], "hash": pa.array(values, pa.uint64())})
    table = table.append_column("x", pa.array([float("nan")] * 9001 + [0.5]))
    write_output(tmp_path / "s.jsonl", table.schema, [table], 9002)
    assert "NaN" not in (tmp_path / "s.jsonl").read_text()
    read = pa.concat_tables(read_output(tmp_path / "s.jsonl", ["path"]))
    assert read["hash"].to_pylist() == values
    assert read["x"].to_pylist() == [None] * 9001 + [0.5]


def test_what_is_no_scores_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"k\.txt is not a scores file by its name: those end in \.parquet, \.csv"):
        list(read_output(tmp_path / "k.txt", ["path"]))
    (tmp_path / "k.jsonl").write_text("3\n")
    with pytest.raises(InputError, match="not a JSON object"):
        list(read_output(tmp_path / "k.jsonl", ["path"]))


def test_many_small_parts_are_few_row_groups(tmp_path: Path) -> None:
    """A footer tells of each of them, and a billion rows are a hundred thousand parts."""
    table = pa.table({"path": [f"{row}.jpg" for row in range(1000)]})
    write_output(tmp_path / "s.parquet", table.schema, [table] * 200, 200_000)
    metadata = pq.read_metadata(tmp_path / "s.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [66_000] * 3 + [2_000]
    assert pq.read_table(tmp_path / "s.parquet")["path"].to_pylist() == table["path"].to_pylist() * 200
