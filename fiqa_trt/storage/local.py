"""The bytes of a file, or the reason why there are none."""

from __future__ import annotations

import errno
import os
import re
import stat
from typing import NamedTuple

from fiqa_trt.outcomes import ImageError, Origin, Status

MAX_BYTES = 1 << 28  # No crop is a quarter of a gigabyte; a disk image named .jpg must not fill the memory.
Blob = bytes | ImageError


class Stamp(NamedTuple):
    """What changes when a file is replaced or written to."""

    device: int
    number: int
    size: int
    modified_ns: int
    changed_ns: int


def stamp_of(info: os.stat_result) -> Stamp:
    """That of a file."""
    return Stamp(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def stamp_at(path: str) -> Stamp | None:
    """The same by a file's path; None if there is none."""
    try:
        return stamp_of(os.stat(path))
    except (OSError, ValueError):
        return None


class FileChanged(ImageError):
    """A file is not the one any more that its index was made of."""

    def __init__(self) -> None:
        super().__init__(Status.UNREADABLE, "the file was changed while it was read")


REMOTE = "a web address or an object store, which is not read: mount it, or copy it here"
_YEAR_1, _YEAR_10000 = -62_135_596_800 * 10**9, 253_402_300_800 * 10**9  # in nanoseconds since 1970
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
# A single slash is what pathlib leaves of two; below a folder, what a table's own path became.
_URL = re.compile(
    r"(?:^|/)(?:[a-z][a-z0-9+.-]+://|(?:https?|ftp|s3a?|gs|gcs|az|abfss?|wasbs?|hdfs|hf|zip|memory):/)|^data:",
    re.IGNORECASE,
)


def is_remote(path: str) -> bool:
    """Whether a path that does not exist is a web address or an object's, by its looks."""
    return _URL.search(path) is not None


class Read(NamedTuple):
    """The bytes of an image or why there are none, and what they came from, as it was just before they were read."""

    blob: Blob
    origin: Origin = Origin()


def microseconds(modified_ns: int) -> int | None:
    """A file's time as `Origin` has it; None for one that not every format can hold, as a broken clock sets."""
    return modified_ns // 1000 if _YEAR_1 <= modified_ns < _YEAR_10000 else None


def read_plain(path: str, max_bytes: int = MAX_BYTES) -> Read:
    """All bytes of a regular file, or why there are none.

    It is `missing`, `empty`, `too_large`, `unreadable` (a folder, a device, a pipe, no permission), or `unsupported`
    (an address instead of a path).
    """
    origin = Origin()

    def failed(status: Status, error: str) -> Read:
        return Read(ImageError(status, error), origin)

    try:
        with open(path, "rb", buffering=0, opener=open_at_once) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                return failed(Status.UNREADABLE, "not a regular file")
            origin = Origin(info.st_size, microseconds(info.st_mtime_ns))
            if info.st_size > max_bytes:
                return failed(Status.TOO_LARGE, f"{info.st_size} bytes, more than {max_bytes}")
            data = file.read()
    except IsADirectoryError:
        return failed(Status.UNREADABLE, "a folder, not a file (or a folder that could not be listed)")
    except OSError as exc:
        if exc.errno in (*_ABSENT, errno.ENAMETOOLONG) and is_remote(path):
            return failed(Status.UNSUPPORTED, REMOTE)
        return failed(Status.MISSING if exc.errno in _ABSENT else Status.UNREADABLE, exc.strerror or str(exc))
    except ValueError as exc:  # a NUL in the name
        return failed(Status.MISSING, f"not a path: {exc}")
    return Read(data, origin) if data else failed(Status.EMPTY, "0 bytes")


def read_file(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of a regular file. Raises ImageError, with the statuses of `read_plain`."""
    blob = read_plain(path, max_bytes).blob
    if isinstance(blob, ImageError):
        raise blob
    return blob


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open` that waits for nobody."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
    return os.open(path, flags | os.O_NONBLOCK)
