"""The kept rows of a scores file: read no more often than it takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_trt.curation import kept as module
from fiqa_trt.curation.delivery import deliver
from fiqa_trt.curation.kept import Kept, stamps_of
from fiqa_trt.inputs.address import Address
from fiqa_trt.scores.files import read_output


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Grows with each time that a scores file is read to its end."""
    found = list[Path]()

    def counted(output: Path, *arguments: Any) -> Iterator[pa.Table]:
        yield from read_output(output, *arguments)
        found.append(output)

    monkeypatch.setattr(module, "read_output", counted)
    return found


def test_what_is_kept(scores: Path, mask: Any) -> None:
    kept, rows = Kept(scores, mask), pq.read_table(scores).filter(mask)
    assert len(kept) == 9
    assert pa.concat_tables(kept.tables()).equals(rows)
    paths = rows["path"].to_pylist()
    assert list(kept.images()) == [(row, path, Address.parse(path)) for row, path in enumerate(paths)]
    assert kept.stamps["bytes"].to_pylist() == rows["bytes"].to_pylist()
    assert kept.schema == rows.schema
    none = Kept(scores, np.zeros(len(mask), bool))
    assert (len(none), list(none.tables()), list(none.images()), none.root) == (0, [], [], kept.root)


def test_a_file_without_stamps() -> None:
    found = stamps_of(pa.table({"path": ["a"], "bytes": ["of another program"]}))
    assert found.to_pylist() == [{"path": "a", "bytes": None, "modified": None}]


def test_a_folder_reads_the_file_twice(scores: Path, mask: Any, tmp_path: Path, reads: list[Path]) -> None:
    """Once for what is to be done, once for the rows that stand in the folder's own table."""
    for update in (False, True):
        deliver(Kept(scores, mask), tmp_path / "out", "copy", update=update)
        assert len(reads) == 2
        reads.clear()
        mask[mask.argmax()] = False
    deliver(Kept(scores, mask), tmp_path / "out", "copy", update=True, dry_run=True)
    assert len(reads) == 1


@pytest.mark.parametrize(("name", "times"), [("k.txt", 1), ("k.csv", 2), ("k.parquet", 2), ("k.tar", 1)])
def test_a_file_reads_it_no_more(
    scores: Path, mask: Any, tmp_path: Path, reads: list[Path], name: str, times: int
) -> None:
    """Twice where the root stands in the metadata, before the rows."""
    deliver(Kept(scores, mask), tmp_path / name)
    assert len(reads) == times
