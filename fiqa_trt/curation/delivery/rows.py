"""The kept images as a list of paths, or as rows. It appears complete or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fiqa_trt.curation.delivery.common import Delivered
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import OutputError, already_there
from fiqa_trt.inputs.lists import as_line
from fiqa_trt.scores.files import SUFFIXES, check_columns, write_output
from fiqa_trt.storage.places import Place
from fiqa_trt.storage.writing import atomic, check_output

if TYPE_CHECKING:
    import pyarrow as pa


def check_rows(kept: Kept, output: Place, *, restart: bool) -> None:
    """Raise what `write_rows` raises, but for what the disk does."""
    _check_place(output, restart=restart)
    if output.suffix.lower() == ".txt":
        for table in kept.tables():
            _lines(table)
    else:
        check_columns(kept.schema, output)


def _check_place(output: Place, *, restart: bool) -> None:
    check_output(output, (".txt", *SUFFIXES))
    if output.exists() and not restart:
        raise already_there(output, other="OUT")


def _lines(table: pa.Table) -> Iterator[str]:
    """The paths of kept rows as they stand in a .txt. Raises OutputError, at once, for one that is more than a line."""
    import pyarrow.compute as pc

    broken = table["path"].filter(pc.match_substring_regex(table["path"], r"[\r\n]"))
    if len(broken):
        raise OutputError(f"a .txt cannot hold {broken[0].as_py()!r}, which has a line break; write .csv or .parquet")
    return (as_line(path) + "\n" for path in table["path"].to_pylist())


def write_rows(kept: Kept, output: Place, *, restart: bool = False) -> Delivered:
    """The kept paths (.txt) or rows (.parquet, .csv, .jsonl), in the order of the scores file.

    Raises:
        OutputError: it cannot be written, or cannot hold the columns.
        DifferentRun: it is there already.
        RunError: the disk is full or fails.
    """
    _check_place(output, restart=restart)
    if output.suffix.lower() == ".txt":
        with atomic(output) as temporary, temporary.open("w", encoding="utf-8") as file:
            for table in kept.tables():
                file.writelines(_lines(table))
        return Delivered(str(output), len(kept))
    schema = check_columns(kept.schema, output)
    write_output(output, kept.described(schema), kept.tables(), len(kept))
    return Delivered(str(output), len(kept))
