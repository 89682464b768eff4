"""Whose scores a file holds: the members of the ensemble that wrote it, and the causes that it tells of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.scores.schema import CAUSE

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
        between = _between(schema.names)
        scores = between[: between.index(CAUSE)] if CAUSE in between else between
        known = len(scores) > 1 and all(name.startswith("score_") for name in scores)
        return tuple(name.removeprefix("score_") for name in scores) if known else MEMBERS


def _between(names: Sequence[str]) -> list[str]:
    """The columns between `score` and `width`, where members and causes are written."""
    return list(names[names.index("score") + 1 : names.index("width")]) if {"score", "width"} <= set(names) else []


def causes_of(schema: pa.Schema) -> tuple[str, ...]:
    """The causes that a scores file tells of, in order; none by default.

    A Parquet file of ours records them. Of another they are the columns `cause_x` that follow `cause` between `score`
    and `width`.
    """
    try:
        record = json.loads(schema.metadata[b"fiqa_trt"])
        return tuple(map(str, record.get("causes", ())))
    except (AttributeError, KeyError, TypeError, ValueError):
        between = _between(schema.names)
        names = between[between.index(CAUSE) + 1 :] if CAUSE in between else []
        known = all(name.startswith(f"{CAUSE}_") for name in names)
        return tuple(name.removeprefix(f"{CAUSE}_") for name in names) if known else ()


def cause_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns of `causes_of`, of their severities."""
    return [f"{CAUSE}_{name}" for name in causes_of(schema)]


def member_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns of `members_of`."""
    return [f"score_{name}" for name in members_of(schema)]


def disagreement(table: pa.Table) -> pa.ChunkedArray:
    """Of each row of a scores file, the highest score of a member less the lowest; null where one has none."""
    import pyarrow.compute as pc

    columns = [table[name] for name in member_columns(table.schema)]
    highest, lowest = (of(*columns, skip_nulls=False) for of in (pc.max_element_wise, pc.min_element_wise))
    return pc.subtract(highest, lowest)
