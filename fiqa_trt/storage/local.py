"""Files on this machine, and on disks that are mounted here."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Iterable
from types import TracebackType
from typing import Any, BinaryIO

from fiqa_trt.outcomes import ImageError, Origin, Status
from fiqa_trt.storage.base import MAX_BYTES, REMOTE, Entry, Read, Stamp, is_remote, microseconds

_ABSENT = (errno.ENOENT, errno.ENOTDIR)


class NotAFile(OSError):
    """A folder, a device or a pipe where a file should be."""

    def __init__(self) -> None:
        super().__init__(errno.EINVAL, "not a regular file")

    def __str__(self) -> str:
        return self.strerror or ""


class LocalFile:
    """See `base.File`."""

    def __init__(self, path: str) -> None:
        """Open it. Raises OSError or, for a NUL in the name, ValueError."""
        self.raw: BinaryIO = io.BufferedReader(io.FileIO(path, opener=_at_once))
        try:
            info = os.fstat(self.raw.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise NotAFile
        except OSError:
            self.raw.close()
            raise
        self.size = info.st_size

    def stamp(self) -> Stamp:
        """See `File.stamp`."""
        return _stamp_of(os.fstat(self.raw.fileno()))

    def read_at(self, offset: int, count: int) -> bytes:
        """See `File.read_at`."""
        return os.pread(self.raw.fileno(), count, offset)

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.close()


class LocalStore:
    """See `base.Store`."""

    def read(self, path: str, max_bytes: int = MAX_BYTES) -> Read:
        """See `Store.read`."""
        origin = Origin()

        def failed(status: Status, error: str) -> Read:
            return Read(ImageError(status, error), origin)

        try:
            with open(path, "rb", buffering=0, opener=_at_once) as file:
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

    def head(self, path: str, count: int) -> bytes:
        """See `Store.head`."""
        with open(path, "rb", buffering=0, opener=_at_once) as file:
            return file.read(count)

    def open(self, path: str) -> LocalFile:
        """See `Store.open`."""
        return LocalFile(path)

    def for_arrow(self, path: str, *, mapped: bool = False) -> Any:
        """See `Store.for_arrow`."""
        import pyarrow as pa

        return pa.memory_map(path) if mapped else path

    def stamp(self, path: str) -> Stamp | None:
        """See `Store.stamp`."""
        try:
            return _stamp_of(os.stat(path))
        except (OSError, ValueError):
            return None

    def origin(self, path: str) -> Origin:
        """See `Store.origin`."""
        try:
            info = os.stat(path)
        except (OSError, ValueError):
            return Origin()
        return Origin(info.st_size, microseconds(info.st_mtime_ns)) if stat.S_ISREG(info.st_mode) else Origin()

    def is_file(self, path: str) -> bool:
        """See `Store.is_file`."""
        return os.path.isfile(path)

    def is_folder(self, path: str) -> bool:
        """See `Store.is_folder`."""
        return stat.S_ISDIR(os.stat(path).st_mode)

    def entries(self, folder: str) -> Iterable[Entry]:
        """See `Store.entries`."""
        with os.scandir(folder) as found:
            return list(found)

    def below(self, folder: str) -> None:
        """See `Store.below`."""


def _stamp_of(info: os.stat_result) -> Stamp:
    return Stamp(info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def _at_once(path: str, flags: int) -> int:
    """An opener for `open` that waits for nobody."""
    # Without O_NONBLOCK, opening a named pipe waits for a writer that may never come.
    return os.open(path, flags | os.O_NONBLOCK)
