"""Where outputs, lists and scores files are: paths of this machine or addresses in a store, by the same few methods."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from fiqa_trt.outcomes import ImageError
from fiqa_trt.storage.base import Entry, FileChanged, Stamp, unsigned
from fiqa_trt.storage.registry import is_stored, store_of, writer_of
from fiqa_trt.storage.scratch import Scratch

_PIECE = 8 << 20
_TRIES = 3


class Uri:
    """What there is of `pathlib.Path` for a place in a store. All that asks the store may raise StoreError."""

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def name(self) -> str:
        """The part behind the last slash."""
        return self._text.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        """Of the name."""
        return Path(self.name).suffix

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return Path(self.name).stem

    def with_name(self, name: str) -> Uri:
        """Beside it."""
        return Uri(f"{self._text.rpartition('/')[0]}/{name}")

    def __truediv__(self, name: str) -> Uri:
        return Uri(f"{self._text}/{name}")

    def exists(self) -> bool:
        """Whether there is an object."""
        return store_of(self._text).is_file(self._text)

    is_file = exists

    def read_bytes(self) -> bytes:
        """All of it. Raises OSError."""
        blob = store_of(self._text).read(self._text).blob
        if isinstance(blob, ImageError):
            raise OSError(str(blob))
        return blob

    def read_text(self) -> str:
        """The same as text."""
        return self.read_bytes().decode()

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove it; that it is not there is no error."""
        writer_of(self._text).remove([self._text])

    def __str__(self) -> str:
        return unsigned(self._text)

    def __fspath__(self) -> str:
        return self._text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Uri) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Uri({str(self)!r})"


Place: TypeAlias = Path | Uri


def place_of(given: str | os.PathLike[str]) -> Place:
    """The place that a path or an address names."""
    text = os.fspath(given)
    return Uri(text) if is_stored(text) else Path(text)


def is_same(one: Place, other: Place) -> bool:
    """Whether both are there, and one. Raises OSError."""
    if isinstance(one, Uri) or isinstance(other, Uri):
        return one == other
    return one.exists() and other.exists() and one.samefile(other)


def entry_names(folder: Place) -> list[str]:
    """What is in a folder. Raises OSError, StoreError."""
    return [entry.name for entry in store_of(os.fspath(folder)).entries(os.fspath(folder))]


def beside_of(place: Place) -> list[Place]:
    """What is in the folder of a place. Raises OSError, StoreError."""
    if isinstance(place, Path):
        return [*place.parent.iterdir()]
    return [place.with_name(name) for name in entry_names(Uri(os.fspath(place).rpartition("/")[0]))]


def below(folder: Uri) -> Iterator[Entry]:
    """All objects below a place."""
    yield from store_of(os.fspath(folder)).below(os.fspath(folder)) or ()


def remove_below(folder: Uri) -> None:
    """Remove all objects below a place."""
    writer_of(os.fspath(folder)).remove([entry.path for entry in below(folder)])


class _Copies:
    """Copies of objects in the temporary folder, as long as the process lives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._folder: Scratch | None = None
        self._known, self._numbers = dict[str, tuple[Stamp | None, Path]](), itertools.count()

    def of(self, address: str) -> Path:
        """See `at_hand`."""
        with self._lock:
            store = store_of(address)
            for _ in range(_TRIES):
                stamp = store.stamp(address)
                known = self._known.get(address)
                if known is not None and stamp is not None and known[0] == stamp:
                    return known[1]
                try:
                    return self._fetch(address)
                except FileChanged:
                    continue
            raise OSError(str(FileChanged()))

    def _fetch(self, address: str) -> Path:
        if self._folder is None:
            self._folder = Scratch()
        at = self._folder.path / f"{next(self._numbers)}{Uri(address.partition('?')[0]).suffix}"
        with store_of(address).open(address) as file, at.open("wb") as copy:
            for start in range(0, file.size, _PIECE):
                copy.write(file.read_at(start, _PIECE))
            self._known[address] = file.stamp(), at
        return at

    def remove(self) -> None:
        """They go, at the end of the process."""
        if self._folder is not None:
            self._folder.remove()

    def forget(self) -> None:
        """Begin anew in a forked process, which must not remove what its parent has."""
        self.__init__()  # type: ignore[misc]


_COPIES = _Copies()
os.register_at_fork(after_in_child=_COPIES.forget)
atexit.register(_COPIES.remove)


def drop_copies() -> None:
    """Remove what `at_hand` has copied, where the process ends without its usual end."""
    _COPIES.remove()


def at_hand(place: str | os.PathLike[str]) -> Path:
    """A file of this machine with what is at a place: that itself, or a copy. Raises OSError, StoreError."""
    text = os.fspath(place)
    return _COPIES.of(text) if is_stored(text) else Path(text)
