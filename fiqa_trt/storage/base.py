"""What a store is: a place where the bytes of images, and of files that hold many, are found by their paths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol

from fiqa_trt.outcomes import ImageError, Origin, Status

if TYPE_CHECKING:
    import pyarrow as pa

MAX_BYTES = 1 << 28  # No crop is a quarter of a gigabyte; a disk image named .jpg must not fill the memory.
Blob = bytes | ImageError
_YEAR_1, _YEAR_10000 = -62_135_596_800 * 10**9, 253_402_300_800 * 10**9  # in nanoseconds since 1970

REMOTE = "an address of a kind that is not read: mount it, or copy it here"
KNOWN = "not an address of a kind that is known: s3://, gs://, az:// or abfs://, https:// and hf:// are"
NOT_WRITTEN = "outputs are not written there, but on this machine and into s3://, gs:// and az://"
# A single slash is what pathlib leaves of two; below a folder, what a table's own path became.
_URL = re.compile(
    r"(?:^|/)(?:[a-z][a-z0-9+.-]+://|(?:https?|ftp|s3a?|gs|gcs|az|abfss?|wasbs?|hdfs|hf|zip|memory):/)|^data:",
    re.IGNORECASE,
)


def is_remote(path: str) -> bool:
    """Whether a path that does not exist is a web address or an object's, by its looks."""
    return _URL.search(path) is not None


# What lets whoever has a web address in, and first what is left without it: a query, as those of S3, Google, Azure and
# others have, and a user's name and password. In terms that Arrow knows as well.
SIGNED = (
    r"(?is)^(https?://[^?]*)\?(?:.*&)?(?:X-Amz-|X-Goog-|AWSAccessKeyId=|Signature=|sig=|(?:access_?|auth_?)?token=|"
    r"(?:api[_-]?)?key=|secret=|password=).*$"
)
_USER = r"(?is)^(https?://)[^/?#@]*@"


def unsigned(path: str) -> str:
    """A path as it may be written down: a web address without what grants access."""
    return re.sub(_USER, r"\1", re.sub(SIGNED, r"\1", path))


def all_unsigned(paths: pa.ChunkedArray) -> pa.ChunkedArray:
    """`unsigned` of each of many paths."""
    import pyarrow.compute as pc

    for pattern in (SIGNED, _USER):
        paths = pc.replace_substring_regex(paths, pattern, r"\1")
    return paths


class Stamp(NamedTuple):
    """What changes when a file is replaced or written to."""

    device: int
    number: int
    size: int
    modified_ns: int
    changed_ns: int


class FileChanged(ImageError):
    """A file is not the one any more that its index was made of."""

    def __init__(self) -> None:
        super().__init__(Status.UNREADABLE, "the file was changed while it was read")


class Read(NamedTuple):
    """The bytes of an image or why there are none, and what they came from, as it was just before they were read."""

    blob: Blob
    origin: Origin = Origin()


def microseconds(modified_ns: int) -> int | None:
    """A file's time as `Origin` has it; None for one that not every format can hold, as a broken clock sets."""
    return modified_ns // 1000 if _YEAR_1 <= modified_ns < _YEAR_10000 else None


class File(Protocol):
    """An open file. A context manager.

    Attributes:
        size: in bytes.
        raw: for libraries that read by themselves: it can seek.
    """

    size: int
    raw: BinaryIO

    def stamp(self) -> Stamp:
        """As it is now."""
        ...

    def read_at(self, offset: int, count: int) -> bytes:
        """Up to `count` bytes from `offset` on; fewer at the end. Safe in several threads. Raises OSError."""
        ...

    def __enter__(self) -> File: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Entry(Protocol):
    """What is in a folder, as `os.DirEntry` has it. The last three raise OSError where that cannot be known."""

    @property
    def name(self) -> str:
        """Without the folder."""
        ...

    @property
    def path(self) -> str:
        """With the folder."""
        ...

    def is_dir(self) -> bool:
        """Whether it is a folder, or a link to one."""
        ...

    def is_file(self) -> bool:
        """Whether it is a file, or a link to one."""
        ...

    def is_symlink(self) -> bool:
        """Whether it is a link."""
        ...


class Store(Protocol):
    """A place where files are. Safe to use from several threads."""

    def read(self, path: str, max_bytes: int = MAX_BYTES) -> Read:
        """All bytes of a file, or why there are none.

        It is `missing`, `empty`, `too_large`, `unreadable` (a folder, a device, a pipe, no permission), or
        `unsupported` (an address instead of a path).
        """
        ...

    def head(self, path: str, count: int) -> bytes:
        """The first bytes of a file. Raises OSError."""
        ...

    def open(self, path: str) -> File:
        """Open a file. Raises OSError or ValueError."""
        ...

    def for_arrow(self, path: str, *, mapped: bool = False) -> Any:
        """What Arrow opens as a file: a path, or a `pyarrow.NativeFile`; this where it is `mapped` into memory, if it
        can be. Raises OSError.
        """
        ...

    def stamp(self, path: str) -> Stamp | None:
        """That of a file or a folder; None if there is none."""
        ...

    def origin(self, path: str) -> Origin:
        """Size and time of a file; nothing of anything else."""
        ...

    def is_file(self, path: str) -> bool:
        """Whether a file is there."""
        ...

    def is_folder(self, path: str) -> bool:
        """Whether it is a folder. Raises OSError or ValueError where nothing is."""
        ...

    def entries(self, folder: str) -> Iterable[Entry]:
        """What is in a folder, in any order. Raises OSError."""
        ...

    def below(self, folder: str) -> Iterable[Entry] | None:
        """All files below a folder, in the store's order, as they come; None where folders have to be asked one by one.
        Raises OSError.
        """
        ...


class Writer(Protocol):
    """A store that outputs are written into. Everything may raise StoreError."""

    def check(self, path: str) -> None:
        """Raise OutputError if nothing can be written by that name, whatever the store says."""
        ...

    def put(self, path: str, content: bytes | Path) -> None:
        """Write an object, or what a file holds: it is there whole, at once, or not at all."""
        ...

    def create(self, path: str, content: bytes) -> None:
        """The same of one that must not be there. Raises FileExistsError if it is."""
        ...

    def remove(self, paths: Sequence[str]) -> None:
        """Remove objects; that one is not there is no error."""
        ...
