"""Whose scores a file holds: the members of the ensemble that wrote it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fiqa_trt.models.spec import MEMBERS

if TYPE_CHECKING:
    import pyarrow as pa


def members_of(schema: pa.Schema) -> tuple[str, ...]:
    """The members of the ensemble that wrote a scores file, in order; it may lack columns of theirs.

    A Parquet file of ours records them. Of another they are the columns `score_x` between `score` and `width`, where
    they are written; other programs, and lists, have columns of such names elsewhere. A file that lacks them there is
    taken for one of the released model.
    """
    try:
        recorded = json.loads(schema.metadata[b"fiqa_trt"])["engine"]["members"]
        return tuple(map(str, recorded))
    except (KeyError, TypeError, ValueError):
        names = schema.names
        between = names[names.index("score") + 1 : names.index("width")] if {"score", "width"} <= set(names) else []
        known = len(between) > 1 and all(name.startswith("score_") for name in between)
        return tuple(name.removeprefix("score_") for name in between) if known else MEMBERS


def member_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns of `members_of`."""
    return [f"score_{name}" for name in members_of(schema)]


def disagreement(table: pa.Table) -> pa.ChunkedArray:
    """Of each row of a scores file, the highest score of a member less the lowest; null where one has none."""
    import pyarrow.compute as pc

    columns = [table[name] for name in member_columns(table.schema)]
    highest, lowest = (of(*columns, skip_nulls=False) for of in (pc.max_element_wise, pc.min_element_wise))
    return pc.subtract(highest, lowest)
