"""The working state of a run beside its output.

`<output>.partial/` holds `inputs.parquet` (the frozen list, one row group for each unit of work), `run.json` (the
fingerprint), `parts/` (one file for each finished unit) and `deaths.json` (units that ended the process that scored
them, or are at work in one). If the output is a link, that lies beside what it leads to.
Every file appears under its name only when it is complete and on the disk; the output appears in one `os.replace`; only
then is the working state removed. So a run may be killed at any moment and loses at most its unfinished units.

Of an output in a store the same objects are below its name, with a lease instead of a lock. The list that units are
read from is here then, in the temporary folder: each call makes it anew, and goes on only if it is the same.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from fiqa_trt.errors import InputError, OutputError, RunError, one_line, storage_error, unwritable
from fiqa_trt.fingerprint import Fingerprint
from fiqa_trt.pipeline import bounded_map
from fiqa_trt.storage.base import all_unsigned
from fiqa_trt.storage.lease import Lease
from fiqa_trt.storage.places import Place, Uri, entry_names, remove_below
from fiqa_trt.storage.record import Record
from fiqa_trt.storage.scratch import Scratch
from fiqa_trt.storage.writing import atomic, beside, is_at, lock, sync_file, target_of, write_text

_READERS = 8  # threads that wait for parts
# What a run keeps in its folder, and in a store.
_STATE = re.compile(
    r"inputs\.(parquet|new)|listed\.parquet|run\.json|parts|deaths\.json|lock|lease-\d+|clock-\w+|\..*", re.DOTALL
)


@dataclasses.dataclass(frozen=True)
class FolderUnits:
    """The units of a run in its folder: the row groups of the frozen list, and the parts that are finished.

    Attributes:
        path: of the folder with the list.
        home: where the parts are: the same, or in a store.
    """

    path: Path
    home: Place

    @property
    def path_of_inputs(self) -> Path:
        """The frozen list."""
        return self.path / "inputs.parquet"

    @property
    def path_of_parts(self) -> Place:
        """The folder of the parts."""
        return self.home / "parts"

    def _sizes(self) -> list[int]:
        """Rows of each unit."""
        metadata = self._metadata()
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        return [rows for rows in sizes if rows]  # an empty list is a row group as well, and no unit

    def rows(self) -> int:
        """Rows of all units."""
        return sum(self._sizes())

    def pending(self) -> Iterator[int]:
        """See `Units.pending`."""
        finished = self._finished()
        yield from (number for number, rows in enumerate(self._sizes()) if not finished(number, rows))

    def inputs(self, number: int) -> pa.Table:
        """See `Units.inputs`."""
        with pq.ParquetFile(self.path_of_inputs, metadata=self._metadata()) as inputs:
            return inputs.read_row_group(number)

    def _metadata(self) -> pq.FileMetaData:
        """That of the frozen list: megabytes, where there are many units."""
        info = os.stat(self.path_of_inputs)
        return _metadata_of(self.path_of_inputs, info.st_ino, info.st_mtime_ns, info.st_size)

    def keep(self, number: int, rows: pa.Table) -> None:
        """See `Units.keep`."""
        with atomic(self._part(number)) as temporary:
            pq.write_table(rows, temporary, compression="zstd")

    def deaths(self) -> dict[int, int]:
        """See `Units.deaths`."""
        try:
            recorded = json.loads((self.home / "deaths.json").read_text())
            return {int(number): int(count) for number, count in recorded.items()}
        except (OSError, ValueError, AttributeError, TypeError):
            return {}

    def record_deaths(self, deaths: dict[int, int]) -> None:
        """See `Units.record_deaths`."""
        write_text(self.home / "deaths.json", json.dumps(deaths))

    def finished(self) -> Iterator[pa.Table]:
        """`score` and `status` of each unit that is finished; one that cannot be read no longer is."""
        finished = self._finished()
        numbers = [number for number, rows in enumerate(self._sizes()) if finished(number, rows)]
        for _, part in self._read_all(numbers, ["score", "status"]):
            if part is not None:
                yield part

    def parts(self) -> Iterator[pa.Table]:
        """The rows of all units in input order, read ahead. Raises RunError if a part is gone."""
        for number, part in self._read_all(range(len(self._sizes()))):
            if part is None:
                raise RunError(f"{self._part(number)} cannot be read; run the same command again to redo it")
            yield part

    def _part(self, number: int) -> Place:
        return self.path_of_parts / f"{number:08d}.parquet"

    def _finished(self) -> Callable[[int, int], bool]:
        """Whether the unit of a number, of so many rows, is finished."""
        if isinstance(self.home, Uri):  # where they are whole, or not there
            there = set(entry_names(self.path_of_parts))
            return lambda number, _: self._part(number).name in there

        def finished(number: int, rows: int) -> bool:
            try:
                return bool(pq.read_metadata(self._part(number)).num_rows == rows)
            except (OSError, pa.ArrowInvalid):
                return False

        return finished

    def _read_all(
        self, numbers: Sequence[int], columns: list[str] | None = None
    ) -> Iterator[tuple[int, pa.Table | None]]:
        """Parts as `_read` gives them, read ahead."""
        with ThreadPoolExecutor(_READERS, "parts") as pool:
            found = bounded_map(lambda number: pool.submit(self._read, number, columns), numbers, lambda: 2 * _READERS)
            yield from zip(numbers, found, strict=True)

    def _read(self, number: int, columns: list[str] | None = None) -> pa.Table | None:
        """A part; one that is damaged is removed, so that its unit is scored again."""
        part = self._part(number)
        try:
            with pq.ParquetFile(part if isinstance(part, Path) else pa.BufferReader(part.read_bytes())) as file:
                return file.read(columns)
        except (OSError, pa.ArrowInvalid):
            part.unlink(missing_ok=True)
            return None


@functools.lru_cache(maxsize=1)
def _metadata_of(path: Path, *stamp: int) -> pq.FileMetaData:
    return pq.read_metadata(path)


class RunFolder:
    """The working state of one run. Use as a context manager: it holds a lock against a second run.

    Attributes:
        output: of the run.
        home: the folder, or what stands for it in a store.
        path: the folder, or one here for what is only needed while the process lives.
        units: of the run, once it has begun.
    """

    def __init__(self, output: Place, unit_rows: int) -> None:
        self.output = output
        # Beside the file that is written, not beside a link to it: on its disk, and one for all its names.
        self.home = beside(target_of(output), ".partial")
        self._unit_rows = unit_rows
        self._lock: IO[bytes] | Lease | None = None
        self._record = Record(self.home / "run.json", indent=1)
        self._here: Scratch | None = None
        if isinstance(self.home, Path):
            self._stands_in(self.home)

    def _stands_in(self, path: Path) -> None:
        self.path = path
        self.units = FolderUnits(path, self.home)

    def __enter__(self) -> RunFolder:
        """Create and lock the folder. Raises OutputError if it cannot be, or if another run is at work."""
        names = list[str]()
        with contextlib.suppress(OSError):
            names = entry_names(self.home)
        if foreign := sorted(name for name in names if not _STATE.fullmatch(name)):
            raise OutputError(f"{self.home} is no run's state, it holds {foreign[0]}; choose another -o")
        if isinstance(self.home, Uri) and isinstance(self.output, Uri):
            self._lock = Lease(self.home, self.output).__enter__()
            self._here = Scratch()
            self._stands_in(self._here.path)
            return self
        try:
            while self._lock is None:
                self._lock = self._locked()
            (self.path / "parts").mkdir(exist_ok=True)
        except OSError as exc:
            raise unwritable(self.path, exc) from exc
        return self

    def _locked(self) -> IO[bytes] | None:
        """The folder's lock; None if the run that held it has just come to its end and removed it."""
        self.path.mkdir(exist_ok=True)
        file = (self.path / "lock").open("wb")
        try:
            lock(file.fileno(), Path(self.output))
        except OutputError:
            file.close()
            raise
        if is_at(file.fileno(), self.path / "lock"):
            return file
        file.close()
        return None

    def __exit__(self, *exc_info: object) -> None:
        """Release the lock; a folder in which no run ever began is removed."""
        if self._here is not None:
            self._here.remove()
        elif not (self.path / "run.json").exists():
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.__exit__(None, None, None)

    def check(self, *, now: bool = False) -> None:
        """Raise RunError if another run has taken over; `now`: that nobody has is known of this moment."""
        if isinstance(self._lock, Lease):
            self._lock.check_now() if now else self._lock.check()

    def freeze(self, batches: Iterable[pa.RecordBatch]) -> tuple[str, int]:
        """Write the input list, aside from one that is already there; returns its digest and its number of rows."""
        candidate = self.path / "inputs.new"
        count, digest = 0, hashlib.sha256()
        try:
            writer: pq.ParquetWriter | None = None
            for table in rechunk(batches, self._unit_rows):
                if writer is None:
                    # Nobody searches it, and a footer of many units is read by all who score.
                    writer = pq.ParquetWriter(candidate, table.schema, compression="zstd", write_statistics=False)
                    digest.update(table.schema.serialize())
                if table.num_rows:  # or there would be a unit of none, which nobody could ever finish
                    writer.write_table(table, row_group_size=self._unit_rows)
                # Of the rows, not of the file, which names the version of its writer.
                for batch in table.to_batches():
                    digest.update(batch.serialize())
                count += table.num_rows
            if writer is None:
                raise ValueError("no batch of inputs, not even an empty one")
            writer.close()
            sync_file(candidate)
        except OSError as exc:
            raise storage_error(candidate, exc) from exc
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as exc:
            raise InputError(f"a column of the list cannot be carried along: {one_line(exc)}; leave it out") from exc
        return digest.hexdigest(), count

    def listed(self) -> Iterator[pa.ChunkedArray]:
        """The paths of the list that was just frozen, in parts."""
        with pq.ParquetFile(self.path / "inputs.new") as inputs:
            for number in range(inputs.num_row_groups):
                yield inputs.read_row_group(number, ["path"])["path"]

    def set_aside(self) -> None:
        """Keep the list that was just frozen beside another one that is to be worked on."""
        (self.path / "inputs.new").replace(self.path / "listed.parquet")

    def aside(self, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """What was set aside, in parts."""
        with pq.ParquetFile(self.path / "listed.parquet") as listed:
            for number in range(listed.num_row_groups):
                yield listed.read_row_group(number, columns)

    def recorded(self) -> Fingerprint | None:
        """The fingerprint of the run that this state belongs to, or None if none began."""
        return self._record.read()

    def begin(self, fingerprint: Fingerprint) -> None:
        """Adopt the frozen list: go on with the same run, or start a new one where there is none.

        Raises:
            DifferentRun: the state belongs to another run; the difference is named.
        """
        if self._record.continues(self.home, fingerprint):
            (self.path / "inputs.new").replace(self.units.path_of_inputs)  # the same rows
            return
        self._clear(self.units.path_of_parts)
        (self.home / "deaths.json").unlink(missing_ok=True)
        (self.path / "inputs.new").replace(self.units.path_of_inputs)
        if isinstance(self.home, Uri):
            self._put_list(self.home / "inputs.parquet")
        self._record.write(fingerprint)

    def forget(self) -> None:
        """Drop whatever an earlier run left, but for the list that was just frozen."""
        self._record.remove()

    def remove(self) -> None:
        """The run is finished: its state goes. What marks it as a run goes first."""
        self._record.remove()
        if isinstance(self.home, Uri):
            self._clear(self.units.path_of_parts)
            for name in ("inputs.parquet", "deaths.json"):
                (self.home / name).unlink()
        else:
            shutil.rmtree(self.path, ignore_errors=True)

    def _put_list(self, place: Place) -> None:
        """The frozen list for others to look at: without what grants access."""
        with (
            atomic(place) as copy,
            pq.ParquetFile(self.units.path_of_inputs) as inputs,
            pq.ParquetWriter(copy, inputs.schema_arrow, compression="zstd") as writer,
        ):
            for number in range(inputs.num_row_groups):
                table = inputs.read_row_group(number)
                writer.write_table(table.set_column(0, table.schema.field(0), all_unsigned(table["path"])))

    def _clear(self, parts: Place) -> None:
        if isinstance(parts, Uri):
            remove_below(parts)
        else:
            shutil.rmtree(parts, ignore_errors=True)
            parts.mkdir()


def rechunk(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """Tables of exactly `rows` rows, but for the last; of one empty table if there are no rows at all."""
    held: list[pa.RecordBatch] = []
    count, first = 0, True
    for batch in batches:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows).combine_chunks()
            first = False
            held = table.slice(rows).to_batches()
            count -= rows
    if held and (count or first):
        yield pa.Table.from_batches(held).combine_chunks()
