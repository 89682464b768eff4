"""The bytes of a file, or the reason why there are none."""

from __future__ import annotations

import errno
import os
import re
import stat

from fiqa_trt.records import ImageError, Status

MAX_BYTES = 1 << 28  # No crop is a quarter of a gigabyte; a disk image named .jpg must not fill the memory.
Blob = bytes | ImageError
Stamp = tuple[int, ...]


def stamp_of(info: os.stat_result) -> Stamp:
    """What changes when a file is replaced or written to."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


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
_ABSENT = (errno.ENOENT, errno.ENOTDIR)
# A single slash is what pathlib leaves of two; below a folder, what a table's own path became.
_URL = re.compile(
    r"(?:^|/)(?:[a-z][a-z0-9+.-]+://|(?:https?|ftp|s3a?|gs|gcs|az|abfss?|wasbs?|hdfs|hf|zip|memory):/)|^data:",
    re.IGNORECASE,
)


def is_remote(path: str) -> bool:
    """Whether a path that does not exist is a web address or an object's, by its looks."""
    return _URL.search(path) is not None


def read_file(path: str, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of a regular file.

    Raises:
        ImageError: `missing`, `empty`, `too_large`, `unreadable` (a folder, a device, a pipe, no permission), or
            `unsupported` (an address instead of a path).
    """
    try:
        with open(path, "rb", buffering=0, opener=open_at_once) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ImageError(Status.UNREADABLE, "not a regular file")
            if info.st_size > max_bytes:
                raise ImageError(Status.TOO_LARGE, f"{info.st_size} bytes, more than {max_bytes}")
            data = file.read()
    except IsADirectoryError as exc:
        raise ImageError(Status.UNREADABLE, "a folder, not a file (or a folder that could not be listed)") from exc
    except OSError as exc:
        if exc.errno in (*_ABSENT, errno.ENAMETOOLONG) and is_remote(path):
            raise ImageError(Status.UNSUPPORTED, REMOTE) from exc
        status = Status.MISSING if exc.errno in _ABSENT else Status.UNREADABLE
        raise ImageError(status, exc.strerror or str(exc)) from exc
    except ValueError as exc:  # a NUL in the name
        raise ImageError(Status.MISSING, f"not a path: {exc}") from exc
    if not data:
        raise ImageError(Status.EMPTY, "0 bytes")
    return data


def open_at_once(path: str, flags: int) -> int:
    """An opener for `open` that waits for nobody."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
    return os.open(path, flags | os.O_NONBLOCK)
