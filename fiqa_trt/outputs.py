"""Files of rows that a run writes and others read: .parquet, .csv, .jsonl. They appear complete or not at all."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fiqa_trt.errors import InputError, OutputError, RunError, one_line, storage_error
from fiqa_trt.records import own_columns, own_types
from fiqa_trt.spec import MEMBERS

SUFFIXES = (".parquet", ".csv", ".jsonl")


def check_output(output: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Refuse an output that could not be written at the end.

    Raises:
        OutputError: unknown suffix, missing or unwritable folder, a folder in its place.
    """
    if output.suffix.lower() not in suffixes:
        raise OutputError(f"cannot tell the format of {output}: name it {', '.join(suffixes)}")
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {output}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {output}: no permission to write in {folder}")
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder")


def check_columns(schema: pa.Schema, output: Path) -> None:
    """Refuse carried columns that the output's format cannot hold. Raises OutputError."""
    suffix = output.suffix.lower()
    types = pa.types
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    refused = {".csv": (*binary, types.is_nested, types.is_string_view), ".jsonl": (*binary, types.is_map)}
    for field in schema:
        if any(test(field.type) for test in refused.get(suffix, ())):
            raise OutputError(f"{suffix} cannot hold column `{field.name}` ({field.type}); write .parquet")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        RunError: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as exc:
        raise storage_error(path, exc) from exc
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_output(output: Path, schema: pa.Schema, tables: Iterable[pa.Table], expected: int) -> None:
    """Stream tables into the output, by its suffix, and put it in place in one step.

    Raises:
        RunError: the disk is full or fails, or there were not `expected` rows; what was there before is untouched.
    """
    with atomic(output) as temporary:
        count = 0
        with _WRITERS[output.suffix.lower()](temporary, schema) as write:
            for table in tables:
                write(table)
                count += table.num_rows
        if count != expected:
            raise RunError(f"{count} rows for {expected} inputs: {output} was not written; please report this")


Write = Callable[[pa.Table], None]
Types = dict[str, pa.DataType]


@contextlib.contextmanager
def _parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield writer.write_table


@contextlib.contextmanager
def _csv_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pa_csv.CSVWriter(path, schema) as writer:
        yield writer.write_table


@contextlib.contextmanager
def _jsonl_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(table: pa.Table) -> None:
            file.writelines(to_json(row) + "\n" for row in table.to_pylist())

        yield write


def to_json(row: dict[str, Any]) -> str:
    """A row as an object of JSON, which has no NaN and no infinity: those become null."""
    try:
        return json.dumps(row, default=str, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(row), default=str, ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


_WRITERS: dict[str, Callable[[Path, pa.Schema], contextlib.AbstractContextManager[Write]]] = {
    ".parquet": _parquet_writer,
    ".csv": _csv_writer,
    ".jsonl": _jsonl_writer,
}


def with_metadata(schema: pa.Schema, metadata: dict[str, Any]) -> pa.Schema:
    """The schema with what `output_metadata` reads back."""
    return schema.with_metadata({"fiqa_trt": json.dumps(metadata)})


def output_metadata(output: Path) -> dict[str, Any] | None:
    """What a Parquet output says of the run that made it, or None if it is not one of ours."""
    if output.suffix.lower() != ".parquet":
        return None
    try:
        return dict(json.loads(pq.read_schema(output).metadata[b"fiqa_trt"]))
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def read_output(output: Path, own: Sequence[str]) -> Iterator[pa.Table]:
    """Stream an output back, of any format, with our own columns in their types; the others of a CSV are text.

    Raises:
        InputError: it cannot be read, or lacks one of the columns `own`.
    """
    reader = _READERS.get(output.suffix.lower())
    if reader is None:
        raise InputError(f"{output} is not a scores file by its name: those end in {', '.join(_READERS)}")
    try:
        types = own_types([*own_columns(MEMBERS), *own])
        for table in reader(output, types):
            lacking = [name for name in own if name not in table.column_names]
            if lacking:
                raise InputError(f"{output} is not an output of this model: it has no column {', '.join(lacking)}")
            yield table
    except (OSError, pa.ArrowException, ValueError, TypeError, OverflowError) as exc:
        raise InputError(f"{output} cannot be read: {one_line(exc)}") from exc


def _read_parquet(output: Path, own: Types) -> Iterator[pa.Table]:
    with pq.ParquetFile(output) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


def _read_csv(output: Path, own: Types) -> Iterator[pa.Table]:
    with output.open(newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file), [])
    convert = pa_csv.ConvertOptions(
        column_types={name: own.get(name, pa.string()) for name in columns},
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    with pa_csv.open_csv(
        output, parse_options=pa_csv.ParseOptions(newlines_in_values=True), convert_options=convert
    ) as file:
        for batch in file:
            yield pa.Table.from_batches([batch])


def _read_jsonl(output: Path, own: Types) -> Iterator[pa.Table]:
    schema: pa.Schema | None = None
    for rows in _json_rows(output):  # what a column holds is only known at its end
        names = dict.fromkeys(name for row in rows for name in row)
        types = {name: own.get(name) or _json_type([row.get(name) for row in rows]) for name in names}
        found = pa.schema(types.items())
        schema = found if schema is None else pa.unify_schemas([schema, found], promote_options="permissive")
    for rows in _json_rows(output):
        yield pa.Table.from_pylist(rows, schema=schema)


def _json_rows(output: Path) -> Iterator[list[dict[str, Any]]]:
    with output.open(encoding="utf-8") as file:
        while rows := [json.loads(line) for line in islice(file, 8192)]:
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line that is not a JSON object")
            yield rows


def _json_type(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except OverflowError:
        return pa.uint64()


_READERS: dict[str, Callable[[Path, Types], Iterator[pa.Table]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
