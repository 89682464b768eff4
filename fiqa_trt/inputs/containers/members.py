"""The members of a container by name, in little memory."""

from __future__ import annotations

import dataclasses
import os
import posixpath
import tarfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator

import numpy as np

from fiqa_trt.inputs.address import SEPARATOR
from fiqa_trt.outcomes import Status

FILE, SPARSE, FAULTY, FOLDER = range(4)
_LABEL, _DUMPDIR, _CONTINUED = b"V", b"D", b"M"  # GNU's types that tarfile takes for files


@dataclasses.dataclass(frozen=True)
class Fault:
    """Why a member has no bytes."""

    status: Status
    error: str


class Entries:
    """All entries of a container in their order, in little memory: by number their name, kind, offset and size.

    The offset is where reading begins; of a tar's member the data, or the header if it is a sparse one.
    """

    def __init__(self) -> None:
        self.kinds = bytearray()
        self.offsets, self.sizes = array("q"), array("q")
        self.faults = dict[int, Fault]()
        self._names, self._ends = bytearray(), array("q", [0])
        self._links = list[tuple[int, str, bool]]()  # number, target, whether it is a hard one

    def __len__(self) -> int:
        return len(self.kinds)

    @property
    def weight(self) -> int:
        """Bytes that it takes."""
        return len(self._names) + 8 * 3 * len(self) + len(self) + 300 * len(self.faults)

    def name(self, number: int) -> bytes:
        """Name of an entry, in UTF-8; other bytes as they are."""
        return bytes(self._names[self._ends[number] : self._ends[number + 1]])

    def put(self, name: bytes, kind: int, offset: int, size: int) -> None:
        """Take an entry in."""
        self.offsets.append(offset)
        self.sizes.append(size)
        self._names += name
        self._ends.append(len(self._names))
        self.kinds.append(kind)  # the last, as it is what makes it one

    def add(self, entry: tarfile.TarInfo) -> None:
        """Take an entry of a tar in."""
        kind, offset = FILE, entry.offset_data
        if entry.isdir() or entry.type in (_LABEL, _DUMPDIR):
            kind = FOLDER
        elif entry.islnk() or entry.issym():
            kind = FAULTY
            self._links.append((len(self), entry.linkname, entry.islnk()))
        elif entry.isdev():
            kind = FAULTY
            self.faults[len(self)] = Fault(Status.UNREADABLE, "a device or a pipe, not a file")
        elif entry.type == _CONTINUED:
            kind = FAULTY
            self.faults[len(self)] = Fault(Status.TRUNCATED, "it begins in another volume (tar -M): join them first")
        elif entry.issparse():
            kind, offset = SPARSE, entry.offset
        self.put(entry.name.encode("utf-8", "surrogateescape"), kind, offset, entry.size)

    def resolve_links(self) -> None:
        """Give links what they lead to, as tarfile does: a hard one leads to what is before it, a symbolic one to the
        last of that name, wherever it is.
        """
        if not self._links:
            return
        by_name, targets = dict[bytes, list[int]](), dict[int, int | None]()
        for number in range(len(self)):
            by_name.setdefault(_normal(self.name(number)), []).append(number)
        for number, target, hard in self._links:
            raw = target.encode("utf-8", "surrogateescape")
            above = b"" if hard else posixpath.dirname(self.name(number))
            found = by_name.get(_normal(b"/".join(filter(None, (above, raw)))), [])
            last = bisect_left(found, number) if hard else len(found)
            targets[number] = found[last - 1] if last else None
        for number, target, hard in self._links:
            at: int | None = number
            passed = set[int]()
            while at in targets and at not in passed:
                passed.add(at)
                at = targets[at]
            if at is None:
                where = "before it in the shard" if hard else "in the shard"
                self.faults[number] = Fault(Status.UNREADABLE, f"a link to {target}, which is not {where}")
            elif at in targets:
                self.faults[number] = Fault(Status.UNREADABLE, f"a link to {target}, which leads back to itself")
            elif self.kinds[at] == FOLDER:
                self.faults[number] = Fault(Status.UNREADABLE, f"a link to {target}, a folder")
            else:
                self.kinds[number], self.offsets[number] = self.kinds[at], self.offsets[at]
                self.sizes[number] = self.sizes[at]
                if self.kinds[at] == FAULTY:
                    self.faults[number] = self.faults[at]
        self._links = []


def _normal(name: bytes) -> bytes:
    return posixpath.normpath(name)


class Index:
    """Finds entries by their keys.

    Attributes:
        numbered: key of each entry whose name an earlier one has; the key of every other is its name.
        weight: bytes that it takes.
    """

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self.numbered = dict[int, str]()
        names = (entries.name(number) for number in range(len(entries)))
        hashes = np.fromiter(map(hash, names), np.int64, len(entries))
        self._order = np.argsort(hashes, kind="stable")
        found = hashes[self._order]
        self._hashes = array("q", found.tobytes())
        repeated = bool((found[1:] == found[:-1]).any())
        # An empty key stands for the shard itself.
        if repeated or self._named(b"") is not None:
            self._number()
        self._by_key = {key: number for number, key in self.numbered.items()}
        self.weight = 16 * len(entries) + 300 * len(self.numbered)

    def _number(self) -> None:
        taken, last = {""}, dict[str, int]()
        for number in range(len(self._entries)):
            if self._entries.kinds[number] != FOLDER:
                name = key = self._entries.name(number).decode("utf-8", "surrogateescape")
                while key in taken:
                    last[name] = last.get(name, 1) + 1
                    key = f"{name}{SEPARATOR}{last[name]}"
                taken.add(key)
                if key != name:
                    self.numbered[number] = key

    def keys(self, suffixes: tuple[str, ...], *, others: bool) -> Iterator[str]:
        """See `Container.keys`."""
        for number in range(len(self._entries)):
            if self._entries.kinds[number] != FOLDER:
                name = self._entries.name(number).decode("utf-8", "surrogateescape")
                if not suffixes or name.rstrip("/").lower().endswith(suffixes) != others:
                    yield self.numbered.get(number, name)

    def find(self, key: str) -> int | None:
        """Number of the entry with that key; None if there is none."""
        try:
            # As it is in the tar, or as this machine's locale decoded bytes that are no UTF-8.
            names = dict.fromkeys((key.encode("utf-8", "surrogateescape"), os.fsencode(key)))
        except UnicodeEncodeError:
            return None
        found = next((number for name in names if (number := self._named(name)) is not None), None)
        return self._by_key.get(key) if found is None else found

    def _named(self, name: bytes) -> int | None:
        """The entry whose key is its name. Hashes only lead to it: the name must be the same."""
        wanted = hash(name)
        place = bisect_left(self._hashes, wanted)
        while place < len(self._hashes) and self._hashes[place] == wanted:
            number = int(self._order[place])
            is_member = self._entries.kinds[number] != FOLDER and number not in self.numbered
            if is_member and self._entries.name(number) == name:
                return number
            place += 1
        return None
