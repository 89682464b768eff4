"""The working state of a run beside its output, and the atomic finish.

`<output>.partial/` holds `inputs.parquet` (the frozen list, one row group for each unit of work), `run.json` (the
fingerprint) and `parts/` (one file for each finished unit). Every file appears under its name only when it is complete
and on the disk; the output appears in one `os.replace`; only then is the working state removed. So a run may be killed
at any moment and loses at most its unfinished units.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from fiqa_trt.errors import DifferentRun, InputError, OutputError, RunError, storage_error
from fiqa_trt.records import own_columns, own_types
from fiqa_trt.spec import MEMBERS

SUFFIXES = (".parquet", ".csv", ".jsonl")
Fingerprint = dict[str, str | int]


def check_output(output: Path, suffixes: Sequence[str] = SUFFIXES) -> None:
    """Refuse an output that could not be written at the end.

    Raises:
        OutputError: unknown suffix, missing or unwritable folder, a folder in its place.
    """
    if output.suffix.lower() not in suffixes:
        raise OutputError(f"cannot tell the format of {output}: name it {', '.join(suffixes)}")
    folder = output.parent
    if not folder.is_dir():
        raise OutputError(f"cannot write {output}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {output}: no permission to write in {folder}")
    if output.is_dir():
        raise OutputError(f"cannot write {output}: it is a folder")


def check_columns(schema: pa.Schema, output: Path) -> None:
    """Refuse carried columns that the output's format cannot hold. Raises OutputError."""
    suffix = output.suffix.lower()
    for field in schema:
        nested, binary = pa.types.is_nested(field.type), _is_binary(field.type)
        if (suffix == ".csv" and (nested or binary)) or (suffix == ".jsonl" and binary):
            raise OutputError(f"{suffix} cannot hold column `{field.name}` ({field.type}); write .parquet")


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder that becomes `path` when the block ends well, and vanishes when it does not.

    Raises:
        RunError: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as exc:
        raise storage_error(path, exc) from exc
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


class RunFolder:
    """The working state of one run. Use as a context manager: it holds a lock against a second run."""

    def __init__(self, output: Path, unit_rows: int) -> None:
        self.output = output
        self.path = output.with_name(output.name + ".partial")
        self.unit_rows = unit_rows
        self._lock: IO[bytes] | None = None
        self._parts = self.path / "parts"
        self._run = self.path / "run.json"
        self._inputs = self.path / "inputs.parquet"

    def __enter__(self) -> RunFolder:
        """Create and lock the folder. Raises OutputError if it cannot be, or if another run is at work."""
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / "lock").open("wb")
        except OSError as exc:
            raise OutputError(f"cannot write {self.path}: {exc.strerror}") from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._lock.close()
            raise OutputError(f"another run is writing {self.output} at this moment") from exc
        except OSError:  # a file system without locks: go on without
            pass
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Release the lock; a folder in which no run ever began is removed."""
        if not self._run.exists():
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            self._lock.close()

    def freeze(self, batches: Iterable[pa.RecordBatch]) -> tuple[str, int]:
        """Write the input list, aside from one that is already there; returns its digest and its number of rows."""
        candidate = self.path / "inputs.new"
        count = 0
        try:
            writer: pq.ParquetWriter | None = None
            for table in rechunk(batches, self.unit_rows):
                writer = writer or pq.ParquetWriter(candidate, table.schema, compression="zstd")
                writer.write_table(table, row_group_size=self.unit_rows)
                count += table.num_rows
            if writer is None:
                raise ValueError("no batch of inputs, not even an empty one")
            writer.close()
            with candidate.open("rb") as file:
                digest = hashlib.sha256()
                while block := file.read(1 << 20):
                    digest.update(block)
                os.fsync(file.fileno())
        except OSError as exc:
            raise storage_error(candidate, exc) from exc
        return digest.hexdigest(), count

    def recorded(self) -> Fingerprint | None:
        """The fingerprint of the run that this state belongs to, or None if none began."""
        try:
            return dict(json.loads(self._run.read_text()))
        except (OSError, ValueError):
            return None

    def begin(self, fingerprint: Fingerprint) -> None:
        """Adopt the frozen list: go on with the same run, or start a new one where there is none.

        Raises:
            DifferentRun: the state belongs to another run; the difference is named.
        """
        recorded = self.recorded()
        if recorded is not None:
            refuse_difference(str(self.path), recorded, fingerprint)
            (self.path / "inputs.new").unlink(missing_ok=True)
            return
        shutil.rmtree(self._parts, ignore_errors=True)
        self._parts.mkdir()
        (self.path / "inputs.new").replace(self._inputs)
        with atomic(self._run) as temporary:
            temporary.write_text(json.dumps(fingerprint, indent=1))

    def forget(self) -> None:
        """Drop whatever an earlier run left, but for the list that was just frozen."""
        self._run.unlink(missing_ok=True)

    def _units(self) -> list[int]:
        """Rows of each unit of work of the frozen list."""
        metadata = pq.read_metadata(self._inputs)
        return [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]

    def rows(self) -> int:
        """Rows of the frozen list."""
        return sum(self._units())

    def pending(self) -> Iterator[int]:
        """Number of each unit that has no finished part yet, in order."""
        for number, rows in enumerate(self._units()):
            if not self._finished(number, rows):
                yield number

    def unit(self, number: int) -> pa.Table:
        """The inputs of a unit."""
        with pq.ParquetFile(self._inputs) as inputs:
            return inputs.read_row_group(number)

    def finished(self) -> Iterator[pa.Table]:
        """`score` and `status` of each unit that is finished."""
        for number, rows in enumerate(self._units()):
            if self._finished(number, rows):
                yield pq.read_table(self._part(number), columns=["score", "status"])

    def _part(self, number: int) -> Path:
        return self._parts / f"{number:08d}.parquet"

    def _finished(self, number: int, rows: int) -> bool:
        try:
            return bool(pq.read_metadata(self._part(number)).num_rows == rows)
        except (OSError, pa.ArrowInvalid):
            return False

    def write_part(self, number: int, table: pa.Table) -> None:
        """Keep the rows of a finished unit. Raises RunError if the disk does not take them."""
        with atomic(self._part(number)) as temporary:
            pq.write_table(table, temporary, compression="zstd")

    def parts(self) -> Iterator[pa.Table]:
        """The rows of all units in input order. Raises RunError if a part is gone."""
        for number in range(len(self._units())):
            try:
                with pq.ParquetFile(self._part(number)) as part:
                    yield part.read()
            except (OSError, pa.ArrowInvalid) as exc:
                raise RunError(f"{self._part(number)} cannot be read; run the same command again to redo it") from exc

    def remove(self) -> None:
        """The run is finished: its state goes. What marks it as a run goes first."""
        self._run.unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)


def refuse_difference(
    what: str,
    recorded: Fingerprint,
    wanted: Fingerprint,
    way_out: str = "--restart begins anew, or choose another -o",
) -> None:
    """Raise DifferentRun, naming what differs and the way out, unless the two fingerprints are equal."""
    names = [name for name in {**recorded, **wanted} if recorded.get(name) != wanted.get(name)]
    if names:
        differences = ", ".join(
            f"{name}: {_short(recorded.get(name))} there, {_short(wanted.get(name))} now" for name in names
        )
        raise DifferentRun(f"{what} belongs to another run ({differences}); {way_out}")


def _short(value: object) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text


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


def write_output(output: Path, schema: pa.Schema, tables: Iterable[pa.Table], expected: int) -> None:
    """Stream tables into the output, by its suffix, and put it in place in one step.

    Raises:
        RunError: the disk is full or fails, or there were not `expected` rows; what was there before is untouched.
    """
    with atomic(output) as temporary:
        count = 0
        with _WRITERS[output.suffix.lower()](temporary, schema) as write:
            for table in tables:
                write(table)
                count += table.num_rows
        if count != expected:
            raise RunError(f"{count} rows for {expected} inputs: {output} was not written; please report this")


Write = Callable[[pa.Table], None]
Types = dict[str, pa.DataType]


@contextlib.contextmanager
def _parquet_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        yield writer.write_table


@contextlib.contextmanager
def _csv_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with pa_csv.CSVWriter(path, schema) as writer:
        yield writer.write_table


@contextlib.contextmanager
def _jsonl_writer(path: Path, schema: pa.Schema) -> Iterator[Write]:
    with path.open("w", encoding="utf-8") as file:

        def write(table: pa.Table) -> None:
            file.writelines(json.dumps(row, default=str, ensure_ascii=False) + "\n" for row in table.to_pylist())

        yield write


_WRITERS: dict[str, Callable[[Path, pa.Schema], contextlib.AbstractContextManager[Write]]] = {
    ".parquet": _parquet_writer,
    ".csv": _csv_writer,
    ".jsonl": _jsonl_writer,
}


def with_metadata(schema: pa.Schema, metadata: dict[str, Any]) -> pa.Schema:
    """The schema with what `output_metadata` reads back."""
    return schema.with_metadata({"fiqa_trt": json.dumps(metadata)})


def output_metadata(output: Path) -> dict[str, Any] | None:
    """What a Parquet output says of the run that made it, or None if it is not one of ours."""
    if output.suffix.lower() != ".parquet":
        return None
    try:
        return dict(json.loads(pq.read_schema(output).metadata[b"fiqa_trt"]))
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError):
        return None


def read_output(output: Path, own: Sequence[str]) -> Iterator[pa.Table]:
    """Stream an output back, of any format, with our own columns in their types; the others of a CSV are text.

    Raises:
        InputError: it cannot be read, or lacks one of the columns `own`.
    """
    try:
        types = own_types([*own_columns(MEMBERS), *own])
        for table in _READERS[output.suffix.lower()](output, types):
            lacking = [name for name in own if name not in table.column_names]
            if lacking:
                raise InputError(f"{output} is not an output of this model: it has no column {', '.join(lacking)}")
            yield table
    except (OSError, pa.ArrowInvalid, ValueError) as exc:
        raise InputError(f"{output} cannot be read: {' '.join(str(exc).split())}") from exc


def _read_parquet(output: Path, own: Types) -> Iterator[pa.Table]:
    with pq.ParquetFile(output) as file:
        for number in range(file.num_row_groups):
            yield file.read_row_group(number)


def _read_csv(output: Path, own: Types) -> Iterator[pa.Table]:
    with output.open(newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file), [])
    convert = pa_csv.ConvertOptions(
        column_types={name: own.get(name, pa.string()) for name in columns},
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
        null_values=[""],
    )
    with pa_csv.open_csv(
        output, parse_options=pa_csv.ParseOptions(newlines_in_values=True), convert_options=convert
    ) as file:
        for batch in file:
            yield pa.Table.from_batches([batch])


def _read_jsonl(output: Path, own: Types) -> Iterator[pa.Table]:
    with output.open(encoding="utf-8") as file:
        while lines := list(islice(file, 8192)):
            table = pa.Table.from_pylist([json.loads(line) for line in lines])
            for index, name in enumerate(table.column_names):
                if name in own:
                    table = table.set_column(index, name, table[name].cast(own[name]))
            yield table


_READERS: dict[str, Callable[[Path, Types], Iterator[pa.Table]]] = {
    ".parquet": _read_parquet,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
}
