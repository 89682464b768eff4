"""The files that go with an image: captions and labels beside it, and the other members of its WebDataset sample."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from fiqa_trt.errors import UsageError
from fiqa_trt.inputs.address import SEPARATOR, Address
from fiqa_trt.inputs.containers.registry import is_table
from fiqa_trt.inputs.formats import SUFFIXES
from fiqa_trt.inputs.reader import ContainerReader
from fiqa_trt.storage.registry import is_stored

_FIRST_DOT = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]+)", re.DOTALL)  # as WebDataset: the key ends there
_LAST_DOT = re.compile(r"((?:.*/)?[^/]+)\.([^./]+)", re.DOTALL)
_EXTENSIONS = 8  # different ones that a tar of a single sample may hold
_HELD = 1_000_000  # names that are remembered, of folders and shards


@dataclasses.dataclass(frozen=True)
class Wish:
    """Which companions are to go along.

    Attributes:
        suffixes: only those whose names end so; none for all of them.
    """

    suffixes: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Wish:
        """`auto`, or suffixes like `.txt,.json`. Raises UsageError."""
        if text == "auto":
            return cls()
        names = [name.strip() for name in text.split(",")]
        if not all(re.fullmatch(r"\.?[^./\s][^/\s]*", name) for name in names):
            raise UsageError(f"--companions {text}: neither `auto` nor suffixes like .txt,.json")
        return cls(tuple("." + name.removeprefix(".").lower() for name in names))

    def holds(self, extension: str) -> bool:
        """Whether a file with that extension is meant."""
        return not self.suffixes or extension.lower().endswith(self.suffixes)


@dataclasses.dataclass(frozen=True)
class Companion:
    """One such file.

    Attributes:
        address: where it is.
        extension: its name without the image's stem or the sample's key, as in `.txt`.
    """

    address: Address
    extension: str


@dataclasses.dataclass(frozen=True)
class Sample:
    """What WebDataset takes together: members of a tar whose names are equal up to the first dot.

    Attributes:
        shard: path of the tar.
        name: up to that dot (the last dot, in a tar whose names show that it was not made for WebDataset), and of
            several of one name the number, as in `a::2`.
        members: all of them, in their order, images included.
    """

    shard: str
    name: str
    members: tuple[Companion, ...]


T = TypeVar("T")


class _Recent(Generic[T]):
    """Listings of places, the latest of them remembered."""

    def __init__(self, make: Callable[[str], dict[str, T]]) -> None:
        self._make = make
        self._listings: OrderedDict[str, dict[str, T]] = OrderedDict()
        self._held = 0

    def get(self, place: str) -> dict[str, T]:
        if place not in self._listings:
            self._listings[place] = self._make(place)
            self._held += len(self._listings[place])
            while self._held > _HELD and len(self._listings) > 1:
                self._held -= len(self._listings.popitem(last=False)[1])
        self._listings.move_to_end(place)
        return self._listings[place]


class Companions:
    """Finds companions; quickest where it is asked folder by folder, shard by shard."""

    def __init__(self, reader: ContainerReader) -> None:
        self._folders = _Recent(_sidecars)
        self._shards = _Recent(lambda shard: _samples(shard, list(reader.keys(shard))))

    def of(self, image: Address, wish: Wish = Wish()) -> Iterator[Companion]:
        """Those of an image: of a file what lies beside it and is no image itself, of a tar's member its sample's rest;
        of an object none.

        A suffix that is wished for may also be an image's, as in `.mask.png`.
        """
        if image.key is None:
            yield from self._beside(image.file, wish)
            return
        for member in () if is_table(image.file) else self.sample(image).members:
            if member.address != image and wish.holds(member.extension):
                yield member

    def sample(self, image: Address) -> Sample:
        """The sample that a member of a tar belongs to; itself alone where its name has no extension."""
        key = image.key or ""
        return self._shards.get(image.file).get(key) or Sample(image.file, key, (Companion(image, ""),))

    def _beside(self, file: str, wish: Wish) -> Iterator[Companion]:
        if is_stored(file):
            return
        folder, name = os.path.split(file)
        stem = os.path.splitext(name)[0]
        if wish.suffixes:
            names = [start + suffix for suffix in wish.suffixes for start in (stem, name)]
            found = [each for each in names if each != name and os.path.lexists(os.path.join(folder, each))]
        else:
            by_owner = self._folders.get(folder or os.curdir)
            found = by_owner.get(stem, []) + by_owner.get(name, [])
        for each in found:
            yield Companion(Address(os.path.join(folder, each)), each[len(stem) :])


def _samples(shard: str, keys: list[str]) -> dict[str, Sample]:
    """The sample of each member that has an extension."""
    parts = [_parts(key, _FIRST_DOT) for key in keys]
    if len({extension for _, extension in parts}) > max(_EXTENSIONS, len({name for name, _ in parts})):
        # Files whose names have dots of their own, as in `v1.0_0001.jpg`, were not made for WebDataset.
        parts = [_parts(key, _LAST_DOT) for key in keys]
    members = dict[str, list[Companion]]()
    for key, (name, extension) in zip(keys, parts, strict=True):
        if extension:
            members.setdefault(name, []).append(Companion(Address(shard, key), extension))
    samples = [Sample(shard, name, tuple(found)) for name, found in members.items()]
    return {member.address.key or "": sample for sample in samples for member in sample.members}


def _parts(key: str, dot: re.Pattern[str]) -> tuple[str, str]:
    """Name of the sample of a tar's member, and its extension with the dot, which is empty for what is in none."""
    name, separator, number = key.rpartition(SEPARATOR)
    if not (separator and number.isdigit()):
        name, separator, number = key, "", ""
    found = dot.fullmatch(name)
    return (found[1] + separator + number, "." + found[2]) if found else (key, "")


def _sidecars(folder: str) -> dict[str, list[str]]:
    """Files of a folder that are no images, by the name or the stem of the image that they go with."""
    images, others = set[str](), list[str]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.lower().endswith(SUFFIXES):
                    images |= {entry.name, os.path.splitext(entry.name)[0]}
                elif "." in entry.name[1:] and not entry.is_dir():
                    others.append(entry.name)
    except OSError:
        return {}
    found = dict[str, list[str]]()
    for name in sorted(others):
        dots = [place for place, letter in enumerate(name) if letter == "." and place]
        owners = [name[:place] for place in reversed(dots)]
        # Of `a.b.txt` it is `a.b.jpg` before `a.jpg`; of an image that was moved already, every name is possible.
        known = [owner for owner in owners if owner in images][:1]
        for owner in known or owners:
            found.setdefault(owner, []).append(name)
    return found
