"""What becomes of an input: its status, what reading and decoding gave, and where it came from."""

from __future__ import annotations

import dataclasses
import enum
import sys
from typing import NamedTuple

from fiqa_trt.scarcity import starved_by


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
        width, height = self.width, self.height
        if width is None or height is None or not (1 <= width <= _LARGEST_SIDE and 1 <= height <= _LARGEST_SIDE):
            width = height = None
        object.__setattr__(self, "width", None if width is None else int(width))
        object.__setattr__(self, "height", None if height is None else int(height))
        object.__setattr__(self, "error", None if self.status is Status.OK else _one_line(self.error or ""))


def _one_line(text: str) -> str:
    whole = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    return whole[:_ERROR_LENGTH] or "no reason was given"


class ImageError(Exception):
    """An input that cannot be scored; becomes its row and never ends a run.

    Raises:
        Starved: in its place, where what was caught comes of the machine and not of the input.
    """

    def __init__(self, status: Status, error: str, width: int | None = None, height: int | None = None) -> None:
        # Here, as readers and decoders are many, and each of them would have to think of it.
        caught = sys.exc_info()[1]
        starved = None if caught is None else starved_by(caught)
        if starved is not None:
            raise starved
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
