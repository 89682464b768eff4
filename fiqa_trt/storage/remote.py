"""Files that are read by ranges from afar, whatever gives them."""

from __future__ import annotations

import errno
import hashlib
import io
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO

from fiqa_trt.errors import StoreError
from fiqa_trt.storage.base import Stamp, unsigned

_AHEAD, _MOST_AHEAD = 128 << 10, 4 << 20
"""Bytes that are read at once where a file is read from front to back: at first, and as long as that goes on."""


def number_of(name: str) -> int:
    """A number for a name, as a disk has one for each file."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest(), "big")


class RemoteFile:
    """See `base.File`. What follows is read as well, as long as that is what is asked for next."""

    def __init__(self, path: str, size: int, stamp: Stamp, fetch: Callable[[int, int], bytes]) -> None:
        """`fetch` gives the bytes from one place to before another."""
        self.size = size
        self._path, self._stamp, self._fetch, self._lock = path, stamp, fetch, threading.Lock()
        self._start, self._held, self._ahead = 0, b"", _AHEAD // 2
        self.raw: BinaryIO = io.BufferedReader(_Raw(self), 64 << 10)

    def stamp(self) -> Stamp:
        """See `File.stamp`."""
        return self._stamp

    def read_at(self, offset: int, count: int) -> bytes:
        """See `File.read_at`."""
        stop = min(offset + count, self.size)
        if offset >= stop:
            return b""
        with self._lock:
            held = self._start + len(self._held)
            if not self._start <= offset < stop <= held:
                onward = self._start <= offset <= held + _AHEAD
                self._ahead = min(2 * self._ahead, _MOST_AHEAD) if onward else _AHEAD
                self._held, self._start = self._whole(offset, max(stop, min(offset + self._ahead, self.size))), offset
            return self._held[offset - self._start : stop - self._start]

    def _whole(self, start: int, stop: int) -> bytes:
        data = self._fetch(start, stop)
        if len(data) != stop - start:
            raise StoreError(f"cannot read {unsigned(self._path)}: {len(data)} bytes came of {stop - start}")
        return data

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.close()


class _Raw(io.RawIOBase):
    """A file that reads by itself, for libraries."""

    def __init__(self, file: RemoteFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self._file.size)[whence]
        if at < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        data = self._file.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class RemoteEntry:
    """See `base.Entry`. The path of a folder ends in a slash, as a key may have the same name."""

    def __init__(self, path: str, name: str, folder: bool) -> None:
        self.path, self.name, self._folder = path, name, folder

    def is_dir(self) -> bool:
        """See `Entry.is_dir`."""
        return self._folder

    def is_file(self) -> bool:
        """See `Entry.is_file`."""
        return not self._folder

    def is_symlink(self) -> bool:
        """See `Entry.is_symlink`."""
        return False
