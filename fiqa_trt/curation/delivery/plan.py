"""What goes where below a folder that is filled: the kept images and their companions, each with its place."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator

from fiqa_trt.curation.delivery.common import LeftBehind, Skips, image_suffix
from fiqa_trt.curation.delivery.companions import Companions, Wish
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import InputError
from fiqa_trt.inputs.address import SEPARATOR, Address, rooted
from fiqa_trt.inputs.formats import SUFFIXES as IMAGE_SUFFIXES
from fiqa_trt.inputs.reader import ContainerReader
from fiqa_trt.storage.registry import is_stored


@dataclasses.dataclass(frozen=True)
class Image:
    """An image to deliver, or a companion of one.

    Attributes:
        path: as recorded.
        address: the same.
        target: where it goes below the output.
        row: number among the kept rows, of itself or the image that it goes along with.
        companion: goes along with an image.
        known: where an earlier call has put it, below the output; None if none has.
    """

    path: str
    address: Address
    target: str
    row: int
    companion: bool = False
    known: str | None = None


class Places:
    """Places of the output that an image has been given."""

    def __init__(self) -> None:
        self._taken = set[bytes]()

    def take(self, target: str) -> bool:
        """Give a place to an image, unless another has it."""
        name, before = hashlib.blake2b(os.fsencode(target), digest_size=12).digest(), len(self._taken)
        self._taken.add(name)
        return len(self._taken) > before


OCCUPIED = "another image has its place in the output"


class Plan:
    """What is to be delivered below the folder `base`, and the account of what is not.

    `known` says where an earlier call has put an image, by its number among the kept rows.
    """

    def __init__(
        self,
        kept: Kept,
        base: str,
        reader: ContainerReader,
        wish: Wish | None,
        samples: bool = False,
        known: Callable[[int], str | None] = lambda row: None,
    ) -> None:
        self._known = known
        self.skips, self.places, self.left_behind = Skips(), Places(), LeftBehind()
        self._kept, self._base = kept, base
        self._companions, self._wish = Companions(reader), wish
        self._wish_in_tars = Wish() if samples and wish is None else wish

    def __iter__(self) -> Iterator[Image]:
        """The kept images, each followed by its companions; those outside the base are skipped, unless an earlier call
        has delivered them: what cannot be read or found any more has its place all the same.
        """
        for row, path, address in self._kept.images():
            target, known = target_of(address, self._base), self._known(row)
            if not (below := is_below(target)) and known is None:
                self.skips.add(path, f"not below --root {self._base}")
                continue
            companions = list(self._companions.of(address, self._wish or Wish())) if below else []
            if self.places.take(known or target):
                yield Image(path, address, target, row, known=known)
            else:
                self.skips.add(path, OCCUPIED)
                continue
            if (self._wish if address.key is None else self._wish_in_tars) is None:
                self.left_behind.add(companions)
                continue
            for each in companions:
                beside = target_of(each.address, self._base)
                # It may be a kept image itself, or go along with two of them.
                if self.places.take(beside):
                    yield Image(each.address.recorded, each.address, beside, row, companion=True)

    def place(self, image: Image, reader: ContainerReader) -> str:
        """Where an image goes: where it is already, or its target, with a suffix where its bytes alone tell of which
        kind it is.

        Raises:
            ImageError: it has to be read for that, and cannot be.
            Unplaced: another image has that place.
        """
        if image.known is not None:
            return image.known
        if image.address.key is None or image.companion or image.target.lower().endswith(IMAGE_SUFFIXES):
            return image.target
        target = image.target + image_suffix(reader.read(image.address))
        if not self.places.take(target):
            raise Unplaced(OCCUPIED)
        return target


class Unplaced(Exception):
    """An image that has no place in the output."""


def target_of(image: Address, base: str) -> str:
    """Where an image goes, relative to the output: what is in a container, into a folder of its name."""
    whole = rooted(image.file)
    return os.path.relpath(whole if image.key is None else os.path.join(whole, *_parts(image.key)), base)


def is_below(target: str) -> bool:
    """Whether what `target_of` gave lies below the output."""
    return target.split(os.sep, 1)[0] != os.pardir and target != os.curdir


def _parts(key: str) -> list[str]:
    """A member's name as a relative path that leads nowhere else; `a.jpg::2` becomes `a::2.jpg`."""
    name, separator, number = key.rpartition(SEPARATOR)
    if separator and number.isdigit():
        stem, suffix = os.path.splitext(name)
        key = stem + separator + number + suffix
    parts = [part for part in key.split("/") if part not in ("", ".", "..")]
    return parts or ["_"]


def base_of(kept: Kept, root: str | None) -> str:
    """Where the tree that is kept starts, absolute. Raises InputError."""
    if root is None:
        return kept.root
    if not is_stored(root) and not os.path.isdir(root):
        raise InputError(f"--root {root}: no such folder")
    return rooted(root)
