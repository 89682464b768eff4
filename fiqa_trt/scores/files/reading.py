"""Reading an output back, whoever has written or rewritten it, with our own columns as if we had.

Other programs change types (numbers as float64 or text, text as categories, NaN for what is missing) and values. Here
they become what `score` writes, or the file is refused in a line. A row is `ok` if its status says so and it has a
score, and then it has no error; one that says so without, or says nothing, is `unknown`. Rows that are not `ok` have no
score.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fiqa_trt.errors import InputError, one_line
from fiqa_trt.inputs.address import DEFAULT_COLUMN, with_column
from fiqa_trt.inputs.delimited import header, stream_csv
from fiqa_trt.outcomes import Status
from fiqa_trt.scores.files.columns import hold
from fiqa_trt.scores.members import cause_columns, causes_of, member_columns, members_of
from fiqa_trt.scores.schema import CAUSE, needed_columns, own_columns, own_types
from fiqa_trt.storage.places import Place, Uri, at_hand

UNKNOWN = "unknown"
_ROWS, _BYTES = 1 << 17, 1 << 28  # of a table that is read, at most
_NOTHING = ("", "NA", "N/A", "#N/A", "NaN", "nan", "NULL", "null", "None", "<NA>")  # in a column of numbers
_LATER = set(own_columns(())) - set(needed_columns(()))
_ZONE = r":\d\d(\.\d+)?\s*(Z|[+-]\d\d(:?\d\d)?)$"  # behind a time


def output_metadata(output: Place) -> dict[str, Any] | None:
    """What a Parquet output says of the run that made it, or None if it is not one of ours."""
    if output.suffix.lower() != ".parquet":
        return None
    try:
        return dict(json.loads(pq.read_schema(at_hand(output)).metadata[b"fiqa_trt"]))
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return None


def recorded_fingerprint(metadata: dict[str, Any] | None) -> dict[str, Any]:
    """The fingerprint in an output's metadata; empty without one."""
    found = (metadata or {}).get("fingerprint")
    return found if isinstance(found, dict) else {}


def read_schema(output: Place, own: Sequence[str]) -> pa.Schema:
    """The schema of what `read_output` gives. Raises InputError as that does."""
    return next(read_output(output, own)).schema


def read_output(
    output: Place, own: Sequence[str], image_column: str | None = None, *, members: bool = False
) -> Iterator[pa.Table]:
    """Stream an output back, of any format, in one table at least.

    Our own columns are in their types, whatever they are in the file; the others of a .csv are text.

    Args:
        output: .parquet, .csv or .jsonl.
        own: columns that it must have; those that are not ours hold numbers.
        image_column: of tables of images that its paths name without a column, as versions did that recorded the column
            beside them; by default what they recorded.
        members: whether it must have the columns of its members as well.

    Raises:
        InputError: it cannot be read, lacks one of these columns, or has values in them that cannot be.
    """
    reader = _READERS.get(output.suffix.lower())
    if reader is None:
        raise InputError(f"{output} is not a scores file by its name: those end in {', '.join(_READERS)}")
    column = image_column or recorded_fingerprint(output_metadata(output)).get("image_column") or DEFAULT_COLUMN
    try:
        for table in reader(at_hand(output)):
            names, scores = table.column_names, member_columns(table.schema)
            if lacking := [name for name in (*own, *(scores if members else ())) if name not in names]:
                raise InputError(f"{output} is not an output of this model: it has no column {', '.join(lacking)}")
            if repeated := sorted({name for name in names if names.count(name) > 1}):
                raise InputError(f"{output} has more than one column named {', '.join(repeated)}")
            types = {name: pa.float64() for name in own} | own_types(members_of(table.schema), causes_of(table.schema))
            written = _as_written(table, types, ["score", *scores, *cause_columns(table.schema)])
            at = written.schema.get_field_index("path")
            yield written if at < 0 else written.set_column(at, written.field(at), with_column(written["path"], column))
    except (OSError, pa.ArrowException, csv.Error, ValueError, TypeError, OverflowError) as exc:
        why = exc.strerror if isinstance(output, Uri) and isinstance(exc, OSError) else one_line(exc)
        raise InputError(f"{output} cannot be read: {why}") from exc


def _as_written(table: pa.Table, types: dict[str, pa.DataType], scores: Sequence[str]) -> pa.Table:
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for name in columns.keys() & types.keys():
        try:
            columns[name] = _typed(columns[name], types[name])
        except (pa.ArrowException, ValueError) as exc:
            if name in _LATER:  # an earlier version may have carried one of that name along
                continue
            raise ValueError(f"the column `{name}` ({columns[name].type}): {one_line(exc)}") from exc
    if "path" in columns and columns["path"].null_count:
        raise ValueError("a row has no path")
    scores = [name for name in scores if name in columns]
    for name in scores:
        bounds = pc.min_max(columns[name])
        low, high = bounds["min"].as_py(), bounds["max"].as_py()
        if low is not None and not (low >= 0 and high <= 1):
            raise ValueError(f"a {name} of {high if high > 1 else low:g}, not from 0 to 1")
    if "status" in columns and "score" in columns:
        good = pc.fill_null(pc.equal(columns["status"], Status.OK.value), False)
        unscored = pc.and_(good, pc.is_null(columns["score"]))
        if columns["status"].null_count or pc.any(unscored).as_py():
            known = pc.if_else(unscored, UNKNOWN, columns["status"])
            columns["status"] = pc.fill_null(known, UNKNOWN)
        bad = pc.invert(good)
        of_bad = [*scores, CAUSE] if CAUSE in types else scores
        emptied = [*((name, bad) for name in of_bad), *(("error", good) for name in ("error",) if name in columns)]
        for name, rows in emptied:
            if pc.any(pc.and_(rows, pc.is_valid(columns[name]))).as_py():
                columns[name] = pc.if_else(rows, pa.scalar(None, columns[name].type), columns[name])
    fields = [
        field if columns[field.name].type == field.type else pa.field(field.name, columns[field.name].type)
        for field in table.schema
    ]
    kept = {key: value for key, value in (table.schema.metadata or {}).items() if key != b"pandas"}  # of other types
    return pa.Table.from_arrays(list(columns.values()), schema=pa.schema(fields, kept))


def _typed(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """A column as the type that it has in an output. Raises pyarrow.ArrowException or ValueError if it cannot be."""
    if column.type == kind and not pa.types.is_floating(kind):
        return column
    if pa.types.is_dictionary(column.type):
        column = pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], column.type.value_type)
    if pa.types.is_null(column.type):
        return column.cast(kind)
    if pa.types.is_string(kind):
        if _is_text(column.type):
            return column.cast(kind)
        raise ValueError("not text")
    if _is_text(column.type):
        text = pc.utf8_trim_whitespace(column.cast(pa.string()))
        nothing = pc.is_in(text, pa.array(_NOTHING))
        column = pc.if_else(nothing, pa.scalar(None, pa.string()), text)
        if pa.types.is_timestamp(kind):
            return _moments(column, kind)
        column = pc.replace_substring(column, ",", ".")
    elif pa.types.is_timestamp(kind):
        if not pa.types.is_timestamp(column.type):
            raise ValueError("not moments")
        return column.cast(pa.timestamp(column.type.unit)).cast(kind, safe=False)
    elif pa.types.is_boolean(column.type):
        raise ValueError("not numbers")
    if pa.types.is_floating(kind) or pa.types.is_floating(column.type) or _is_text(column.type):
        column = column.cast(kind if pa.types.is_floating(kind) else pa.float64())  # a width of 224.0
        if pc.any(pc.is_nan(column)).as_py():
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    return column.cast(kind)


def _moments(text: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Moments in UTC, as which those without a zone are taken."""
    zoned = pc.match_substring_regex(text, _ZONE)
    zone = "UTC" if pc.any(zoned).as_py() else None
    every = text if zone is None else pc.if_else(zoned, text, pc.binary_join_element_wise(text, "Z", ""))
    try:
        found = every.cast(pa.timestamp(kind.unit, zone))
    except pa.ArrowInvalid:  # more digits, for which fewer years have room
        found = every.cast(pa.timestamp("ns", zone))
    return found.cast(pa.timestamp(found.type.unit)).cast(kind, safe=False)


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    known = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in known) or str(kind) in ("string_view", "binary_view")


def _read_parquet(output: Path) -> Iterator[pa.Table]:
    with pq.ParquetFile(output) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        size = sum(group.total_byte_size for group in groups) // max(file.metadata.num_rows, 1) + 1
        rows = max(1, min(_ROWS, _BYTES // size))
        # Group by group: across them Arrow cannot read categories inside lists.
        batches = (batch for number in range(len(groups)) for batch in file.iter_batches(rows, row_groups=[number]))
        tables = (pa.Table.from_batches([batch]) for batch in batches)
        first = next(tables, file.schema_arrow.empty_table())
        metadata = file.schema_arrow.metadata
        for table in itertools.chain([first], tables):
            yield hold(table.replace_schema_metadata(metadata), ".parquet")  # without views, which cannot be filtered


def _read_csv(output: Path) -> Iterator[pa.Table]:
    names, delimiter = header(output, "path")
    # Text first, even of our numbers: what others write for a missing one is not theirs to say of other columns.
    batches = stream_csv(
        output,
        delimiter,
        column_types=dict.fromkeys(names, pa.string()),
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    first = next(batches, None)
    if first is None:
        yield pa.schema([(name, pa.string()) for name in names]).empty_table()
    else:
        yield from (pa.Table.from_batches([batch]) for batch in itertools.chain([first], batches))


def _read_jsonl(output: Path) -> Iterator[pa.Table]:
    schema = pa.schema([])
    for rows in _json_rows(output):  # what a column holds is only known at its end
        found = pa.schema([(name, _json_type([row.get(name) for row in rows])) for name in _names(rows)])
        schema = pa.unify_schemas([schema, found], promote_options="permissive")
    first = True
    for rows in _json_rows(output):
        yield pa.Table.from_pylist(rows, schema=schema)
        first = False
    if first:
        yield schema.empty_table()


def _names(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _json_rows(output: Path) -> Iterator[list[dict[str, Any]]]:
    with output.open(encoding="utf-8-sig") as file:
        lines = (line for line in file if not line.isspace())
        while rows := [json.loads(line) for line in islice(lines, 8192)]:
            if not all(isinstance(row, dict) for row in rows):
                raise ValueError("a line that is not a JSON object")
            yield rows


def _json_type(values: list[Any]) -> pa.DataType:
    try:
        return pa.array(values).type
    except OverflowError:
        return pa.array([_unsigned(value) for value in values]).type


def _unsigned(value: Any) -> Any:
    """With whole numbers of which Arrow sees that they may be large, wherever they are."""
    if isinstance(value, dict):
        return {name: _unsigned(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_unsigned(one) for one in value]
    return np.uint64(value) if type(value) is int and value >= 0 else value


_READERS: dict[str, Callable[[Path], Iterator[pa.Table]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
