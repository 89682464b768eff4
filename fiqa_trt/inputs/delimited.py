"""Reading .csv, by whomever it was written: commas, semicolons or tabs, and fields of any length."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

_BLOCK = 1 << 20
_LARGEST = (1 << 31) - 1  # bytes of a block that Arrow takes


def header(path: Path, needed: str) -> tuple[list[str], str]:
    """The names of the columns, and what stands between them: a comma, unless only another makes `needed` a name.

    Raises:
        OSError, UnicodeError, csv.Error: it cannot be read, or is not text in UTF-8.
    """
    found = list[list[str]]()
    for delimiter in ",;\t":
        with path.open(newline="", encoding="utf-8-sig") as file:
            found.append(next(csv.reader(file, delimiter=delimiter), []))
        if needed in found[-1]:
            return found[-1], delimiter
    return found[0], ","


def stream_csv(
    path: str | Path, delimiter: str = ",", encoding: str = "utf8", **convert: Any
) -> Iterator[pa.RecordBatch]:
    """Rows in batches. A row has to fit into a block; where one does not, the blocks grow.

    Args:
        path: the file.
        delimiter: between fields.
        encoding: of the text.
        convert: of `pyarrow.csv.ConvertOptions`.

    Raises:
        OSError, pyarrow.ArrowInvalid: it cannot be read.
    """
    parse = pa_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    options, block, done = pa_csv.ConvertOptions(**convert), _BLOCK, 0
    while True:
        skip = done  # what came from smaller blocks
        try:
            with pa_csv.open_csv(path, pa_csv.ReadOptions(block_size=block, encoding=encoding), parse, options) as file:
                for batch in file:
                    rest = batch.slice(min(skip, batch.num_rows))
                    skip -= batch.num_rows - rest.num_rows
                    done += rest.num_rows
                    yield rest
            return
        except pa.ArrowInvalid as exc:
            if block == _LARGEST or "straddl" not in str(exc):
                raise
            block = min(8 * block, _LARGEST)
