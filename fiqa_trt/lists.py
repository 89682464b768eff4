"""Lists of what to score: paths as text, one a line, or tables with a column `path`."""

from __future__ import annotations

import codecs
import contextlib
import re
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import IO, TYPE_CHECKING

from fiqa_trt.errors import InputError
from fiqa_trt.foreign import container_with, suffix_of
from fiqa_trt.records import as_uri, record_path
from fiqa_trt.user_tables import BATCH_ROWS, HEAD_BYTES, KINDS, read_batches, refuse_nul, text_encoding, translated

if TYPE_CHECKING:
    import pyarrow as pa

_LINE_BYTES = 1 << 20
_QUOTED = re.compile(rb'"((?:[^"]|"")*)"')
_WAYS_OUT = {
    ".xlsx": "save it as .csv first",
    ".xls": "save it as .csv first",
    ".ods": "save it as .csv first",
    ".jsonl": "write its paths as .csv or .parquet first",
    ".ndjson": "write its paths as .csv or .parquet first",
    ".json": "write its paths as .csv or .parquet first",
    ".arrow": "write it as .parquet first",
    ".tar": "give it as INPUT",
}


def path_batches(paths: Iterable[str]) -> Iterator[pa.RecordBatch]:
    """Paths as batches of one column, `path`."""
    import pyarrow as pa

    iterator = iter(paths)
    while chunk := list(islice(iterator, BATCH_ROWS)):
        yield pa.record_batch([pa.array(chunk, pa.string())], names=["path"])


def read_list(name: str, reserved: Iterable[str] = ()) -> Iterator[pa.RecordBatch]:
    """Batches of a list, column `path` first, then what it carries.

    Args:
        name: ends in .txt, .csv, .tsv or .parquet.
        reserved: names that carried columns may not have; those that do are renamed to `input_<name>`.

    Raises:
        InputError: it cannot be read as what its name says, or has no column `path`.
    """
    check_list(name)
    with translated(name):
        if name.lower().endswith(KINDS):
            for batch in read_batches(name, ("path",), raw=("path",)):
                yield _path_first(batch, reserved, name)
        else:
            with open(name, "rb") as file:
                yield from path_batches(read_paths(file, name))


def check_list(name: str) -> None:
    """Raise InputError if a name is not that of a list."""
    suffix = suffix_of(name)
    if name.lower().endswith((".txt", *KINDS)):
        return
    container = container_with(suffix)
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
    cells = re.split(rb"[,;\t|]", head.strip(b"\r").replace(b'"', b""))
    if len(cells) > 1 and b"path" in cells and b"/" not in head:
        raise InputError(f"{name} is a table with a column `path`, not a list with a path a line: name it .csv")


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
    if recorded.startswith("\ufeff") or _QUOTED.fullmatch(recorded.encode()):
        return as_uri(recorded)
    return recorded


def _recorded(raw: bytes) -> str:
    """A list may hold recorded paths (`file:` URIs) as well as raw ones."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return record_path(raw)


def _path_first(batch: pa.RecordBatch, reserved: Iterable[str], name: str) -> pa.RecordBatch:
    import pyarrow as pa

    names, columns = ["path"], [_paths(batch.column("path"), name)]
    taken = {*reserved, *batch.schema.names}
    for column in batch.schema.names:
        if column != "path":
            renamed = f"input_{column}" if column in reserved else column
            while renamed != column and renamed in taken:
                renamed = f"input_{renamed}"
            names.append(renamed)
            batch.column(column).validate(full=True)
            columns.append(batch.column(column))
    return pa.record_batch(columns, names=names)


def _paths(values: pa.Array, name: str) -> pa.Array:
    """A column of paths as text without nulls; what is not UTF-8, whatever its type claims, becomes `file:` URIs."""
    import pyarrow as pa

    given = values.type
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kinds = (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    if values.type not in kinds:
        raise InputError(f"{name}: the column `path` holds {given}, not text")
    try:
        raw = values.cast(pa.binary())
    except pa.ArrowNotImplementedError:  # of views, in older versions
        raw = pa.array([v.encode() if isinstance(v, str) else v for v in values.to_pylist()], pa.binary())
    try:
        return raw.cast(pa.string()).fill_null("")
    except pa.ArrowInvalid:
        return pa.array([_recorded(value or b"") for value in raw.to_pylist()], pa.string())
