"""How tables are written in each format, into any sink: a file, or a scratch buffer to see whether they can be."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fiqa_trt.errors import InputError, OutputError, one_line
from fiqa_trt.scores.files.columns import Unholdable, hold, to_json
from fiqa_trt.storage.places import Place

Write = Callable[[pa.Table], None]


@contextlib.contextmanager
def _parquet(sink: Any, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        yield writer.write_table


@contextlib.contextmanager
def _csv(sink: Any, schema: pa.Schema) -> Iterator[Write]:
    with pa_csv.CSVWriter(sink, schema) as writer:
        yield writer.write_table


@contextlib.contextmanager
def _jsonl(sink: Any, schema: pa.Schema) -> Iterator[Write]:
    def write(table: pa.Table) -> None:
        sink.write("".join(to_json(row) + "\n" for row in table.to_pylist()).encode())

    yield write


_WRITERS: dict[str, Callable[[Any, pa.Schema], contextlib.AbstractContextManager[Write]]] = {
    ".parquet": _parquet,
    ".csv": _csv,
    ".jsonl": _jsonl,
}
SUFFIXES = tuple(_WRITERS)


@contextlib.contextmanager
def writer(sink: Any, schema: pa.Schema, suffix: str) -> Iterator[Write]:
    """A function that writes tables of a schema in the format of a suffix, each as that holds it."""
    held = hold(schema.empty_table(), suffix).schema
    with _WRITERS[suffix](sink, held) as write:

        def write_held(table: pa.Table) -> None:
            found = hold(table, suffix)
            write(found if found.schema.equals(held) else found.cast(held))

        yield write_held


def check_columns(schema: pa.Schema, output: Place, form: str | None = None) -> pa.Schema:
    """A schema as an output's format holds it, tried on a table without rows and on one of a row.

    Args:
        schema: of what is to be written.
        output: where to; its suffix says the format.
        form: one of SUFFIXES, for an output that holds the rows in that form inside another.

    Raises:
        OutputError: a column that it cannot hold, or two of one name.
    """
    suffix, names = form or output.suffix.lower(), schema.names
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise OutputError(f"cannot write {output}: there is more than one column named {', '.join(repeated)}")
    way_out = "leave it out" if suffix == ".parquet" else "leave it out, or write .parquet"
    for field in schema:
        one = pa.schema([field.with_nullable(True)])
        try:
            with writer(pa.BufferOutputStream(), one, suffix) as write:
                write(one.empty_table())
                write(pa.Table.from_arrays([pa.nulls(1, field.type)], schema=one))
        except Unholdable as exc:
            raise OutputError(f"{output.suffix} cannot hold {exc}; {way_out}") from exc
        except (pa.ArrowException, ValueError, TypeError) as exc:
            what = f"column `{field.name}` ({field.type}): {one_line(exc)}"
            raise OutputError(f"{output.suffix} cannot hold {what}; {way_out}") from exc
    return hold(schema.empty_table(), suffix).schema


def holder(output: Place) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
    """A function that gives batches as an output's format holds them, so that nothing can be wrong at its end.

    It raises InputError for a value that cannot be held, or is not what its type says.
    """

    def held(batch: pa.RecordBatch) -> pa.RecordBatch:
        try:
            batch.validate(full=True)
            table = hold(pa.Table.from_batches([batch]), output.suffix.lower())
        except Unholdable as exc:
            raise InputError(f"{output.suffix} cannot hold {exc}; leave it out") from exc
        except pa.ArrowException as exc:
            raise InputError(f"a column of the list is damaged: {one_line(exc)}") from exc
        columns = [column.combine_chunks() for column in table.columns]
        columns = [column.chunk(0) if isinstance(column, pa.ChunkedArray) else column for column in columns]
        return pa.RecordBatch.from_arrays(columns, schema=table.schema)

    return held
