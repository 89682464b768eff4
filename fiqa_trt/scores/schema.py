"""The output: one row for each input, its statuses, and its Arrow schema."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from fiqa_trt.models.causes import NONE, Causes
from fiqa_trt.outcomes import Origin, Outcome, Status
from fiqa_trt.storage.base import all_unsigned

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


MOMENT = "moment"
"""Microseconds since 1970 in UTC, and marked as such, so that text says so as well."""


@dataclasses.dataclass(frozen=True)
class Own:
    """A column that fiqa-trt writes.

    Attributes:
        name: its name.
        kind: Arrow's name of its type, or MOMENT.
        value: of an outcome, and of what the image came from; None for those that inputs and scores are.
        needed: whether every version has written it, so that an output without it is none.
    """

    name: str
    kind: str
    value: Callable[[Outcome, Origin], object] | None = None
    needed: bool = True


CAUSE = "cause"
"""The column that names one; those of severities begin with this."""


def own(members: Sequence[str], causes: Sequence[str] = ()) -> tuple[Own, ...]:
    """The columns that fiqa-trt writes, in order; whatever else an output has was carried from a list."""
    return (
        Own("path", "string"),
        Own("score", "float32"),
        *(Own(f"score_{name}", "float32") for name in members),
        *((Own(CAUSE, "string"), *(Own(f"{CAUSE}_{name}", "float32") for name in causes)) if causes else ()),
        Own("width", "int32", lambda outcome, origin: outcome.width),
        Own("height", "int32", lambda outcome, origin: outcome.height),
        Own("status", "string", lambda outcome, origin: outcome.status.value),
        Own("error", "string", lambda outcome, origin: outcome.error),
        # Beside the score, and not in a file of their own: so they are as old as their row, wherever it goes.
        Own("bytes", "int64", lambda outcome, origin: origin.bytes, needed=False),
        Own("modified", MOMENT, lambda outcome, origin: origin.modified, needed=False),
    )


def own_columns(members: Sequence[str], causes: Sequence[str] = ()) -> list[str]:
    """Names of the columns of `own`."""
    return [column.name for column in own(members, causes)]


def needed_columns(members: Sequence[str], causes: Sequence[str] = ()) -> list[str]:
    """Names of those that an output of any version has."""
    return [column.name for column in own(members, causes) if column.needed]


def own_types(members: Sequence[str], causes: Sequence[str] = ()) -> dict[str, pa.DataType]:
    """Arrow types of the columns of `own` by name."""
    import pyarrow as pa

    moment = pa.timestamp("us", "UTC")
    columns = own(members, causes)
    return {each.name: moment if each.kind == MOMENT else pa.type_for_alias(each.kind) for each in columns}


def output_schema(members: Sequence[str], inputs: pa.Schema, causes: Sequence[str] = ()) -> pa.Schema:
    """Schema of the output: our columns, then those that the input list brought along (all but its first, `path`)."""
    import pyarrow as pa

    types = own_types(members, causes)
    fields = [pa.field(name, kind, nullable=name not in ("path", "status")) for name, kind in types.items()]
    return pa.schema([*fields, *(inputs.field(i).with_nullable(True) for i in range(1, len(inputs)))])


def to_table(
    inputs: pa.Table,
    outcomes: Sequence[Outcome],
    origins: Sequence[Origin],
    scores: npt.NDArray[np.float32],
    members: Sequence[str],
    severities: npt.NDArray[np.float32] | None = None,
    causes: Causes = NONE,
) -> pa.Table:
    """The rows of one unit.

    Args:
        inputs: the unit's part of the frozen list, `path` first, N rows.
        outcomes: N of them, in the same order.
        origins: likewise.
        scores: float32 [N, members]; rows whose outcome is not `ok` are ignored.
        members: names of the members.
        severities: float32 [N, causes], where there are any; the same rows are ignored.
        causes: that the rows tell of.
    """
    import numpy as np
    import pyarrow as pa

    if not len(inputs) == len(outcomes) == len(origins) == len(scores):
        raise ValueError(f"{len(inputs)} inputs, {len(outcomes)} outcomes, {len(scores)} scores: not one for each")
    schema = output_schema(members, inputs.schema, causes.names)
    failed = np.array([outcome.status is not Status.OK for outcome in outcomes], dtype=bool)
    columns: list[object] = [all_unsigned(inputs.column(0))]
    every = (scores.mean(axis=1, dtype=np.float32), *scores.T)
    columns += [pa.array(values, pa.float32(), mask=failed) for values in every]
    if causes and severities is not None:
        columns.append(pa.array(causes.worst(severities), pa.string(), mask=failed))
        columns += [pa.array(values, pa.float32(), mask=failed) for values in severities.T]
    for column in own(members, causes.names):
        if column.value is not None:
            values = [column.value(outcome, origin) for outcome, origin in zip(outcomes, origins, strict=True)]
            columns.append(pa.array(values, schema.field(column.name).type))
    columns.extend(inputs.column(i) for i in range(1, inputs.num_columns))
    return pa.table(columns, schema=schema)
