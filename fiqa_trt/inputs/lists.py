"""Lists of what to score: paths as text, one a line, or tables with a column of paths."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import IO, TYPE_CHECKING

from fiqa_trt.errors import InputError
from fiqa_trt.inputs.address import as_uri, record_path
from fiqa_trt.inputs.containers.registry import CONTAINERS
from fiqa_trt.inputs.foreign import suffix_of, unread_with
from fiqa_trt.inputs.formats import find_format
from fiqa_trt.inputs.user_tables import (
    BATCH_ROWS,
    HEAD_BYTES,
    KINDS,
    PATH_NAMES,
    Column,
    name_in,
    read_batches,
    refuse_nul,
    text_encoding,
    translated,
    unused,
)
from fiqa_trt.storage.places import at_hand

if TYPE_CHECKING:
    import pyarrow as pa

PATHS = Column("path", PATH_NAMES, "--path-column")
_LINE_BYTES = 1 << 20
_QUOTED = re.compile(rb'"((?:[^"]|"")*)"')
_AS_INPUT = "a table that holds the images themselves is given as INPUT"
_WAYS_OUT = {
    ".xlsx": "save it as .csv first",
    ".xls": "save it as .csv first",
    ".ods": "save it as .csv first",
    ".jsonl": "write its paths as .csv or .parquet first",
    ".ndjson": "write its paths as .csv or .parquet first",
    ".json": "write its paths as .csv or .parquet first",
    **dict.fromkeys(CONTAINERS, "give it as INPUT"),
    ".arrow": "write it as .parquet first",
}


def path_batches(paths: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """Paths as batches of one column, `path`."""
    import pyarrow as pa

    iterator = iter(paths)
    while chunk := list(islice(iterator, BATCH_ROWS)):
        yield pa.record_batch([pa.array(chunk, pa.string())], names=["path"])


def read_list(name: str, reserved: Iterable[str] = (), paths: Column = PATHS) -> Iterator[pa.RecordBatch]:
    """Batches of a list, column `path` first, then what it carries.

    Args:
        name: ends in .txt, .csv, .tsv or .parquet.
        reserved: names that carried columns may not have; those that do are renamed to `input_<name>`.
        paths: its column of paths, if it is a table.

    Raises:
        InputError: it cannot be read as what its name says, or it is not clear which of its columns holds the paths.
    """
    called = column_of_paths(name, paths)
    with translated(name):
        if called is not None:
            for batch in read_batches(name, (paths,), raw=("path",)):
                yield _path_first(batch, reserved, f"{name}: the column `{called}`")
        else:
            with open(at_hand(name), "rb") as file:
                yield from path_batches(read_paths(file, name))


def column_of_paths(name: str, paths: Column = PATHS) -> str | None:
    """What a list calls its column of paths; None if it is no table. Raises InputError as `read_list`."""
    check_list(name)
    if name.lower().endswith(KINDS):
        return name_in(name, paths)
    if paths.given is not None:
        raise InputError(f"{paths.option} {paths.given}: {name} has a path a line, and no columns; leave it out")
    return None


def check_list(name: str) -> None:
    """Raise InputError if a name is not that of a list."""
    suffix = suffix_of(name)
    if name.lower().endswith((".txt", *KINDS)):
        return
    container = unread_with(suffix)
    if container is not None or suffix in _WAYS_OUT:
        way_out = container.way_out if container is not None else _WAYS_OUT[suffix]
        raise InputError(f"{name} is no list (.txt, {', '.join(KINDS)}): {way_out}")
    raise InputError(f"cannot tell what kind of list {name} is: name it .txt, {', '.join(KINDS)}")


def read_paths(file: IO[bytes], name: str) -> Iterator[str]:
    """Recorded paths of a text with a path a line, in UTF-16 or UTF-32 with a byte-order mark, or any bytes.

    Lines end in LF, CR LF, or CR where there is no LF at the beginning. Blank ones are skipped. One that is quoted
    as a cell of a .csv is (`"a b.jpg"`) is read as such. Nothing else is taken away: spaces belong to names.

    Raises:
        InputError: it is compressed, no text, or a table.
    """
    head = file.read(HEAD_BYTES)
    encoding = text_encoding(head, name)
    blocks: Iterator[bytes] = chain((head,), iter(lambda: file.read(HEAD_BYTES), b""))
    if encoding != "utf-8":
        blocks = (text.encode() for text in codecs.iterdecode(blocks, encoding))
    first = next(blocks, b"").removeprefix(codecs.BOM_UTF8)
    end = b"\r" if b"\r" in first and b"\n" not in first else b"\n"
    _refuse_table(first.split(end, 1)[0], name)
    for lines in _whole_lines(chain((first,), blocks), end, name):
        text = lines.replace(b"\r\n", b"\n")
        for path in _texts(text.replace(b"\r", b"\n") if end == b"\r" else text, name):
            if path:
                yield path


def _texts(lines: bytes, name: str) -> Iterable[str]:
    if not any(special in lines for special in (b'"', b"\0", b"\r")):
        with contextlib.suppress(UnicodeDecodeError):
            return lines.decode().split("\n")
    return (_recorded(_unquoted(line.rstrip(b"\r"), name)) for line in lines.split(b"\n"))


def _unquoted(line: bytes, name: str) -> bytes:
    refuse_nul(line, name)
    quoted = _QUOTED.fullmatch(line)
    return line if quoted is None else quoted[1].replace(b'""', b'"')


def _refuse_table(head: bytes, name: str) -> None:
    if (column := _column_in(head.decode(errors="replace"))) is not None:
        raise InputError(
            f"{name} is a table with a column `{column}`, not a list with a path a line: give it to --list as .csv"
        )


def _column_in(line: str) -> str | None:
    """The column of paths that a line names, if it is the first one of a table; no path with a slash is."""
    cells = re.split(r"[,;\t|]", line.strip("\r").replace('"', ""))
    if len(cells) < 2 or "/" in line:
        return None
    return next((cell for cell in cells if PATHS.is_meant(cell)), None)


def _whole_lines(blocks: Iterable[bytes], end: bytes, name: str) -> Iterator[bytes]:
    rest = b""
    for block in blocks:
        lines, found, rest = (rest + block).rpartition(end)
        if found:
            yield lines
        if len(rest) > _LINE_BYTES:
            raise InputError(f"{name} has a line of more than {_LINE_BYTES >> 20} MB: it is no list of paths")
    yield rest


def as_line(recorded: str) -> str:
    """A recorded path, without line ends, as `read_paths` reads it back."""
    if recorded.startswith("\ufeff") or _QUOTED.fullmatch(recorded.encode()) or _column_in(recorded) is not None:
        return as_uri(recorded)
    return recorded


def _recorded(raw: bytes) -> str:
    """A list may hold recorded paths (`file:` URIs) as well as raw ones."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return record_path(raw)


def _path_first(batch: pa.RecordBatch, reserved: Iterable[str], what: str) -> pa.RecordBatch:
    import pyarrow as pa

    names, columns = ["path"], [_paths(batch.column("path"), what)]
    taken = {*reserved, *batch.schema.names}
    for column in batch.schema.names:
        if column != "path":
            names.append(unused(column, taken) if column in reserved else column)
            batch.column(column).validate(full=True)
            columns.append(batch.column(column))
    return pa.record_batch(columns, names=names)


def _paths(values: pa.Array, what: str) -> pa.Array:
    """A column of paths as text without nulls; what is not UTF-8, whatever its type claims, becomes `file:` URIs.

    `what` names it in messages.
    """
    import pyarrow as pa

    given = values.type
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    if values.type not in kinds:
        raise InputError(f"{what} holds {given}, not text; {_AS_INPUT}")
    try:
        raw = values.cast(pa.binary())
    except pa.ArrowNotImplementedError:  # of views, in older versions
        raw = pa.array([v.encode() if isinstance(v, str) else v for v in values.to_pylist()], pa.binary())
    first = raw.drop_null()[:1].to_pylist()
    if values.type not in kinds[:3] and first and find_format(first[0]) is not None:
        raise InputError(f"{what} holds images, not paths; {_AS_INPUT}")
    try:
        return raw.cast(pa.string()).fill_null("")
    except pa.ArrowInvalid:
        return pa.array([_recorded(value or b"") for value in raw.to_pylist()], pa.string())
