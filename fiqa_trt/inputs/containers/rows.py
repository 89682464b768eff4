"""The rows of a Parquet or Arrow file, block by block, and what keeps them from being read."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

from fiqa_trt.errors import RunError, one_line
from fiqa_trt.inputs.containers.columns import ImageColumn
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import FileChanged, Stamp
from fiqa_trt.storage.registry import store_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_BLOCK_ROWS = 64
_BUFFER_BYTES = 1 << 20
_ENCRYPTED = re.compile(r"\b(en|de)crypt", re.IGNORECASE)


class Damage(Exception):
    """Rows of a table, from `start` to before `stop`, that cannot be read."""

    def __init__(self, start: int, stop: int, reason: Exception) -> None:
        super().__init__(one_line(reason))
        self.rows = range(start, stop)
        self.status = status_of(reason)


def status_of(error: Exception) -> Status:
    """What an error of pyarrow, of which damage brings about many kinds, makes of an image."""
    import pyarrow as pa

    if isinstance(error, ImageError):
        return error.outcome.status
    if isinstance(error, pa.ArrowNotImplementedError) or _ENCRYPTED.search(str(error)):
        return Status.UNSUPPORTED
    if isinstance(error, FileNotFoundError):
        return Status.MISSING
    return Status.UNREADABLE if isinstance(error, OSError) and error.errno else Status.CORRUPT


def check_unchanged(path: str, stamp: Stamp) -> None:
    """Raise FileChanged unless a file is still the one with that stamp."""
    if store_of(path).stamp(path) != stamp:
        raise FileChanged


class Rows(Protocol):
    """The rows of an open table.

    Attributes:
        schema: of the table.
        count: of its rows, as far as they can be read.
        damage: what ends them early.
    """

    schema: pa.Schema
    count: int
    damage: Damage | None

    def blocks(self, column: ImageColumn, row: int) -> Iterator[tuple[int, pa.Array]]:
        """First row and `column.of` of blocks up to that which holds `row`: more than one where that is the way there.

        Raises:
            Damage: it cannot be read.
            FileChanged: it is not the file any more that was opened.
        """
        ...

    def close(self) -> None:
        """Release the file, until `blocks` needs it."""
        ...


class ParquetRows:
    """See `Rows`. A row group is read from its beginning, page by page, however large it is."""

    def __init__(self, path: str, stamp: Stamp) -> None:
        self.damage: Damage | None = None
        self._path, self._stamp = path, stamp
        self._metadata: pq.FileMetaData | None = None
        self._file: pq.ParquetFile | None = None
        file = self._opened()
        self.schema, self._metadata = file.schema_arrow, file.metadata
        list(self.schema.names)  # damaged ones raise
        self._starts = [0]
        for group in range(self._metadata.num_row_groups):
            self._starts.append(self._starts[-1] + self._metadata.row_group(group).num_rows)
        held, said = self._starts[-1], self._metadata.num_rows
        self.count = min(held, said)
        if held != said:  # one of them is damaged, and may be any number
            self.damage = Damage(self.count, self.count, ValueError(f"its parts hold {held} rows, and it says {said}"))
        self._walk: Iterator[tuple[int, pa.Array]] = iter(())
        self._next, self._group = 0, -1

    def blocks(self, column: ImageColumn, row: int) -> Iterator[tuple[int, pa.Array]]:
        """See `Rows.blocks`."""
        group = bisect_right(self._starts, row) - 1
        if group != self._group or row < self._next:
            self._walk, self._group = self._read(column, group), group
        for first, block in self._walk:
            self._next = first + len(block)
            yield first, block
            if row < self._next:
                return
        self._group = -1

    def _opened(self) -> pq.ParquetFile:
        if self._file is None:
            import pyarrow.parquet as pq

            # With a buffer, pages are read one by one.
            self._file = pq.ParquetFile(
                store_of(self._path).for_arrow(self._path),
                metadata=self._metadata,
                buffer_size=_BUFFER_BYTES,
                pre_buffer=False,
                page_checksum_verification=True,
            )
            check_unchanged(self._path, self._stamp)
        return self._file

    def _read(self, column: ImageColumn, group: int) -> Iterator[tuple[int, pa.Array]]:
        first, names = self._starts[group], [".".join(column.steps)]
        try:
            for batch in self._opened().iter_batches(_BLOCK_ROWS, row_groups=[group], columns=names):
                block = column.of(batch)
                yield first, block
                first += len(block)
        except (FileChanged, RunError):
            self.close()
            raise
        except Exception as exc:
            self._group = -1
            raise Damage(first, self._starts[group + 1], exc) from exc

    def close(self) -> None:
        """See `Rows.close`."""
        self._walk, self._group = iter(()), -1
        if self._file is not None:
            self._file.close(force=True)
            self._file = None


class ArrowRows:
    """See `Rows`. An IPC file, or an IPC stream as Hugging Face's `datasets` writes it, mapped into memory.

    A file is entered at any record batch, a stream at its beginning alone.
    """

    def __init__(self, path: str, stamp: Stamp) -> None:
        self.damage: Damage | None = None
        self._path, self._stamp = path, stamp
        self._starts = [0]
        self._reader: pa.RecordBatchFileReader | None = None
        self._stream: Iterator[pa.RecordBatch] = iter(())
        self._number = -1  # of the record batch at hand
        self._batch: pa.RecordBatch | None = None
        self._open()
        try:
            while (batch := self._following()) is not None:
                self._starts.append(self._starts[-1] + batch.num_rows)
        except RunError:
            raise
        except Exception as exc:
            self.damage = Damage(self._starts[-1], self._starts[-1], exc)
        self.count = self._starts[-1]
        self.close()

    def _open(self) -> None:
        import pyarrow as pa

        source = store_of(self._path).for_arrow(self._path, mapped=True)
        check_unchanged(self._path, self._stamp)
        try:
            self._reader = reader = pa.ipc.open_file(source)
        except pa.ArrowInvalid:
            source.seek(0)
            self._reader, reader = None, pa.ipc.open_stream(source)
            self._stream = iter(reader)
        self._opened, self.schema = True, reader.schema
        list(self.schema.names)  # damaged ones raise

    def _following(self) -> pa.RecordBatch | None:
        """The next record batch; None behind the last."""
        number = self._number + 1
        if self._reader is not None:
            self._batch = self._reader.get_batch(number) if number < self._reader.num_record_batches else None
        else:
            self._batch = next(self._stream, None)
        self._number = number
        return self._batch

    def blocks(self, column: ImageColumn, row: int) -> Iterator[tuple[int, pa.Array]]:
        """See `Rows.blocks`."""
        number = bisect_right(self._starts, row) - 1
        start = self._starts[number]
        try:
            if not self._opened or (self._reader is None and number < self._number):
                self.close()
                self._open()
            if self._reader is not None and number != self._number:
                self._number = number - 1
            while self._number < number:
                self._following()
            first = (row - start) // _BLOCK_ROWS * _BLOCK_ROWS
            block = None if self._batch is None else column.of(self._batch.slice(first, _BLOCK_ROWS))
        except (FileChanged, RunError):
            self.close()
            raise
        except Exception as exc:
            self.close()
            raise Damage(start, self._starts[number + 1], exc) from exc
        if block is not None:
            yield start + first, block

    def close(self) -> None:
        """See `Rows.close`."""
        self._opened, self._reader, self._stream = False, None, iter(())
        self._number, self._batch = -1, None
