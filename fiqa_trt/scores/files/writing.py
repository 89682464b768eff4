"""Writing an output: complete or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from fiqa_trt.errors import OutputError, RunError, one_line
from fiqa_trt.scores.files.columns import Unholdable
from fiqa_trt.scores.files.formats import writer
from fiqa_trt.storage.places import Place
from fiqa_trt.storage.writing import atomic

_GROUP_ROWS = 65_536


def write_output(output: Place, schema: pa.Schema, tables: Iterable[pa.Table], expected: int) -> None:
    """Stream tables into the output, by its suffix, and put it in place in one step.

    Args:
        output: its suffix says the format.
        schema: of every table, as `check_columns` has seen it.
        tables: what to write.
        expected: their rows.

    Raises:
        OutputError: a value that the format cannot hold.
        RunError: the disk is full or fails, or there were not `expected` rows; what was there before is untouched.
    """
    with atomic(output) as temporary:
        count = 0
        with pa.OSFile(os.fsencode(temporary), "wb") as sink, writer(sink, schema, output.suffix.lower()) as write:
            for table in _together(tables):
                try:
                    write(table)
                except (Unholdable, pa.ArrowException, ValueError, TypeError, OverflowError) as exc:
                    if isinstance(exc, OSError):  # the disk's, not the values'
                        raise
                    raise OutputError(f"cannot write {output}: {one_line(exc)}") from exc
                count += table.num_rows
        if count != expected:
            raise RunError(f"{count} rows for {expected} inputs: {output} was not written; please report this")


def _together(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in larger tables: each is a row group, of which a footer tells that every reader reads."""
    held, count = list[pa.Table](), 0
    for table in tables:
        if held and (count >= _GROUP_ROWS or table.schema != held[0].schema):
            yield pa.concat_tables(held)
            held, count = [], 0
        held.append(table)
        count += table.num_rows
    if held:
        yield pa.concat_tables(held)


def with_metadata(schema: pa.Schema, metadata: dict[str, Any]) -> pa.Schema:
    """The schema with what `output_metadata` reads back."""
    return schema.with_metadata({"fiqa_trt": json.dumps(metadata)})
