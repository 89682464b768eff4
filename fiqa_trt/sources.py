"""Where inputs come from: folders, files, shards, lists, standard input. All become one ordered stream of recorded
paths.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fiqa_trt.errors import InputError, OutputError
from fiqa_trt.fingerprint import FREE
from fiqa_trt.records import record_path
from fiqa_trt.shards import DEFAULT_COLUMN, SEPARATOR, TABLES, TAR, is_shard, open_shard

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class Source:
    """What the user asked to score.

    Attributes:
        inputs: folders, files, shards (see `shards.py`), or `-` for paths on standard input, in the order given.
        list_file: a .txt, .csv or .parquet list, instead of `inputs`.
        all_files: take every file of a folder, not only those with an image's suffix.
        limit: stop after so many inputs.
        image_column: of Parquet and Arrow tables that hold images; given, those in folders are taken as well.
        reserved: names that carried columns may not have; those that do are renamed to `input_<name>`.
        exclude: paths that a folder's listing leaves out (the run's own output).
    """

    # What makes the list is free: the list itself counts, all of it.
    inputs: tuple[str, ...] = dataclasses.field(default=(), metadata=FREE)
    list_file: str | None = dataclasses.field(default=None, metadata=FREE)
    all_files: bool = dataclasses.field(default=False, metadata=FREE)
    limit: int | None = dataclasses.field(default=None, metadata=FREE)
    image_column: str | None = None
    reserved: tuple[str, ...] = dataclasses.field(default=(), metadata=FREE)
    exclude: tuple[str, ...] = dataclasses.field(default=(), metadata=FREE)

    def describe(self) -> str:
        """The inputs as one would name them in a sentence."""
        return self.list_file or " ".join(self.inputs)


def check_source(source: Source, output: Path) -> None:
    """Refuse at once what could only fail later.

    Raises:
        InputError: an input that is not there.
        OutputError: the output would replace one.
    """
    for given in (source.list_file,) if source.list_file else source.inputs:
        if given == "-" and not source.list_file:
            continue
        try:
            os.stat(given)
        except (OSError, ValueError) as exc:
            raise InputError(f"cannot read {given}: {getattr(exc, 'strerror', None) or exc}") from exc
        if output.exists() and output.samefile(given):
            raise OutputError(f"{output} is one of the inputs; choose another -o")


def list_inputs(source: Source, say: Callable[[str], None] = lambda message: None) -> Iterator[pa.RecordBatch]:
    """Batches of inputs in order; column `path` first, then whatever a list carries. At least one batch, maybe empty.

    `say` hears of what was given and holds nothing to score.

    Raises:
        InputError: a missing folder or file, a list that cannot be read or has no `path` column, nothing to score.
    """
    if bool(source.inputs) == bool(source.list_file):
        raise InputError("give either INPUT… or --list FILE")
    batches = _read_list(source) if source.list_file else _path_batches(_walk_inputs(source, say))
    left, found = source.limit, False
    for batch in batches:
        taken = batch if left is None else batch.slice(0, left)
        found = found or taken.num_rows > 0
        yield taken
        if left is not None:
            left -= taken.num_rows
            if left <= 0:
                break
    if not found:
        if source.list_file or source.inputs == ("-",):
            raise InputError(f"no paths in {source.list_file or 'standard input'}")
        hint = "" if source.all_files else f" ({' '.join(SUFFIXES)}; --all-files tries every file)"
        raise InputError(f"no images in {source.describe()}{hint}")


def _path_batches(paths: Iterable[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    iterator = iter(paths)
    while chunk := list(islice(iterator, _ROWS)):
        yield pa.record_batch([pa.array(chunk, pa.string())], names=["path"])


def _walk_inputs(source: Source, say: Callable[[str], None]) -> Iterator[str]:
    shards = (TAR, *TABLES) if source.image_column else (TAR,)
    for given in source.inputs:
        if given == "-":
            yield from _lines(sys.stdin.buffer)
            continue
        try:
            folder = stat.S_ISDIR(os.stat(given).st_mode)
        except OSError as exc:
            raise InputError(f"cannot read {given}: {exc.strerror}") from exc
        if given.lower().endswith(COMPRESSED):
            raise InputError(f"{given} is compressed, so its members cannot be found: unpack it to a plain .tar first")
        suffixes = (*SUFFIXES, TAR, *TABLES)
        found = walk(given, source.all_files, source.exclude, suffixes) if folder else iter((given,))
        files, tables, empty = 0, 0, list[str]()
        for path in found:
            files += 1
            if path.lower().endswith(shards) if folder else is_shard(path):
                members = 0
                for member in _members(path, source):
                    members += 1
                    yield member
                if not members:
                    empty.append(path)
            elif folder and not source.all_files and path.lower().endswith(TABLES):
                tables += 1
            else:
                yield record_path(path)
        if not files and len(source.inputs) > 1:
            say(f"no images in {given}")
        if tables:
            say(f"left out in {given}: tables, {tables} of them; --image-column scores the images in them")
        if empty:
            say(f"shards without an image: {len(empty)}, the first {empty[0]}")


def _members(path: str, source: Source) -> Iterator[str]:
    """The images of a shard, and the shard itself where something is wrong with it."""
    shard = open_shard(path, source.image_column or DEFAULT_COLUMN)
    try:
        for key in shard.keys(() if source.all_files else SUFFIXES):
            yield record_path(path + SEPARATOR + key)
        if shard.error is not None:
            yield record_path(path)
    finally:
        shard.close()


def walk(
    folder: str, all_files: bool = False, exclude: Iterable[str] = (), suffixes: tuple[str, ...] = SUFFIXES
) -> Iterator[str]:
    """Files below a folder, depth first, each folder's entries by name. Symbolic links are followed, loops are not.

    A folder that cannot be listed is yielded itself: it gets a row (`unreadable`) instead of vanishing.
    """
    left_out = {os.path.abspath(path) for path in exclude}
    # Each entry: a path, and the folders above it as (device, inode), or None for what is known to be a file.
    pending: list[tuple[str, tuple[tuple[int, int], ...] | None]] = [(folder, ())]
    while pending:
        path, above = pending.pop()
        if above is None:
            yield path
            continue
        try:
            info = os.stat(path)
            here = (info.st_dev, info.st_ino)
            if here in above:
                continue
            with os.scandir(path) as found:
                entries = sorted(found, key=lambda entry: entry.name, reverse=True)
        except OSError:
            yield path
            continue
        for entry in entries:
            if left_out and os.path.abspath(entry.path) in left_out:
                continue
            if _is_folder(entry):
                pending.append((entry.path, (*above, here)))
            elif all_files or entry.name.lower().endswith(suffixes):
                pending.append((entry.path, None))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, for one; as a file it gets its row
        return False


def _lines(file: IO[bytes]) -> Iterator[str]:
    for number, line in enumerate(file):
        text = line.rstrip(b"\r\n")
        text = text.removeprefix(b"\xef\xbb\xbf") if number == 0 else text
        if text:
            yield _recorded(text)


def _recorded(raw: bytes) -> str:
    """A list may hold recorded paths (`file:` URIs) as well as raw ones."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return record_path(raw)


def _read_list(source: Source) -> Iterator[pa.RecordBatch]:
    name = str(source.list_file)
    readers = {".txt": _read_text, ".csv": _read_csv, ".parquet": _read_parquet}
    reader = readers.get(Path(name).suffix.lower())
    if reader is None:
        raise InputError(f"cannot tell what kind of list {name} is: name it {', '.join(readers)}")
    with _translated(name):
        for batch in reader(name):
            yield _path_first(batch, source.reserved)


def _read_text(name: str) -> Iterator[pa.RecordBatch]:
    with open(name, "rb") as file:
        yield from _path_batches(_lines(file))


def read_columns(table: Path, needed: Sequence[str]) -> dict[str, list[Any]]:
    """A whole .csv (every value as text, None where empty) or .parquet as lists by column.

    Raises:
        InputError: it cannot be read, has no rows, or lacks a column of `needed`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fiqa_trt.outputs.delimited import stream_csv

    name, kind = str(table), table.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise InputError(f"cannot tell what kind of table {name} is: name it .csv or .parquet")
    with _translated(name):
        if kind == ".parquet":
            with pq.ParquetFile(name) as file:
                _need(needed, file.schema_arrow.names, name)
                read = file.read()
        else:
            columns = _csv_columns(name)
            _need(needed, columns, name)
            types = dict.fromkeys(columns, pa.string())
            batches = stream_csv(name, column_types=types, strings_can_be_null=True, null_values=[""])
            read = pa.Table.from_batches(batches, pa.schema(types.items()))
        found = dict(read.to_pydict())
    if not read.num_rows:
        raise InputError(f"{name} has no rows")
    return found


@contextlib.contextmanager
def _translated(name: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except OSError as exc:
        raise InputError(f"cannot read {name}: {exc.strerror or exc}") from exc
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, csv.Error, ValueError, OverflowError) as exc:
        raise InputError(f"cannot read {name} as {Path(name).suffix[1:]}: {' '.join(str(exc).split())}") from exc


def _csv_columns(name: str) -> list[str]:
    with open(name, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        return next(csv.reader(file), [])


def _need(needed: Sequence[str], columns: Sequence[str], name: str) -> None:
    for column in needed:
        if column not in columns:
            raise InputError(f"{name} has no column `{column}`, only: {', '.join(columns) or 'none'}")
    repeated = sorted({column for column in columns if columns.count(column) > 1})
    if repeated:
        raise InputError(f"{name} has more than one column named {', '.join(repeated)}")


def _read_csv(name: str) -> Iterator[pa.RecordBatch]:
    """Carried columns stay text, exactly as written: an identity 007 must not become 7."""
    import pyarrow as pa

    from fiqa_trt.outputs.delimited import stream_csv

    columns = _csv_columns(name)
    _need(("path",), columns, name)
    types = {column: pa.binary() if column == "path" else pa.string() for column in columns}
    yield from stream_csv(name, column_types=types)


def _read_parquet(name: str) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(name) as file:
        _need(("path",), file.schema_arrow.names, name)
        yield from file.iter_batches(batch_size=_ROWS)


def _path_first(batch: pa.RecordBatch, reserved: Iterable[str]) -> pa.RecordBatch:
    import pyarrow as pa

    paths = batch.column("path")
    if not pa.types.is_string(paths.type):
        if pa.types.is_dictionary(paths.type):
            paths = paths.dictionary_decode()
        if not (pa.types.is_binary(paths.type) or _is_text(paths.type)):
            raise InputError(f"the column `path` holds {paths.type}, not text")
        values = paths.to_pylist()
        paths = pa.array([_recorded(v) if isinstance(v, bytes) else v for v in values], pa.string())
    names, columns = ["path"], [paths.fill_null("")]
    taken = {*reserved, *batch.schema.names}
    for name in batch.schema.names:
        if name != "path":
            renamed = f"input_{name}" if name in reserved else name
            while renamed != name and renamed in taken:
                renamed = f"input_{renamed}"
            names.append(renamed)
            columns.append(batch.column(name))
    return pa.record_batch(columns, names=names)


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))
