"""What a file is that holds many images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from fiqa_trt.outcomes import ImageError
from fiqa_trt.storage.base import (
    MAX_BYTES,
    Blob,
    Stamp,
)


class Container(Protocol):
    """One such file. Safe to use from several threads.

    Attributes:
        error: what is wrong with the file, so that images of it may be missing; None if nothing is.
        stamp: of the file when it was opened; None if it could not be.
        weight: bytes of memory that it takes, about.
    """

    error: ImageError | None
    stamp: Stamp | None
    weight: int

    def keys(self, suffixes: tuple[str, ...] = (), *, others: bool = False) -> Iterator[str]:
        """What distinguishes its images, in their order in the file. `suffixes`: only those, where they have any;
        `others`: all but those.
        """
        ...

    def position(self, key: str) -> int:
        """Where in the file an image is, to read many in that order; -1 for what is not there."""
        ...

    def read(self, key: str, max_bytes: int = MAX_BYTES) -> bytes:
        """The bytes of an image. Raises ImageError, with the status of its row."""
        ...

    def read_all(self, keys: Sequence[str], max_bytes: int = MAX_BYTES) -> list[Blob]:
        """The bytes of each image, or why there are none. Raises FileChanged if they cannot be of one file."""
        ...

    def close(self) -> None:
        """Release the file, until it is read again."""
        ...
