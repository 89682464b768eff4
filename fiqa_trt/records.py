"""The output: one row for each input, its statuses, and its Arrow schema."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_to_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa


class Status(str, enum.Enum):
    """What became of an input."""

    OK = "ok"
    MISSING = "missing"
    UNREADABLE = "unreadable"
    EMPTY = "empty"
    NOT_AN_IMAGE = "not_an_image"
    UNSUPPORTED = "unsupported"
    TRUNCATED = "truncated"
    CORRUPT = "corrupt"
    TOO_LARGE = "too_large"


_LARGEST_SIDE = 2**31 - 1
_ERROR_LENGTH = 300


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What reading and decoding an input gave. It holds nothing that its row could not: whatever a header or a library
    says is brought into that form here.

    Attributes:
        status: `ok` means that its pixels are in the batch.
        width: of the whole upright image in pixels, 1 to 2^31 - 1; None where the header told none, or nonsense.
        height: likewise; both are there or neither.
        error: one line of valid text, for every status but `ok`.
    """

    status: Status
    width: int | None = None
    height: int | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        sides = (self.width, self.height)
        known = all(side is not None and 1 <= side <= _LARGEST_SIDE for side in sides)
        width, height = (int(side) if known and side is not None else None for side in sides)
        object.__setattr__(self, "width", width)
        object.__setattr__(self, "height", height)
        object.__setattr__(self, "error", None if self.status is Status.OK else _one_line(self.error or ""))


def _one_line(text: str) -> str:
    whole = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return whole[:_ERROR_LENGTH] or "no reason was given"


class ImageError(Exception):
    """An input that cannot be scored; becomes its row and never ends a run."""

    def __init__(self, status: Status, error: str, width: int | None = None, height: int | None = None) -> None:
        super().__init__(error)
        self.outcome = Outcome(status, width, height, error)


UNFORESEEN = "unforeseen "
"""What the error of an image begins with that made a decoder or a reader raise what none should."""


def unforeseen(error: Exception) -> ImageError:
    """The row of such an image."""
    return ImageError(Status.CORRUPT, f"{UNFORESEEN}{type(error).__name__}: {error}")


class Origin(NamedTuple):
    """What an image came from, to tell later whether it has changed.

    Attributes:
        bytes: its size; None if it could not be read.
        modified: when its file, or the shard that it is in, was last written to, in microseconds since 1970 (UTC);
            None if it could not be read, or lies outside the years 1 to 9999.
    """

    bytes: int | None = None
    modified: int | None = None


_SCHEME = "file:"


def record_path(path: str | bytes) -> str:
    """A path as it stands in a table: itself if it is valid UTF-8, else a percent-encoded `file:` URI (RFC 8089).

    Accepts bytes or Python's own form of a file name (surrogateescape). Reversed by `open_path`.
    """
    name = os.fsdecode(path)
    if not name.startswith(_SCHEME):
        try:
            name.encode()
        except UnicodeEncodeError:
            pass
        else:
            return name
    return as_uri(name)


def as_uri(name: str) -> str:
    """A path, in Python's own form of a file name, as a `file:` URI."""
    return _SCHEME + ("//" if name.startswith("/") else "") + quote(os.fsencode(name))


def open_path(recorded: str) -> str:
    """The path to open for a recorded one: `file:` URIs are decoded, anything else is taken as it stands; so is the URI
    of a file on another host.
    """
    if not recorded.startswith(_SCHEME):
        return recorded
    rest = recorded[len(_SCHEME) :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            return recorded
        rest = slash + path
    return os.fsdecode(unquote_to_bytes(rest))


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


def own(members: Sequence[str]) -> tuple[Own, ...]:
    """The columns that fiqa-trt writes, in order; whatever else an output has was carried from a list."""
    return (
        Own("path", "string"),
        Own("score", "float32"),
        *(Own(f"score_{name}", "float32") for name in members),
        Own("width", "int32", lambda outcome, origin: outcome.width),
        Own("height", "int32", lambda outcome, origin: outcome.height),
        Own("status", "string", lambda outcome, origin: outcome.status.value),
        Own("error", "string", lambda outcome, origin: outcome.error),
        # Beside the score, and not in a file of their own: so they are as old as their row, wherever it goes.
        Own("bytes", "int64", lambda outcome, origin: origin.bytes, needed=False),
        Own("modified", MOMENT, lambda outcome, origin: origin.modified, needed=False),
    )


def own_columns(members: Sequence[str]) -> list[str]:
    """Names of the columns of `own`."""
    return [column.name for column in own(members)]


def needed_columns(members: Sequence[str]) -> list[str]:
    """Names of those that an output of any version has."""
    return [column.name for column in own(members) if column.needed]


def own_types(members: Sequence[str]) -> dict[str, pa.DataType]:
    """Arrow types of the columns of `own` by name."""
    import pyarrow as pa

    moment = pa.timestamp("us", "UTC")
    return {each.name: moment if each.kind == MOMENT else pa.type_for_alias(each.kind) for each in own(members)}


def output_schema(members: Sequence[str], inputs: pa.Schema) -> pa.Schema:
    """Schema of the output: our columns, then those that the input list brought along (all but its first, `path`)."""
    import pyarrow as pa

    types = own_types(members)
    fields = [pa.field(name, kind, nullable=name not in ("path", "status")) for name, kind in types.items()]
    return pa.schema([*fields, *(inputs.field(i).with_nullable(True) for i in range(1, len(inputs)))])


def to_table(
    inputs: pa.Table,
    outcomes: Sequence[Outcome],
    origins: Sequence[Origin],
    scores: npt.NDArray[np.float32],
    members: Sequence[str],
) -> pa.Table:
    """The rows of one unit.

    Args:
        inputs: the unit's part of the frozen list, `path` first, N rows.
        outcomes: N of them, in the same order.
        origins: likewise.
        scores: float32 [N, members]; rows whose outcome is not `ok` are ignored.
        members: names of the members.
    """
    import numpy as np
    import pyarrow as pa

    if not len(inputs) == len(outcomes) == len(origins) == len(scores):
        raise ValueError(f"{len(inputs)} inputs, {len(outcomes)} outcomes, {len(scores)} scores: not one for each")
    schema = output_schema(members, inputs.schema)
    failed = np.array([outcome.status is not Status.OK for outcome in outcomes], dtype=bool)
    columns: list[object] = [inputs.column(0)]
    every = (scores.mean(axis=1, dtype=np.float32), *scores.T)
    columns += [pa.array(values, pa.float32(), mask=failed) for values in every]
    for column in own(members):
        if column.value is not None:
            values = [column.value(outcome, origin) for outcome, origin in zip(outcomes, origins, strict=True)]
            columns.append(pa.array(values, schema.field(column.name).type))
    columns.extend(inputs.column(i) for i in range(1, inputs.num_columns))
    return pa.table(columns, schema=schema)
