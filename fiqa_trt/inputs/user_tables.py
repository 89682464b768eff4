"""Tables that users bring along: .csv, .tsv and .parquet, as batches of columns."""

from __future__ import annotations

import codecs
import contextlib
import csv
import dataclasses
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiqa_trt.errors import InputError, one_line
from fiqa_trt.inputs.formats import SUFFIXES
from fiqa_trt.storage.base import REMOTE, is_remote
from fiqa_trt.storage.places import Place, at_hand
from fiqa_trt.storage.registry import is_stored

if TYPE_CHECKING:
    import pyarrow as pa

KINDS = (".csv", ".tsv", ".parquet")
BATCH_ROWS = 8192
HEAD_BYTES = 1 << 16
_SPOKEN = {",": "`,`", ";": "`;`", "\t": "tabs", "|": "`|`"}
# UTF-32 first: its mark begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_HINTS = {
    "invalid UTF8": "save it in UTF-8, or in UTF-16 with its byte-order mark",
    "columns, got": "a cell that holds the separator, like a decimal comma, needs quotation marks",
}
_NOT_TEXT = (
    (0, b"\x1f\x8b", "compressed (gzip): unpack it first"),
    (4, b"1AY&SY", "compressed (bzip2): unpack it first"),
    (0, b"\xfd7zXZ\0", "compressed (xz): unpack it first"),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd): unpack it first"),
    (0, b"\x04\x22\x4d\x18", "compressed (lz4): unpack it first"),
    (0, b"PK\x03\x04", "a zip archive or an Excel workbook: save it as .csv first"),
    (0, b"\xd0\xcf\x11\xe0", "an Excel workbook: save it as .csv first"),
    (0, b"PAR1\x15", "a Parquet file: name it .parquet"),
)


PATH_NAMES = (
    "image", "filename", "file", "file_name", "image_path", "image_name", "image_file", "img", "img_name", "img_path",
    "filepath", "file_path",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Column:
    """A column that a table must have.

    Attributes:
        name: what we call it.
        others: what people call it as well, in small letters with underscores.
        option: the option that names it, where there is one.
        given: what that option said: the table's own name for it.
    """

    name: str
    others: tuple[str, ...] = ()
    option: str = ""
    given: str | None = None

    def find(self, columns: Sequence[str], table: str) -> str | None:
        """Its name in a table, None if it is not there. Raises InputError if several columns may be meant."""
        if self.given is not None or self.name in columns:
            wanted = self.name if self.given is None else self.given
            return wanted if wanted in columns else None
        found = [column for column in columns if self.is_meant(column)]
        if len(found) > 1:
            way_out = f"{self.option} says which" if self.option else f"name the one that is meant `{self.name}`"
            raise InputError(f"{table} has no column `{self.name}` but {' and '.join(found)}: {way_out}")
        return found[0] if found else None

    def is_meant(self, name: str) -> bool:
        """Whether a column of that name is probably this one."""
        return "_".join(name.strip().lower().replace("-", " ").split()) in (self.name, *self.others)


def text_encoding(head: bytes, name: str) -> str:
    """The encoding of a text by its first bytes: that of its byte-order mark, else UTF-8.

    Raises:
        InputError: it is compressed, or no text.
    """
    for mark, encoding in _MARKS:
        if head.startswith(mark):
            return encoding
    for at, start, what in _NOT_TEXT:
        if head.startswith(start, at):
            raise InputError(f"{name} is {what}")
    refuse_nul(head, name)
    return "utf-8"


def refuse_nul(text: bytes, name: str) -> None:
    """Raise InputError if a text holds what no path and no text does."""
    if b"\0" in text:
        raise InputError(
            f"{name} holds NUL bytes: it must be text in UTF-8, or in UTF-16 with its byte-order mark, a path a line"
        )


@contextlib.contextmanager
def translated(name: str) -> Iterator[None]:
    """Around reading a file of the user's: what libraries raise becomes InputError."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as exc:
        raise _unreadable(name, exc) from exc
    except OSError as exc:
        why = REMOTE if is_remote(name) and not is_stored(name) else exc.strerror or one_line(exc)
        raise InputError(f"cannot read {name}: {why}") from exc
    except (csv.Error, ValueError, OverflowError) as exc:
        raise _unreadable(name, exc) from exc


def _unreadable(name: str, exc: Exception) -> InputError:
    kind, said = Path(name).suffix[1:] or "text", one_line(exc)
    hint = next((f"; {hint}" for part, hint in _HINTS.items() if part in said), "")
    return InputError(f"cannot read {name} as {kind}: {said}{hint}")


def read_batches(name: str, needed: Sequence[str | Column], raw: Sequence[str] = ()) -> Iterator[pa.RecordBatch]:
    """The rows of a table. All columns of a .csv or .tsv are text, exactly as written: an identity 007 must not
    become 7.

    Args:
        name: ends in one of KINDS.
        needed: columns that it must have; those that it calls otherwise are renamed. One that has such a name and is
            another makes way: it is called `input_<name>`.
        raw: of a text, columns of `needed` to be had as bytes, because they need not be UTF-8.

    Raises:
        InputError: it cannot be read, lacks a column of `needed`, or has two of one name.
    """
    _check_file(name)
    read = _read_parquet(name, needed) if name.lower().endswith(".parquet") else _read_csv(name, needed, raw)
    with translated(name):
        yield from read


def name_in(name: str, column: Column) -> str:
    """What a table calls a column. Raises InputError as `read_batches`."""
    import pyarrow.parquet as pq

    _check_file(name)
    with translated(name):
        names = (
            _need((column,), pq.read_schema(at_hand(name)).names, name)
            if name.lower().endswith(".parquet")
            else _layout(name, (column,)).renamed((column,), name)
        )
    return next((theirs for theirs, ours in names.items() if ours == column.name), column.name)


def _check_file(name: str) -> None:
    with translated(name):
        if not stat.S_ISREG(os.stat(at_hand(name)).st_mode):
            raise InputError(f"cannot read {name}: a table must be a file, not a folder, a device or a pipe")


def unused(name: str, taken: Collection[str]) -> str:
    """A name for a carried column that nothing else has: `input_` before it as often as it takes."""
    while name in taken:
        name = f"input_{name}"
    return name


def read_columns(table: Place, needed: Sequence[str | Column]) -> dict[str, list[Any]]:
    """A whole table as lists by column; values of a text are text, None where empty. Excel's "Unicode text" ends in
    .txt.

    Raises:
        InputError: as `read_batches`; also if it is of no such kind, or has no rows.
    """
    name = str(table)
    if table.suffix.lower() not in (*KINDS, ".txt"):
        raise InputError(f"cannot tell what kind of table {name} is: name it {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    columns: dict[str, list[Any]] = {}
    with translated(name):
        for batch in read_batches(name, needed):
            for column, values in zip(batch.schema.names, batch.columns, strict=True):
                columns.setdefault(column, []).extend(values.to_pylist())
    if not any(columns.values()):
        raise InputError(f"{name} has no rows")
    if table.suffix.lower() == ".parquet":
        return columns
    return {column: [value or None for value in values] for column, values in columns.items()}


def _need(needed: Sequence[str | Column], columns: Sequence[str], name: str, how: str = "") -> dict[str, str]:
    """What columns are renamed to, by their names in the table."""
    renamed = dict[str, str]()
    for column in map(_column, needed):
        found = column.find(columns, name)
        if found is None:
            only = f"only: {', '.join(columns) or 'none'}{how if len(columns) > 1 else ''}"
            option = f"; {column.option} says which" if column.option and column.given is None and columns else ""
            if any(_is_value(cell) for cell in columns):
                option = "; its first row must name the columns"
            raise InputError(f"{name} has no column `{column.given or column.name}`, {only}{option}")
        renamed[found] = column.name
    repeated = sorted({column for column in columns if column and columns.count(column) > 1})
    if repeated:
        raise InputError(f"{name} has more than one column named {', '.join(repeated)}")
    if len(renamed) < len(needed):
        raise InputError(f"{name}: one column cannot be both {' and '.join(_column(one).name for one in needed)}")
    for own in renamed.values():
        if len(both := [found for found, other in renamed.items() if other == own]) > 1:
            raise InputError(f"{name}: {' and '.join(both)} cannot both be `{own}`; rename one of them")
    displaced = [column for column in columns if column in renamed.values() and column not in renamed]
    renamed |= {column: unused(column, columns) for column in displaced}
    return {found: own for found, own in renamed.items() if found != own}


def _column(needed: str | Column) -> Column:
    return Column(needed) if isinstance(needed, str) else needed


def _is_value(cell: str) -> bool:
    """Whether it is no column's name, but a number, the path of an image, or what spreadsheets put before the names."""
    if "/" in cell or cell.lower().endswith(SUFFIXES) or cell.startswith(("sep=", "#")):
        return True
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _renamed(batch: pa.RecordBatch, names: dict[str, str]) -> pa.RecordBatch:
    """With our names; without several columns of no name, which spreadsheets put at the end."""
    columns = batch.schema.names
    blank = columns.count("") > 1
    if not names and not blank:
        return batch
    kept = [index for index, name in enumerate(columns) if name or not blank]
    return batch.select(kept).rename_columns([names.get(columns[index], columns[index]) for index in kept])


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How a .csv is written: its encoding, its separator, its columns, and whether anything follows them."""

    encoding: str
    separator: str
    columns: list[str]
    rows: bool

    def renamed(self, needed: Sequence[str | Column], name: str) -> dict[str, str]:
        """See `_need`; `name` is the table's."""
        return _need(needed, self.columns, name, f" (separated by {_SPOKEN[self.separator]})")


def _layout(name: str, needed: Sequence[str | Column]) -> _Layout:
    with open(at_hand(name), "rb") as file:
        encoding = text_encoding(file.read(HEAD_BYTES), name)
    text = ("utf-8-sig", "surrogateescape") if encoding == "utf-8" else (encoding, "strict")
    layouts = []
    for separator in _SPOKEN:
        with open(at_hand(name), encoding=text[0], errors=text[1], newline="") as lines:
            columns = next(filter(None, csv.reader(lines, delimiter=separator)), [])
            if any("\udc80" <= sign <= "\udcff" for sign in "".join(columns)):
                raise ValueError("invalid UTF8 data in its first row")
            layouts.append(_Layout(encoding, separator, columns, any(line.strip("\r\n") for line in lines)))
        with contextlib.suppress(InputError):  # said below, of the likeliest separator
            if all(_column(one).find(columns, name) is not None for one in needed):
                return layouts[-1]
    # What is missing is said of the columns as they were most likely meant.
    return max(layouts, key=lambda layout: len(layout.columns))


def _read_csv(name: str, needed: Sequence[str | Column], raw: Sequence[str]) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.compute as pc

    from fiqa_trt.inputs.delimited import stream_csv

    layout = _layout(name, needed)
    names = layout.renamed(needed, name)
    # A blank before such a name is one of those behind every separator (`a, b`), and none of the cells'.
    indented = [(at, column) for at, column in enumerate(layout.columns) if column in names and column.startswith(" ")]
    types = {each: pa.binary() if names.get(each, each) in raw else pa.string() for each in layout.columns}
    if not layout.rows:
        yield _renamed(pa.RecordBatch.from_pylist([], pa.schema(types)), names)
        return
    for read in stream_csv(at_hand(name), layout.separator, layout.encoding, column_types=types):
        found = read
        for at, column in indented:
            found = found.set_column(at, column, pc.replace_substring_regex(found.column(at), "^ ", ""))
        batch = _renamed(found, names)
        for column in raw:
            _refuse_nuls(batch.column(column), name)
        yield batch
        last = found.column(found.num_columns - 1)[-1].as_py() if found.num_rows else ""
    _refuse_unclosed(name, last)


def _refuse_nuls(values: pa.Array, name: str) -> None:
    import pyarrow.compute as pc

    if pc.any(pc.match_substring(values, "\0")).as_py():
        refuse_nul(b"\0", name)


def _refuse_unclosed(name: str, last: str | bytes) -> None:
    """A quotation mark that is never closed makes all that follows one cell; pyarrow takes it for what was meant."""
    if not last or not (b"\n" in last if isinstance(last, bytes) else "\n" in last):
        return
    with open(at_hand(name), "rb") as file:
        file.seek(max(0, file.seek(0, 2) - 64))
        tail = file.read().replace(b"\0", b"").rstrip(b"\r\n")
    if not tail.endswith(b'"'):
        raise InputError(f"{name} has a quotation mark that is never closed, so its last rows cannot be told apart")


def _read_parquet(name: str, needed: Sequence[str | Column]) -> Iterator[pa.RecordBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(at_hand(name)) as file:
        names = _need(needed, file.schema_arrow.names, name)
        for batch in file.iter_batches(batch_size=BATCH_ROWS):
            yield _renamed(batch, names)


def header(name: str, needed: Sequence[str | Column]) -> list[str]:
    """The names that a table itself gives to its columns. Raises InputError if it cannot be read."""
    import pyarrow.parquet as pq

    with translated(name):
        if name.lower().endswith(".parquet"):
            return list(pq.read_schema(at_hand(name)).names)
        return _layout(name, needed).columns


def place(name: str, needed: Sequence[str | Column], row: int) -> str:
    """Where a row, counted from 0, stands: of a .parquet its number from 1, of a text the line that an editor shows.

    Raises:
        InputError: the table cannot be read.
    """
    if name.lower().endswith(".parquet"):
        return f"row {row + 1}"
    before = 0  # lines
    with translated(name):
        layout = _layout(name, needed)
        with open(at_hand(name), encoding=layout.encoding, errors="surrogateescape", newline="") as lines:
            records = csv.reader(lines, delimiter=layout.separator)
            for cells in records:
                if cells and row < 0:  # lines of nothing are no rows; that of the names is none either
                    break
                row -= bool(cells)
                before = records.line_num
    return f"line {before + 1}"
