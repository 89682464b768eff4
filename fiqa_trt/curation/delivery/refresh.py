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
import numpy.typing as npt

from fiqa_trt.curation.delivery.companions import Companions, Wish
from fiqa_trt.curation.delivery.file import content, remove_empty
from fiqa_trt.curation.delivery.plan import is_below, target_of
from fiqa_trt.curation.kept import STAMP, Kept, stamps_of
from fiqa_trt.errors import InputError
from fiqa_trt.inputs.address import DEFAULT_COLUMN, Address, as_path, with_column
from fiqa_trt.inputs.marks import MOVE, TABLE, Mark
from fiqa_trt.inputs.reader import ContainerReader
from fiqa_trt.outcomes import ImageError
from fiqa_trt.scores.files import output_metadata, read_output, recorded_fingerprint

if TYPE_CHECKING:
    import pyarrow as pa

ORIGIN = "original_path"  # column of the table: where an image comes from
SOURCE = "delivered_from"  # the same, where the scores have a column ORIGIN: of a folder of a folder, or a list's own
EDITED = "changed since it was delivered, so it was left where it is"
_APART = 2_000_000  # microseconds between two times of one file, as coarse file systems keep them


@dataclasses.dataclass(frozen=True)
class Old:
    """What earlier calls have delivered into a folder, and what of that is not to be there as it is.

    Attributes:
        leaving: recorded path of the original by the place below the folder.
        staying: places that are left as they are, in order.
        edited: those of them that are not as they were delivered.
        rows: of `staying`, as the folder's table has them; None if there is no table.
        kept: numbers among the kept rows, in order, of the images that are to be there as they are.
        paths: what the folder's table names them; None if there is no table.
        prefix: with which these begin.
    """

    leaving: dict[str, str] = dataclasses.field(default_factory=dict)
    staying: tuple[str, ...] = ()
    edited: frozenset[str] = frozenset()
    rows: pa.Table | None = None
    kept: npt.NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    paths: pa.ChunkedArray | None = None
    prefix: str = ""

    def place_of(self, row: int) -> str | None:
        """Where a kept image, by its number, was put below the folder; None if it was not, or is to be put anew."""
        at = int(np.searchsorted(self.kept, row))
        if self.paths is None or at == len(self.kept) or self.kept[at] != row:
            return None
        return _place(self.paths[at].as_py(), self.prefix)

    def remove(self, output: Path, base: str, wish: Wish | None, reader: ContainerReader) -> None:
        """Take out what leaves, with those companions that are what they are beside the original. Raises OSError."""
        finder = Companions(reader)
        for place, original in self.leaving.items():
            for each in finder.of(Address.parse(original), wish) if wish is not None else ():
                target = target_of(each.address, base)
                beside = output / target
                if is_below(target) and beside.is_file() and _same(beside, each.address, reader):
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
        InputError: the table of the folder cannot be read, or is not as it was written.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if mark is None or not (output / TABLE).exists():
        return Old()
    old = pa.concat_tables(read_output(output / TABLE, ["path", "score", "status"]))
    # A version before named no columns in it, as in the paths of its scores.
    column = recorded_fingerprint(output_metadata(output / TABLE)).get("image_column") or DEFAULT_COLUMN
    prefix, sources = os.path.join(mark.output or output, ""), with_column(_sources(old), column)
    for path in old["path"].to_pylist():
        _place(path, prefix)  # before anything is touched
    index = pc.index_in(sources.cast(pa.large_string()), value_set=kept.stamps["path"])
    delivered = stamps_of(old)
    now = [kept.stamps[name].take(index) for name in STAMP]
    then = [delivered[name] for name in STAMP]
    same = pc.is_valid(index)
    for a, b in zip(now, then, strict=True):
        same = pc.and_(same, pc.fill_null(pc.equal(a, b), pc.and_(pc.is_null(a), pc.is_null(b))))
    unchanged = np.asarray(same.to_numpy(zero_copy_only=False), bool)
    others = np.flatnonzero(~unchanged)
    rows, origins = old.take(pa.array(others)), sources.take(pa.array(others)).to_pylist()
    stamps = [list(zip(*(c.take(pa.array(others)).to_pylist() for c in pair), strict=True)) for pair in (then, now)]
    leaving, staying, edited = dict[str, str](), dict[str, int](), set[str]()
    for number, (path, original) in enumerate(zip(rows["path"].to_pylist(), origins, strict=True)):
        place = _place(path, prefix)
        at = output / place
        if not os.path.lexists(at) or (remove and _stamped(at, stamps[1][number])):
            continue  # gone, or brought up to date by a call that was stopped
        address = Address.parse(original)
        ours = mark.way == MOVE or _ours(at, address.file, stamps[0][number])
        if remove and ours and mark.way != MOVE and (at.is_symlink() or _there(address, reader)):
            leaving[place] = original
            continue
        staying[place] = number
        if not ours:
            edited.add(place)
    kept_as_they_are = rows.take(pa.array(list(staying.values()), pa.int64()))
    numbers = np.asarray(pc.fill_null(index, -1).to_numpy(zero_copy_only=False), np.int64)[unchanged]
    order = np.argsort(numbers)
    paths = old["path"].take(pa.array(np.flatnonzero(unchanged)[order]))
    return Old(leaving, tuple(staying), frozenset(edited), kept_as_they_are, numbers[order], paths, prefix)


def fits(output: Path, mark: Mark, base: str) -> bool | None:
    """Whether the images of a tree that starts at `base` have the places that an earlier call gave them; None if not
    one of them is where it was.

    A tree may have been moved or copied since, with or without the folder.

    Raises:
        InputError: as of `look`.
    """
    found, prefix, known = None, os.path.join(mark.output or output, ""), dict[str, bool]()
    for table in read_output(output / TABLE, ["path"]) if (output / TABLE).exists() else ():
        for path, source in zip(table["path"].to_pylist(), _sources(table).to_pylist(), strict=True):
            address, place = Address.parse(source, known), _place(path, prefix)
            if not os.path.lexists(address.file):
                continue
            if not f"{place}.".startswith(f"{target_of(address, base)}."):  # it may have been given a suffix
                return False
            found = True
    return found


def _sources(table: pa.Table) -> pa.ChunkedArray:
    """What the images in the table of a folder were delivered from. Raises InputError if it does not say."""
    import pyarrow.compute as pc

    if ORIGIN not in table.column_names:
        raise InputError(f"{TABLE} is not as filter wrote it: it has no column {ORIGIN}; choose another OUT")
    return pc.coalesce(*(table[name] for name in (SOURCE, ORIGIN) if name in table.column_names))


def _place(path: str, prefix: str) -> str:
    """Where below the folder a row of its table has its image. Raises InputError if it is not there."""
    name = as_path(path)
    if not name.startswith(prefix):
        raise InputError(f"{TABLE} is not as filter wrote it: {path} does not begin with {prefix}; choose another OUT")
    return name.removeprefix(prefix)


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
