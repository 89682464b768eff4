"""Parquet and Arrow (IPC) tables with a column of images.

Rows are read in blocks, and the blocks that were read last are kept. Reading in order, or in any order within them, is
quick; going elsewhere starts at the nearest place where that is possible: a row group or a record batch.
"""

from __future__ import annotations

import os
import re
import threading
from bisect import bisect_right, insort
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fiqa_trt.errors import InputError, RunError, one_line
from fiqa_trt.inputs.address import DEFAULT_COLUMN, as_path
from fiqa_trt.inputs.containers.columns import find_column, images_in
from fiqa_trt.inputs.containers.rows import ArrowRows, Damage, ParquetRows, Rows, check_unchanged, status_of
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import MAX_BYTES, Blob, FileChanged, Stamp
from fiqa_trt.storage.registry import store_of

if TYPE_CHECKING:
    import pyarrow as pa

HELD_BYTES = 32 << 20
"""Blocks of a table that are kept hold about this much."""
_NUMBER = re.compile("[0-9]{1,18}")
_ELSEWHERE = re.compile(r"(?!file:)([A-Za-z][A-Za-z0-9+.-]*)://")


class TableContainer:
    """A Parquet or Arrow table. Safe to use from several threads, which take turns.

    Attributes:
        error: see `Container`, like the next two.
        stamp: of the file that was opened; None if it could not be.
        weight: bytes of what is kept of it, at most.
    """

    def __init__(self, path: str, column: str | None = DEFAULT_COLUMN) -> None:
        """Open it; without a column, to learn of its error. Raises InputError for one without images."""
        self.error: ImageError | None = None
        self.weight = HELD_BYTES
        self.stamp: Stamp | None = None
        self._path = path
        self._lock = threading.Lock()
        self._firsts, self._blocks, self._held = list[int](), OrderedDict[int, "pa.Array"](), 0
        self._damages = list[Damage]()
        self._rows: Rows | None = None
        try:
            with store_of(path).open(path) as file:
                stamp = file.stamp()
            if not stamp.size:
                raise ImageError(Status.EMPTY, "0 bytes")
            self._rows = (ParquetRows if path.lower().endswith(".parquet") else ArrowRows)(path, stamp)
            if column is not None:
                self._column = find_column(self._rows.schema, column, path)
            self.stamp = stamp
        except (InputError, RunError):
            raise
        except Exception as exc:
            self._rows = None
            self.error = ImageError(status_of(exc), f"this table cannot be read: {one_line(exc)}")
            return
        if (damage := self._rows.damage) is not None:
            self.error = ImageError(damage.status, f"this table cannot be read to its end: {damage}")

    def keys(self, suffixes: tuple[str, ...] = (), *, others: bool = False) -> Iterator[str]:
        """See `Container.keys`: the numbers of the rows, from 0; in lists of images `17/0`, `17/1` and so on.

        A row without one image in its list is `17`, so that it is not lost.
        """
        count = 0 if self._rows is None or others else self._rows.count
        if not count or not self._column.many:
            yield from map(str, range(count))
            return
        row = 0
        while row < count:
            try:
                first, block = self._block(row)
            except ImageError:
                yield str(row)
                row += 1
                continue
            for index in range(row - first, len(block)):
                images = _length(block[index])
                yield from (f"{first + index}/{item}" for item in range(images)) if images else (str(first + index),)
            row = first + len(block)

    def position(self, key: str) -> int:
        """See `Container.position`."""
        row, _ = _parse(key)
        return row

    def read(self, key: str, max_bytes: int = MAX_BYTES) -> bytes:
        """See `Container.read`."""
        row, item = _parse(key)
        if self._rows is None:
            raise self.error or ImageError(Status.UNREADABLE, "closed")
        if not 0 <= row < self._rows.count or (item is not None and not self._column.many):
            raise ImageError(Status.MISSING, f"the table has no row {key}")
        first, block = self._block(row)
        try:
            data, path = self._image(block, row - first, item)
        except (ImageError, RunError):
            raise
        except Exception as exc:
            raise ImageError(status_of(exc), f"the table cannot be read here: {one_line(exc)}") from exc
        if data is None and path:
            return self._elsewhere(path, max_bytes)
        if not data:
            raise ImageError(Status.EMPTY, "null" if data is None else "0 bytes")
        if len(data) > max_bytes:
            raise ImageError(Status.TOO_LARGE, f"{len(data)} bytes, more than {max_bytes}")
        return data

    def read_all(self, keys: Sequence[str], max_bytes: int = MAX_BYTES) -> list[Blob]:
        """See `Container.read_all`."""
        blobs = list[Blob]()
        for key in keys:
            try:
                blobs.append(self.read(key, max_bytes))
            except FileChanged:
                raise
            except ImageError as exc:
                blobs.append(exc)
        if self.stamp is not None:
            check_unchanged(self._path, self.stamp)
        return blobs

    def _image(self, block: pa.Array, index: int, item: int | None) -> tuple[bytes | None, str | None]:
        if not self._column.many:
            return images_in(block.slice(index, 1)).get(0)
        images = _length(block[index])
        if not images:
            raise ImageError(Status.EMPTY, "null" if block[index].as_py() is None else "a list without an image")
        if item is None or item >= images:
            raise ImageError(Status.MISSING, f"the row holds {images} images, from /0 to /{images - 1}")
        return images_in(block[index].values.slice(item, 1)).get(0)

    def _elsewhere(self, path: str, max_bytes: int) -> bytes:
        """An image that the table only names."""
        scheme = _ELSEWHERE.match(path)
        if scheme is not None:
            hint = f"the table names {path}, which is not read from {scheme[1]}://; fetch or unpack it to a file"
            raise ImageError(Status.UNSUPPORTED, hint)
        beside = os.path.join(os.path.dirname(self._path), as_path(path))
        blob = store_of(beside).read(beside, max_bytes).blob
        if isinstance(blob, ImageError):
            raise ImageError(blob.outcome.status, f"the table names {path}: {blob}") from blob
        return blob

    def _block(self, row: int) -> tuple[int, pa.Array]:
        """The block that holds a row, and its first row. Raises ImageError."""
        with self._lock:
            place = bisect_right(self._firsts, row) - 1
            first = self._firsts[place] if place >= 0 else 0
            if place < 0 or row >= first + len(self._blocks[first]):
                return self._fetch(row)
            self._blocks.move_to_end(first)
            return first, self._blocks[first]

    def _fetch(self, row: int) -> tuple[int, pa.Array]:
        assert self._rows is not None
        damage = next((damage for damage in self._damages if row in damage.rows), None)
        if damage is None:
            first, block = row, None
            try:
                for first, block in self._rows.blocks(self._column, row):
                    self._keep(first, block)
                if block is not None and first <= row < first + len(block):
                    return first, block
                damage = Damage(row, row + 1, ValueError("it has fewer rows than it says"))
            except Damage as exc:
                damage = exc
            self._damages.append(damage)
        raise ImageError(damage.status, f"the table cannot be read here: {damage}") from damage

    def _keep(self, first: int, block: pa.Array) -> None:
        if first in self._blocks:
            self._drop(first)
        insort(self._firsts, first)
        self._blocks[first] = block
        self._held += block.nbytes
        while self._held > HELD_BYTES and len(self._blocks) > 1:
            self._drop(next(iter(self._blocks)))

    def _drop(self, first: int) -> None:
        self._held -= self._blocks.pop(first).nbytes
        self._firsts.remove(first)

    def close(self) -> None:
        """See `Container.close`."""
        with self._lock:
            self._firsts, self._blocks, self._held = [], OrderedDict(), 0
            if self._rows is not None:
                self._rows.close()


def _parse(key: str) -> tuple[int, int | None]:
    """Row and item of a key; -1 for a row that there cannot be."""
    row, slash, item = key.partition("/")
    if not _NUMBER.fullmatch(row) or (slash and not _NUMBER.fullmatch(item)):
        return -1, None
    return int(row), int(item) if slash else None


def _length(images: pa.Scalar) -> int:
    """Images of a list; 0 of none."""
    values = images.values if images.is_valid else None
    return 0 if values is None else len(values)
