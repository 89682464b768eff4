"""To which group a row belongs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from fiqa_trt.errors import InputError, one_line
from fiqa_trt.inputs.address import SEPARATOR
from fiqa_trt.inputs.containers.registry import TABLES
from fiqa_trt.outcomes import Status
from fiqa_trt.scores.files import read_schema
from fiqa_trt.scores.members import causes_of, members_of
from fiqa_trt.scores.schema import own_columns
from fiqa_trt.storage.places import Place

if TYPE_CHECKING:
    import pyarrow as pa


PARENT = "parent"
# The column of a table belongs to the address of an image, but is no folder.
_IN_TABLE = rf"(?is)^(.*(?:{'|'.join(map(re.escape, TABLES))})){SEPARATOR}.*{SEPARATOR}"


def grouping(group_by: str, scores: Place) -> Callable[[pa.Table], pa.ChunkedArray]:
    """A function from a table to the name of each row's group; null for a failed row whose path does not tell it."""
    import pyarrow as pa
    import pyarrow.compute as pc

    def parent(table: pa.Table) -> pa.ChunkedArray:
        paths = table["path"]
        if pc.any(pc.match_substring(paths, SEPARATOR)).as_py():
            # Of a member of a shard it is the folder within it, or the shard.
            inside = pc.replace_substring_regex(paths, _IN_TABLE, rf"\1{SEPARATOR}")
            above = pc.replace_substring_regex(inside, f"(?s)^(.*)(?:/|{SEPARATOR}).*$", r"\1")
            return pc.if_else(pc.match_substring_regex(paths, f"/|{SEPARATOR}"), above, "")
        parts = pc.split_pattern(paths, "/", max_splits=1, reverse=True)
        return pc.if_else(pc.equal(pc.list_value_length(parts), 2), pc.list_element(parts, 0), "")

    def column(table: pa.Table) -> pa.ChunkedArray:
        try:
            return pc.fill_null(table[group_by].cast(pa.string()), "")
        except pa.ArrowException as exc:
            raise InputError(f"--group-by {group_by}: a column of {table[group_by].type} names no groups") from exc

    def matched(table: pa.Table) -> pa.ChunkedArray:
        try:
            found = pc.extract_regex(table["path"], pattern)
        except pa.ArrowInvalid as exc:
            raise InputError(f"--group-by {group_by}: {one_line(exc)}") from exc
        groups = pc.struct_field(found, name)
        unmatched = table["path"].filter(pc.and_(pc.is_null(groups), pc.equal(table["status"], Status.OK.value)))
        if len(unmatched):
            raise InputError(
                f"--group-by {group_by}: it does not match every path that has a score, for one not {unmatched[0]}"
            )
        return groups

    if group_by == PARENT:
        return parent
    schema = read_schema(scores, ["path"])
    if group_by in schema.names:
        return column
    try:
        compiled = re.compile(group_by)
    except re.error as exc:
        raise InputError(
            f"--group-by {group_by}: no column of that name, and not a regular expression ({exc})"
        ) from exc
    if compiled.groups != 1:
        own = own_columns(members_of(schema), causes_of(schema))
        carried = ", ".join(name for name in schema.names if name not in own) or "none"
        raise InputError(
            f"--group-by {group_by}: it is neither `{PARENT}` nor a column (carried along: {carried}), and a regular "
            "expression needs one bracket around the group"
        )
    name = next(iter(compiled.groupindex), "group")
    pattern = group_by if compiled.groupindex else _named(group_by)
    return matched


def _named(pattern: str) -> str:
    """A regular expression with its one group named `group`; brackets that are escaped or in a class are none."""
    parts = re.findall(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?|.", pattern, re.DOTALL)
    place = parts.index("(")
    return "".join([*parts[:place], "(?P<group>", *parts[place + 1 :]])
