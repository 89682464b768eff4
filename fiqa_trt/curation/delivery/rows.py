"""The kept images as a list of paths, or as rows. It appears complete or not at all."""

from __future__ import annotations

from pathlib import Path

from fiqa_trt.curation.delivery.common import Delivered
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import OutputError, already_there
from fiqa_trt.inputs.lists import as_line
from fiqa_trt.scores.files import SUFFIXES, check_columns, write_output
from fiqa_trt.storage.writing import atomic, check_output


def check_rows(output: Path, *, restart: bool) -> None:
    """Raise what `write_rows` raises before it begins."""
    check_output(output, (".txt", *SUFFIXES))
    if output.exists() and not restart:
        raise already_there(output, other="OUT")


def write_rows(kept: Kept, output: Path, *, restart: bool = False) -> Delivered:
    """The kept paths (.txt) or rows (.parquet, .csv, .jsonl), in the order of the scores file.

    Raises:
        OutputError: it cannot be written, or cannot hold the columns.
        DifferentRun: it is there already.
        RunError: the disk is full or fails.
    """
    check_rows(output, restart=restart)
    if output.suffix.lower() == ".txt":
        with atomic(output) as temporary, temporary.open("w", encoding="utf-8") as file:
            for table in kept.tables():
                paths = table["path"].to_pylist()
                for path in paths:
                    if "\n" in path or "\r" in path:
                        raise OutputError(
                            f"a .txt cannot hold {path!r}, which has a line break; write .csv or .parquet"
                        )
                file.writelines(as_line(path) + "\n" for path in paths)
        return Delivered(str(output), len(kept))
    schema = check_columns(kept.schema, output)
    write_output(output, kept.described(schema), kept.tables(), len(kept))
    return Delivered(str(output), len(kept))
