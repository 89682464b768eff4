"""Files that hold many images: tar shards, and Parquet or Arrow tables with a column of image bytes.

An image in one is recorded as `shard.tar::member` or `table.parquet::row`. That is all it takes to find it again, so
such paths may stand in lists and outputs like any other. Nothing is unpacked. A damaged shard is read as far as it
goes; that something is wrong with it is said once, for the shard itself.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import posixpath
import tarfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from fiqa_trt.errors import InputError, one_line
from fiqa_trt.reading import MAX_BYTES, read_file
from fiqa_trt.records import ImageError, Status, open_path, unforeseen

if TYPE_CHECKING:
    import pyarrow as pa

SEPARATOR = "::"
TAR = ".tar"
TABLES = (".parquet", ".arrow")
DEFAULT_COLUMN = "image"
Blob = bytes | ImageError
_BATCH_ROWS = 64
_BUFFER_BYTES = 1 << 20


def locate(recorded: str) -> tuple[str, str | None]:
    """The file to open for a recorded path, and the key of the image in it: None for a plain file, empty for a shard
    as such.
    """
    path = open_path(recorded)
    at = path.find(SEPARATOR)
    while at >= 0:
        if is_shard(path[:at]) and os.path.isfile(path[:at]):
            return path[:at], path[at + len(SEPARATOR) :]
        at = path.find(SEPARATOR, at + 1)
    return path, "" if is_shard(path) and os.path.isfile(path) else None


def is_shard(path: str) -> bool:
    """Whether a path has a shard's suffix."""
    return path.lower().endswith((TAR, *TABLES))


class Shard(Protocol):
    """One such file, open.

    Attributes:
        error: what is wrong with the file, so that images of it may be missing; None if nothing is.
    """

    error: ImageError | None

    def keys(self, suffixes: tuple[str, ...] = ()) -> Iterator[str]:
        """What distinguishes its images, in their order in the file. `suffixes`: only those, where they have any."""
        ...

    def read(self, key: str, max_bytes: int) -> bytes:
        """The bytes of an image. Raises ImageError, with the status of its row."""
        ...

    def close(self) -> None:
        """Release the file."""
        ...


def open_shard(path: str, column: str = DEFAULT_COLUMN) -> Shard:
    """Open a shard by its suffix; damage is found in its `error`.

    Args:
        path: ends in .tar, .parquet or .arrow.
        column: of a table, with the images: bytes, or structs of `bytes` and `path` as Hugging Face writes them.

    Raises:
        InputError: a table without such a column.
    """
    return TarShard(path) if path.lower().endswith(TAR) else TableShard(path, column)


class ShardReader:
    """Reads images out of shards, for one thread; the shard that it last read from stays open."""

    def __init__(self, column: str = DEFAULT_COLUMN) -> None:
        self._column = column
        self._path = ""
        self._shard: Shard | None = None

    def read(self, shard: str, key: str) -> bytes:
        """Bytes of an image; of the shard itself, with an empty key, there are none. Raises ImageError."""
        opened = self._open(shard)
        if not key:
            raise opened.error or ImageError(
                Status.NOT_AN_IMAGE, "a shard: what it holds gets rows where it is INPUT of a run, not by its own name"
            )
        return opened.read(key, MAX_BYTES)

    def keys(self, shard: str) -> Iterator[str]:
        """Whatever a shard holds, as `Shard.keys`; nothing if it cannot be opened."""
        try:
            return self._open(shard).keys()
        except ImageError:
            return iter(())

    def _open(self, path: str) -> Shard:
        if self._shard is None or self._path != path:
            self.close()
            try:
                self._shard, self._path = open_shard(path, self._column), path
            except InputError as exc:
                raise ImageError(Status.UNREADABLE, str(exc)) from exc
        return self._shard

    def close(self) -> None:
        """Release what is open."""
        if self._shard is not None:
            self._shard.close()
            self._shard = None


def read_place(path: str, key: str | None, shards: ShardReader) -> Blob:
    """The bytes of an image that `locate` found, or why there are none."""
    try:
        return read_file(path) if key is None else shards.read(path, key)
    except ImageError as exc:
        return exc
    except Exception as exc:  # the last net: what is wrong with one file ends no run
        return unforeseen(exc)


def read_recorded(recorded: str, shards: ShardReader) -> Blob:
    """The bytes of an image by its recorded path, or why there are none."""
    return read_place(*locate(recorded), shards)


@dataclasses.dataclass(frozen=True)
class _Member:
    """Where a member's bytes are, or why they cannot be had."""

    name: str
    offset: int
    size: int
    error: str | None = None


class TarShard:
    """An uncompressed tar file, as WebDataset's, with an index of its headers."""

    def __init__(self, path: str) -> None:
        self.error: ImageError | None = None
        self._members = dict[str, _Member]()
        self._handle = -1
        try:
            self._handle = os.open(path, os.O_RDONLY)
            with open(self._handle, "rb", closefd=False) as file:
                self._scan(file)
        except (tarfile.TarError, OSError, ValueError, EOFError) as exc:
            empty = self._handle >= 0 and os.fstat(self._handle).st_size == 0
            cut = "unexpected end" in str(exc)
            status = Status.EMPTY if empty else Status.TRUNCATED if cut else Status.CORRUPT
            self.error = ImageError(status, f"this tar shard cannot be read to its end: {one_line(exc)}")

    def _scan(self, file: Any) -> None:
        seen, numbers = dict[str, _Member](), dict[str, int]()
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for entry in archive:
                archive.members = []  # type: ignore[attr-defined]  # or it would keep them all
                member = _member(entry, seen)
                if member is not None:
                    seen[entry.name], key = member, entry.name
                    while key in self._members:
                        numbers[entry.name] = numbers.get(entry.name, 1) + 1
                        key = f"{entry.name}{SEPARATOR}{numbers[entry.name]}"
                    self._members[key] = member
            end = int(archive.offset)
        # To tarfile whatever is no header is the end.
        block = os.pread(self._handle, tarfile.BLOCKSIZE, max(0, end - tarfile.BLOCKSIZE))
        following = os.pread(self._handle, tarfile.BLOCKSIZE, end)
        if any(block) and not following:
            self.error = ImageError(Status.TRUNCATED, "this tar shard has no end mark: members may be missing")
        elif any(following):
            self.error = ImageError(Status.CORRUPT, f"this tar shard has a damaged header at byte {end}")

    def keys(self, suffixes: tuple[str, ...] = ()) -> Iterator[str]:
        """See `Shard.keys`; of several members of one name the second is `name::2`, and so on."""
        for key, member in self._members.items():
            if not suffixes or member.name.lower().endswith(suffixes):
                yield key

    def read(self, key: str, max_bytes: int) -> bytes:
        """See `Shard.read`."""
        member = self._members.get(key)
        if member is None:
            raise ImageError(Status.MISSING, "no such member in the shard")
        if member.error is not None:
            raise ImageError(Status.UNREADABLE, member.error)
        if not member.size:
            raise ImageError(Status.EMPTY, "0 bytes")
        if member.size > max_bytes:
            raise ImageError(Status.TOO_LARGE, f"{member.size} bytes, more than {max_bytes}")
        try:
            data = os.pread(self._handle, member.size, member.offset)
        except OSError as exc:
            raise ImageError(Status.UNREADABLE, one_line(exc)) from exc
        if len(data) < member.size:
            raise ImageError(Status.TRUNCATED, f"the shard ends within it: {len(data)} of {member.size} bytes")
        return data

    def close(self) -> None:
        """See `Shard.close`."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _member(entry: tarfile.TarInfo, seen: dict[str, _Member]) -> _Member | None:
    """Where an entry's bytes are; None for a folder and the like."""
    if entry.islnk() or entry.issym():
        above = "" if entry.islnk() else posixpath.dirname(entry.name)
        target = posixpath.normpath(posixpath.join(above, entry.linkname))
        lost = _Member("", 0, 0, f"a link to {entry.linkname}, which is not before it in the shard")
        return dataclasses.replace(seen.get(target, lost), name=entry.name)
    if not entry.isfile():
        return None
    return _Member(entry.name, entry.offset_data, entry.size, "a sparse member" if entry.issparse() else None)


class _Damage(Exception):
    """Rows of a table, from `start` to before `stop`, that cannot be read."""

    def __init__(self, start: int, stop: int, reason: Exception) -> None:
        super().__init__(one_line(reason))
        self.rows = range(start, stop)


class TableShard:
    """A Parquet or Arrow (IPC) table. Meant for reading in order: going back starts anew."""

    def __init__(self, path: str, column: str = DEFAULT_COLUMN) -> None:
        self.error: ImageError | None = None
        self._path, self._column = path, column
        self._rows = 0
        self._batches: Iterator[tuple[int, pa.Array]] = iter(())
        self._first, self._held = 0, list[Any]()
        self._damage: _Damage | None = None
        try:
            schema, self._rows = (_parquet_shape if self._parquet else _arrow_shape)(path)
            list(schema.names)
        except _Damage as damage:
            self._rows = damage.rows.start
            self.error = ImageError(Status.CORRUPT, f"this table cannot be read to its end: {damage}")
        except Exception as exc:  # damage makes pyarrow raise errors of many kinds
            self.error = ImageError(Status.CORRUPT, f"this table cannot be read: {one_line(exc)}")
        else:
            _check_column(schema, column, path)

    @property
    def _parquet(self) -> bool:
        return self._path.lower().endswith(".parquet")

    def keys(self, suffixes: tuple[str, ...] = ()) -> Iterator[str]:
        """See `Shard.keys`: the numbers of the rows, from 0."""
        return map(str, range(self._rows))

    def read(self, key: str, max_bytes: int) -> bytes:
        """See `Shard.read`."""
        if not (key.isascii() and key.isdigit() and int(key) < self._rows):
            raise ImageError(Status.MISSING, f"the table has no row {key}")
        found = self._value(int(key))
        value, path = (found.get("bytes"), found.get("path")) if isinstance(found, dict) else (found, None)
        if value is None and path:
            return read_file(os.path.join(os.path.dirname(self._path), path), max_bytes)
        if not value:
            raise ImageError(Status.EMPTY, "null" if value is None else "0 bytes")
        if len(value) > max_bytes:
            raise ImageError(Status.TOO_LARGE, f"{len(value)} bytes, more than {max_bytes}")
        return bytes(value)

    def _value(self, row: int) -> Any:
        if self._damage is not None and row in self._damage.rows:
            raise ImageError(Status.CORRUPT, f"the table cannot be read here: {self._damage}")
        if row < self._first or not self._held:
            self._first, self._held = row, []
            self._batches = (_parquet_batches if self._parquet else _arrow_batches)(self._path, self._column, row)
        try:
            while row >= self._first + len(self._held):
                self._first, values = next(self._batches)
                self._held = values.to_pylist()
        except Exception as exc:  # damage, or the file is not the one that was listed
            self._damage = exc if isinstance(exc, _Damage) else _Damage(row, 1 << 62, exc)
            self._held = []
            raise ImageError(Status.CORRUPT, f"the table cannot be read here: {self._damage}") from exc
        return self._held[row - self._first]

    def close(self) -> None:
        """See `Shard.close`."""
        self._batches, self._held = iter(()), []


def _check_column(schema: pa.Schema, column: str, path: str) -> None:
    if column not in schema.names:
        names = ", ".join(schema.names)
        raise InputError(f"{path} has no column `{column}`, only: {names}; see --image-column (a list goes to --list)")
    kind = schema.field(column).type
    if not _holds_images(kind):
        raise InputError(f"{path}: the column `{column}` holds {kind}, not the bytes of images; see --image-column")


def _holds_images(kind: pa.DataType) -> bool:
    import pyarrow as pa

    types = pa.types
    if types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            return False
        images = kind.field("bytes").type
        # Where every image is a path, pyarrow gives the bytes no type.
        return _holds_images(images) or (types.is_null(images) and kind.get_field_index("path") >= 0)
    binary = (types.is_binary, types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary)
    return any(test(kind) for test in binary)


def _parquet_shape(path: str) -> tuple[pa.Schema, int]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        return file.schema_arrow, file.metadata.num_rows


def _parquet_batches(path: str, column: str, start: int) -> Iterator[tuple[int, pa.Array]]:
    """Number of the first row and values of each batch, from the row group that `start` is in. Raises _Damage."""
    import pyarrow.parquet as pq

    # With a buffer, a row group is read page by page, however large it is.
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        first = 0
        for group in range(file.num_row_groups):
            stop = first + file.metadata.row_group(group).num_rows
            if start < stop:
                try:
                    for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=[column]):
                        yield first, _valid(batch.column(0))
                        first += batch.num_rows
                except Exception as exc:
                    raise _Damage(first, stop, exc) from exc
            first = stop


def _valid(values: pa.Array) -> pa.Array:
    """Values whose offsets lead nowhere else; with damaged ones, reading them would end the process."""
    values.validate(full=True)
    return values


def _arrow_shape(path: str) -> tuple[pa.Schema, int]:
    rows = 0
    with _record_batches(path) as (schema, batches):
        try:
            for batch in batches:
                rows += batch.num_rows
        except Exception as exc:
            raise _Damage(rows, rows, exc) from exc
    return schema, rows


@contextlib.contextmanager
def _record_batches(path: str) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """Of an IPC file, or of an IPC stream as Hugging Face's `datasets` writes it, mapped into memory."""
    import pyarrow as pa

    with pa.memory_map(path) as source:
        try:
            reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            reader = None
        if reader is not None:
            yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
            return
        source.seek(0)
        with pa.ipc.open_stream(source) as stream:
            yield stream.schema, iter(stream)


def _arrow_batches(path: str, column: str, start: int) -> Iterator[tuple[int, pa.Array]]:
    """Number of the first row and values of each batch, from `start` on. Raises _Damage."""
    first = 0
    with _record_batches(path) as (_, batches):
        try:
            for batch in batches:
                values = batch.column(column)
                for offset in range(max(0, start - first), batch.num_rows, _BATCH_ROWS):
                    yield first + offset, _valid(values.slice(offset, _BATCH_ROWS))
                first += batch.num_rows
        except Exception as exc:
            raise _Damage(first, 1 << 62, exc) from exc
