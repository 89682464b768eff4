"""Files below a folder: those that are scored, and a count of those that are left out."""

from __future__ import annotations

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Set

from fiqa_trt.errors import number_of, printable
from fiqa_trt.inputs.foreign import INSIDE, is_system_folder, noted_as, noted_inside, unread_with
from fiqa_trt.inputs.formats import SUFFIXES, find_format
from fiqa_trt.inputs.marks import NOTE, OURS, holds_copies
from fiqa_trt.storage.base import Entry
from fiqa_trt.storage.registry import store_of

_FORK = b"\x00\x05\x16\x07"  # AppleDouble: what a Mac keeps of a.jpg in ._a.jpg where a disk has no place for it
_HEAD = 32
_OPENED = 256  # files of unknown names that are looked into, of one input: a look takes a network's disk a millisecond
_NAMED = 3
_KINDS = 8


Head = Callable[[], bytes]  # the first bytes of a file; none of one that cannot be read


class _Group:
    """Files that are left out for one reason, with the first few names."""

    def __init__(self) -> None:
        self.count = 0
        self.names = list[str]()

    def add(self, name: str) -> None:
        self.count += 1
        name = printable(name)
        if len(self.names) < _NAMED and name not in self.names:
            self.names.append(name)

    def __str__(self) -> str:
        return ", ".join(self.names) + (", …" if self.count > len(self.names) else "")


class LeftOut:
    """What of an input is not scored, though it may be, or may hold, images. Empty means false."""

    def __init__(self) -> None:
        self._suffixes = Counter[str]()
        self._tables, self._unfit, self._forks, self._folders, self._alike = (_Group() for _ in range(5))
        self._shards, self._copies, self._broken = _Group(), _Group(), _Group()
        self._opened = 0

    def table(self, path: str, why_not: str | None = None) -> None:
        """Count a table; `why_not` says why its images could not be scored although they were asked for."""
        (self._unfit if why_not else self._tables).add(why_not or path)

    def shard(self, path: str) -> None:
        """Count a shard without an image."""
        self._shards.add(os.path.basename(path))

    def folder(self, name: str) -> bool:
        """Whether a folder is not to be entered; then it is counted."""
        system = is_system_folder(name)
        if system:
            self._folders.add(name)
        return system

    def copies(self, path: str) -> None:
        """Count a folder that `filter` has filled."""
        self._copies.add(path)

    def fork(self, name: str, head: Head) -> bool:
        """Whether a file with an image's suffix is but the resource fork of one; then it is counted."""
        fork = name.startswith("._") and head().startswith(_FORK)
        if fork:
            self._forks.add(name)
        return fork

    def file(self, entry: Entry) -> None:
        """Count a file, if it may be or hold images, or is a link that leads nowhere, as to a disk that is away."""
        noted = noted_as(entry.name)
        if noted is None and entry.is_symlink() and store_of(entry.path).stamp(entry.path) is None:
            self._broken.add(entry.name)
        else:
            self._see(entry.name, noted, functools.partial(_head, entry))

    def takes(self, entry: Entry, suffixes: Set[str]) -> bool:
        """Whether a file is taken, by its suffix; if not, it is counted."""
        if entry.name[entry.name.rfind(".") :].lower() not in suffixes:
            self.file(entry)
            return False
        return not self.fork(entry.name, functools.partial(_head, entry))

    def member(self, name: str, head: Head) -> None:
        """Count a member of a tar, if it may be or hold images."""
        self._see(name, noted_inside(name), head)

    def _see(self, name: str, noted: str | None, head: Head) -> None:
        if noted:
            self._suffixes[noted] += 1
        elif noted is None and self._opened < _OPENED:
            self._opened += 1
            if find_format(head()) is not None:
                self._alike.add(name)

    def __bool__(self) -> bool:
        return bool(str(self))

    def __str__(self) -> str:
        parts = [f"{count:,} {suffix}" for suffix, count in self._suffixes.most_common(_KINDS)]
        rest = self._suffixes.total() - sum(count for _, count in self._suffixes.most_common(_KINDS))
        parts += [f"{rest:,} of other kinds"] if rest else []
        if self._tables.count:
            parts.append(f"{number_of(self._tables.count, 'table')} (--image-column scores the images in them)")
        if self._unfit.count:
            parts.append(f"{number_of(self._unfit.count, 'table')} ({self._unfit.names[0]})")
        if self._shards.count:
            parts.append(f"{number_of(self._shards.count, 'shard')} without an image ({self._shards})")
        if self._forks.count:
            parts.append(f"{number_of(self._forks.count, 'resource fork')} ({self._forks})")
        if self._folders.count:
            parts.append(f"{number_of(self._folders.count, 'system folder')} ({self._folders})")
        if self._copies.count:
            parts.append(
                f"{number_of(self._copies.count, 'folder')} of copies that filter made of these images "
                f"({self._copies}; given as INPUT, such a folder is scored)"
            )
        if self._broken.count:
            parts.append(f"{number_of(self._broken.count, 'broken link')} ({self._broken})")
        if self._alike.count:
            least = "at least " if self._opened == _OPENED else ""
            parts.append(
                f"{least}{number_of(self._alike.count, 'other file')} that may be images ({self._alike}; "
                "--all-files tries every file)"
            )
        return ", ".join(parts)

    def way_out(self) -> str:
        """What to do with the most frequent of the containers; empty if there are none."""
        for suffix, _ in self._suffixes.most_common():
            container = unread_with(suffix)
            if suffix in INSIDE:
                return f"a {suffix} within a .tar is not read: unpack it first"
            if container is not None:
                return f"{suffix} is {container.what}: {container.way_out}"
        return ""


def _head(entry: Entry) -> bytes:
    """The first bytes of a regular file; none of anything else, and of one that cannot be read."""
    with contextlib.suppress(OSError):
        if entry.is_file():
            return store_of(entry.path).head(entry.path, _HEAD)
    return b""


def walk(
    folder: str,
    all_files: bool = False,
    exclude: Iterable[str] = (),
    suffixes: tuple[str, ...] = SUFFIXES,
    left_out: LeftOut | None = None,
) -> Iterator[str]:
    """Files below a folder, depth first, each folder's entries by name. Symbolic links are followed, loops are not.

    A folder that cannot be listed is yielded itself: it gets a row (`unreadable`) instead of vanishing.

    Args:
        folder: where to begin.
        all_files: everything; nothing is left out then but `exclude`, and what `filter` makes (see `marks.py`).
        exclude: paths that are passed over without a word.
        suffixes: of the files that are taken, in lower case.
        left_out: counts what is not taken.
    """
    left_out, store = LeftOut() if left_out is None else left_out, store_of(folder)
    if (found := store.below(folder)) is not None:
        yield from _stream(folder, found, all_files, tuple(exclude), frozenset(suffixes), left_out)
        return
    excluded, taken = {os.path.abspath(path) for path in exclude}, frozenset(suffixes)
    # Each entry: a path, and the folders above it by their stamps, or None for what is known to be a file.
    pending: list[tuple[str, tuple[object, ...] | None]] = [(folder, ())]
    while pending:
        path, above = pending.pop()
        if above is None:
            yield path
            continue
        try:
            stamp = store.stamp(path)
            here = stamp and stamp[:2]
            if here in above:
                continue
            entries = sorted(store.entries(path), key=lambda entry: entry.name)
        except OSError:
            yield path
            continue
        if path != folder and any(entry.name == NOTE for entry in entries) and holds_copies(path, folder):
            left_out.copies(path)
            continue
        inside: list[tuple[str, tuple[object, ...] | None]] = []
        for entry in entries:
            if entry.name in OURS or (excluded and os.path.abspath(entry.path) in excluded):
                continue
            folder_like = _is_folder(entry)
            if folder_like:
                if all_files or not left_out.folder(entry.name):
                    inside.append((entry.path, (*above, here)))
            elif all_files or folder_like is None or left_out.takes(entry, taken):
                inside.append((entry.path, None))
        pending.extend(reversed(inside))


def _stream(
    folder: str, found: Iterable[Entry], all_files: bool, exclude: Sequence[str], taken: Set[str], left_out: LeftOut
) -> Iterator[str]:
    """`walk`, of a store that lists all that is below a folder, which may be tens of millions."""
    at, passed_over = "", False  # the folder of the last one, and whether it is in one that is not entered
    own = tuple(f"{path}/" for path in exclude)
    for entry in found:
        above = entry.path[len(folder.rstrip("/")) + 1 : -len(entry.name)]
        if above != at:
            before, at = at, above
            names = above.split("/")[:-1]
            system = next((name for name in names if is_system_folder(name)), None)
            passed_over = system is not None and not all_files
            if passed_over and system is not None and f"/{system}/" not in f"/{before}":
                left_out.folder(system)
        if passed_over or entry.name in OURS or entry.path in exclude or entry.path.startswith(own):
            continue
        if all_files or left_out.takes(entry, taken):
            yield entry.path


def _is_folder(entry: Entry) -> bool | None:
    """None where that cannot be known, as of a link to itself, or into a folder that is closed: it gets a row."""
    try:
        return entry.is_dir()
    except OSError:
        return None
