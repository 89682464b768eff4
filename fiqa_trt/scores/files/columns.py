"""What a carried column of any Arrow type becomes in each format, and which types a format cannot hold.

Parquet holds nearly everything as it is. JSON has text, numbers, lists and objects: moments and spans of time become
text as in ISO 8601 with every digit that they have, decimals and UUIDs text as well, categories their values, maps
lists of keys and values. CSV is the same, with lists and objects as their JSON in a field. Bytes have no form in text,
so both refuse them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_trt.errors import one_line

Convert = Callable[[pa.Array], pa.Array]

_SECONDS = {"s": 0, "ms": 3, "us": 6, "ns": 9}  # digits behind the point


class Unholdable(Exception):
    """A type that a format has no form for."""


def hold(table: pa.Table, suffix: str) -> pa.Table:
    """A table as the format of a suffix holds it. Raises Unholdable, which names the column."""
    fields, columns = list[pa.Field](), list[pa.ChunkedArray]()
    for field, column in zip(table.schema, table.columns, strict=True):
        try:
            held = _held(column, _FORMS[suffix])
        except (Unholdable, pa.ArrowException, ValueError, NotImplementedError) as exc:
            why = f": {one_line(exc)}" if str(exc) and not isinstance(exc, Unholdable) else ""
            raise Unholdable(f"column `{field.name}` ({field.type}{why})") from exc
        columns.append(held)
        fields.append(field if held is column else pa.field(field.name, held.type, field.nullable))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields, table.schema.metadata))


def _held(column: pa.ChunkedArray, form: Convert) -> pa.ChunkedArray:
    chunks = column.chunks or [pa.nulls(0, column.type)]
    held = [form(chunk) for chunk in chunks]
    return column if all(new is old for new, old in zip(held, chunks, strict=True)) else pa.chunked_array(held)


def _nested(array: pa.Array, leaf: Convert) -> pa.Array:
    """An array with its innermost values converted; itself if that changes none."""
    kind, types = array.type, pa.types
    if isinstance(kind, pa.BaseExtensionType) or not types.is_nested(kind) or types.is_union(kind):
        return leaf(array)
    if types.is_struct(kind):
        names = [field.name for field in kind]
        if not names or len(set(names)) < len(names):
            raise Unholdable
        old = array.flatten()
        new = [_nested(child, leaf) for child in old]
        if all(a is b for a, b in zip(new, old, strict=True)):
            return array
        return pa.StructArray.from_arrays(new, names, mask=array.is_null())
    if types.is_run_end_encoded(kind):
        return leaf(array)
    if types.is_map(kind):
        return _map(array, leaf)
    view = "list_view" in str(kind).partition("<")[0]
    flat = array.flatten()
    values = _nested(flat, leaf)
    if values is flat and not view:
        return array
    nulls = array.is_null().to_numpy(zero_copy_only=False)
    if types.is_fixed_size_list(kind):
        lengths = kind.list_size
    else:
        lengths = array.sizes.to_numpy() if view else np.diff(array.offsets.to_numpy())
    return pa.LargeListArray.from_arrays(_offsets(lengths, nulls, pa.int64()), values)


def _map(array: pa.MapArray, leaf: Convert) -> pa.Array:
    """A map with its keys and values converted; in plain form a list of objects."""
    parts = [array.keys, array.items]
    new = [_nested(part, leaf) for part in parts]
    if leaf is not _plain and all(a is b for a, b in zip(new, parts, strict=True)):
        return array
    nulls, ends = array.is_null().to_numpy(zero_copy_only=False), array.offsets.to_numpy()
    lengths = np.diff(ends)
    inside = pa.array(np.repeat(~nulls, lengths))
    kept = [part.slice(ends[0], ends[-1] - ends[0]).filter(inside) for part in new]
    if leaf is not _plain:
        return pa.MapArray.from_arrays(_offsets(lengths, nulls, pa.int32()), *kept)
    entries = pa.StructArray.from_arrays(kept, ["key", "value"])
    return pa.LargeListArray.from_arrays(_offsets(lengths, nulls, pa.int64()), entries)


def _offsets(lengths: npt.NDArray[np.int32] | int, nulls: npt.NDArray[np.bool_], kind: pa.DataType) -> pa.Array:
    """Where lists of these lengths begin and end; those that are null are empty."""
    return pa.array(np.r_[0, np.cumsum(np.where(nulls, 0, lengths))], kind, mask=np.r_[nulls, False])


def _plain(array: pa.Array) -> pa.Array:
    """Values as JSON has them: none, truth, numbers, text."""
    kind, types = array.type, pa.types
    if types.is_boolean(kind) or types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind):
        return array
    if types.is_null(kind) or types.is_string(kind) or types.is_large_string(kind):
        return array
    if isinstance(kind, pa.BaseExtensionType):
        return _uuids(array.storage) if kind.extension_name == "arrow.uuid" else _nested(array.storage, _plain)
    if types.is_dictionary(kind):
        return _nested(array.dictionary_decode(), _plain)
    if types.is_run_end_encoded(kind):
        return _nested(pc.run_end_decode(array), _plain)
    if types.is_float16(kind):
        return array.cast(pa.float32())
    if types.is_timestamp(kind):
        at = array if kind.tz is None else array.cast(pa.timestamp(kind.unit, "UTC"))  # needs no table of zones
        return pc.replace_substring_regex(at.cast(pa.string()), r"^(-?\d+-\d\d-\d\d) ", r"\1T")
    if types.is_duration(kind):
        return _spans(array.cast(pa.int64()), _SECONDS[kind.unit])
    if types.is_date(kind) or types.is_time(kind) or types.is_decimal(kind) or str(kind) == "string_view":
        return array.cast(pa.string())
    raise Unholdable


def _uuids(storage: pa.Array) -> pa.Array:
    return pa.array([None if v is None else str(uuid.UUID(bytes=v)) for v in storage.to_pylist()], pa.string())


def _spans(values: pa.Array, digits: int) -> pa.Array:
    """Durations as in ISO 8601, `PT1.001S`: seconds, with all digits of the unit."""
    unit = 10**digits
    whole = pc.divide(values, unit)
    rest = pc.subtract(values, pc.multiply(whole, unit))
    parts = [pc.utf8_ltrim(number.cast(pa.string()), "-") for number in (whole, rest)]
    sign = pc.if_else(pc.less(values, 0), "-PT", "PT")
    if not digits:
        return pc.binary_join_element_wise(sign, parts[0], "S", "")
    return pc.binary_join_element_wise(sign, parts[0], ".", pc.utf8_lpad(parts[1], digits, "0"), "S", "")


def _columnar(array: pa.Array) -> pa.Array:
    """What Parquet's writer takes: views and runs are how an array lies in memory, not what it holds."""
    kind, types = array.type, pa.types
    if types.is_run_end_encoded(kind):
        return _nested(pc.run_end_decode(array), _columnar)
    if str(kind) in ("string_view", "binary_view"):
        return array.cast(pa.large_string() if str(kind) == "string_view" else pa.large_binary())
    if types.is_dictionary(kind) and types.is_null(kind.value_type):
        return array.dictionary_decode()
    if types.is_dictionary(kind) and array.dictionary.null_count:  # which others mark in the indices
        new = array.dictionary_decode().dictionary_encode()
        return pa.DictionaryArray.from_arrays(new.indices.cast(kind.index_type), new.dictionary, ordered=kind.ordered)
    return array


def _json(array: pa.Array) -> pa.Array:
    return _nested(array, _plain)


def _csv(array: pa.Array) -> pa.Array:
    plain = _nested(array, _plain)
    if not pa.types.is_nested(plain.type):
        return plain
    return pa.array([None if value is None else to_json(value) for value in plain.to_pylist()], pa.large_string())


def to_json(value: Any) -> str:
    """JSON in one line. It has no NaN and no infinity: those become null."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    return [_finite(each) for each in value] if isinstance(value, list) else value


_FORMS: dict[str, Convert] = {
    ".parquet": lambda array: _nested(array, _columnar),
    ".csv": _csv,
    ".jsonl": _json,
}
