"""A folder that was filled, against what is to be in it now: what leaves it, and what of the earlier calls stays.

What an earlier call has delivered stands in the folder's table of scores. An image leaves if it is not kept any more,
or has changed since, and only if nothing is lost by it: it is as it was delivered, and its original is still there.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fiqa_trt.curation.delivery.companions import Companions, Wish
from fiqa_trt.curation.delivery.file import content, remove_empty
from fiqa_trt.curation.delivery.plan import target_of
from fiqa_trt.curation.kept import STAMP, Kept, stamps_of
from fiqa_trt.errors import InputError
from fiqa_trt.inputs.address import Address, open_path
from fiqa_trt.inputs.marks import MOVE, TABLE, Mark
from fiqa_trt.inputs.reader import ContainerReader
from fiqa_trt.outcomes import ImageError
from fiqa_trt.scores.files import read_output

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN = "original_path"  # column of the table: where an image comes from
EDITED = "changed since it was delivered, so it was left where it is"
_APART = 2_000_000  # microseconds between two times of one file, as coarse file systems keep them


@dataclasses.dataclass(frozen=True)
class Old:
    """What earlier calls have delivered into a folder and is not to be there as it is.

    Attributes:
        leaving: recorded path of the original by the place below the folder.
        staying: places that are left as they are, in order.
        edited: those of them that are not as they were delivered.
        rows: of `staying`, as the folder's table has them; None if there is no table.
    """

    leaving: dict[str, str] = dataclasses.field(default_factory=dict)
    staying: tuple[str, ...] = ()
    edited: frozenset[str] = frozenset()
    rows: pa.Table | None = None

    def remove(self, output: Path, base: str, wish: Wish | None, reader: ContainerReader) -> None:
        """Take out what leaves, with those companions that are what they are beside the original. Raises OSError."""
        finder = Companions(reader)
        for place, original in self.leaving.items():
            for each in finder.of(Address.parse(original), wish) if wish is not None else ():
                beside = output / target_of(each.address, base)
                if beside.is_file() and _same(beside, each.address, reader):
                    beside.unlink()
            (output / place).unlink(missing_ok=True)
        remove_empty(output, self.leaving)


def look(kept: Kept, output: Path, mark: Mark | None, reader: ContainerReader, *, remove: bool) -> Old:
    """Compare what was delivered with what is kept.

    Args:
        kept: rows of a scores file.
        output: a folder.
        mark: its note.
        reader: of containers.
        remove: whether anything leaves; otherwise all of it stays.

    Raises:
        InputError: the table of the folder cannot be read.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if mark is None or not (output / TABLE).exists():
        return Old()
    old = pa.concat_tables(read_output(output / TABLE, ["path", "score", "status"]))
    if ORIGIN not in old.column_names:
        raise InputError(f"{output / TABLE} is not as filter wrote it: it has no column {ORIGIN}; choose another OUT")
    index = pc.index_in(old[ORIGIN].cast(pa.large_string()), value_set=kept.stamps["path"])
    delivered = stamps_of(old)
    now = [kept.stamps[name].take(index) for name in STAMP]
    then = [delivered[name] for name in STAMP]
    same = pc.is_valid(index)
    for a, b in zip(now, then, strict=True):
        same = pc.and_(same, pc.fill_null(pc.equal(a, b), pc.and_(pc.is_null(a), pc.is_null(b))))
    others = np.flatnonzero(~np.asarray(same.to_numpy(zero_copy_only=False), bool))
    rows = old.take(pa.array(others))
    prefix = os.path.join(mark.output or output, "")
    stamps = [list(zip(*(c.take(pa.array(others)).to_pylist() for c in pair), strict=True)) for pair in (then, now)]
    leaving, staying, edited = dict[str, str](), dict[str, int](), set[str]()
    for number, (path, original) in enumerate(zip(rows["path"].to_pylist(), rows[ORIGIN].to_pylist(), strict=True)):
        place = open_path(path).removeprefix(prefix)
        at = output / place
        if os.path.isabs(place) or not os.path.lexists(at) or (remove and _stamped(at, stamps[1][number])):
            continue  # not ours to tell, gone, or brought up to date by a call that was stopped
        address = Address.parse(original)
        ours = mark.way == MOVE or _ours(at, address.file, stamps[0][number])
        if remove and ours and mark.way != MOVE and (at.is_symlink() or _there(address, reader)):
            leaving[place] = original
            continue
        staying[place] = number
        if not ours:
            edited.add(place)
    kept_as_they_are = rows.take(pa.array(list(staying.values()), pa.int64()))
    return Old(leaving, tuple(staying), frozenset(edited), kept_as_they_are)


def _stamped(path: Path, stamp: tuple[int | None, int | None]) -> bool:
    """Whether a file has that size and, about, that time in microseconds."""
    size, modified = stamp
    if size is None or modified is None:
        return False
    info = os.lstat(path)
    return info.st_size == size and abs(info.st_mtime_ns // 1000 - modified) <= _APART


def _ours(at: Path, file: str, stamp: tuple[int | None, int | None]) -> bool:
    """Whether what stands in a folder is what was delivered there."""
    if at.is_symlink():
        return os.readlink(at) == os.path.abspath(file)
    if not at.is_file():
        return False
    return _stamped(at, stamp) or (os.path.isfile(file) and os.path.samefile(at, file))


def _there(original: Address, reader: ContainerReader) -> bool:
    """Whether an original is still where it was."""
    if original.key is None:
        return os.path.isfile(original.file)
    try:
        return bool(reader.read(original))
    except ImageError:
        return False


def _same(at: Path, other: Address, reader: ContainerReader) -> bool:
    """Whether a file holds what another one, or the member of a container, does."""
    if other.key is None:
        return os.path.isfile(other.file) and (os.path.samefile(at, other.file) or content(at) == content(other.file))
    try:
        return at.read_bytes() == reader.read(other)
    except ImageError:
        return not at.stat().st_size  # an empty one is no image, but may go along
