"""The scores of a folder that was filled: the rows of its images, with their new paths."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from fiqa_trt.curation.delivery.plan import target_of
from fiqa_trt.curation.delivery.refresh import ORIGIN, SOURCE, Old
from fiqa_trt.curation.kept import Kept, Mask
from fiqa_trt.inputs.address import Address, record_path, rooted
from fiqa_trt.inputs.marks import TABLE
from fiqa_trt.scores.files import check_columns, write_output
from fiqa_trt.storage.places import Place

if TYPE_CHECKING:
    import pyarrow as pa


class Places:
    """Where the kept images went, by their numbers among the kept rows."""

    def __init__(self, count: int) -> None:
        self.there: Mask = np.zeros(count, bool)
        self._renamed = dict[int, str]()

    def add(self, row: int, target: str, place: str) -> None:
        """An image stands at `place` below the output; `target` is what its path alone would have made of it."""
        self.there[row] = True
        if place != target:
            self._renamed[row] = place

    def of(self, row: int, path: str, base: str) -> str:
        """The place of an image, by its number and its recorded path."""
        return self._renamed.get(row) or target_of(Address.parse(path), base)


def check_table(kept: Kept, output: Place) -> pa.Schema:
    """The schema of the table. Raises OutputError if the columns cannot be written."""
    import pyarrow as pa

    schema = check_columns(kept.schema, output / TABLE)
    if (source := _source_in(schema.names)) in schema.names:
        schema = schema.remove(schema.get_field_index(source))
    schema = schema.append(pa.field(source, pa.string()))
    return kept.described(schema, rooted(os.fspath(output)))


def write_table(kept: Kept, output: Place, base: str, places: Places, old: Old) -> None:
    """Write it, with what stays of earlier calls at the end. Raises RunError if the disk does not take it."""
    schema, rows, count = check_table(kept, output), _rows(kept, output, base, places), places.there.sum()
    if old.rows is not None:
        staying = [record_path(os.path.join(output, place)) for place in old.staying]
        rows, count = itertools.chain(rows, [_fitted(old.rows, staying, schema)]), count + len(staying)
    write_output(output / TABLE, schema, rows, int(count))


def _fitted(rows: pa.Table, paths: list[str], schema: pa.Schema) -> pa.Table:
    """Rows with other paths and the columns of a schema; null in those that they do not have, or have otherwise."""
    import pyarrow as pa

    rows = rows.set_column(rows.schema.get_field_index("path"), "path", pa.array(paths, pa.string()))
    columns = list[pa.ChunkedArray | pa.Array]()
    for field in schema:
        try:
            columns.append(rows[field.name].cast(field.type))
        except (KeyError, pa.ArrowException):
            columns.append(pa.nulls(len(paths), field.type))
    return pa.table(columns, schema=schema)


def _rows(kept: Kept, output: Place, base: str, places: Places) -> Iterator[pa.Table]:
    import pyarrow as pa

    start = 0
    for table in kept.tables():
        there = places.there[start : start + table.num_rows]
        numbers = np.flatnonzero(there) + start
        start += table.num_rows
        if not len(numbers):
            continue
        part = table.filter(pa.array(there))
        old = part["path"]
        new = [
            record_path(os.path.join(output, places.of(int(number), path, base)))
            for number, path in zip(numbers, old.to_pylist(), strict=True)
        ]
        part = part.set_column(part.schema.get_field_index("path"), "path", pa.array(new, pa.string()))
        source = _source_in(part.column_names)
        if source in part.column_names:
            part = part.drop_columns(source)
        yield part.append_column(source, old)


def _source_in(names: list[str]) -> str:
    """The column that says what an image was delivered from, beside the columns of the scores.

    Scores of a folder that was filled have ORIGIN already, and go on to tell the first place. A SOURCE that they have
    is theirs, and not this folder's.
    """
    return SOURCE if ORIGIN in names else ORIGIN
