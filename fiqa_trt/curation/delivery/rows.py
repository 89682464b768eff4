"""The kept images as a list of paths, or as rows. It appears complete or not at all."""

from __future__ import annotations

from pathlib import Path

from fiqa_trt.curation.delivery.common import Delivered
from fiqa_trt.curation.delivery.plan import ROOT, common_root
from fiqa_trt.curation.select import Mask, kept_rows
from fiqa_trt.errors import DifferentRun, OutputError
from fiqa_trt.inputs.lists import as_line
from fiqa_trt.scores.files import SUFFIXES, check_columns, output_metadata, read_schema, with_metadata, write_output
from fiqa_trt.storage.writing import atomic, check_output


def check_rows(scores: Path, mask: Mask, output: Path, *, restart: bool) -> None:
    """Raise what `write_rows` raises before it begins."""
    check_output(output, (".txt", *SUFFIXES))
    if output.exists() and not restart:
        raise DifferentRun(f"{output} exists already; --restart replaces it, or choose another OUT")
    if output.suffix.lower() == ".txt":
        _check_lines(scores, mask)
    else:
        check_columns(read_schema(scores, ["path", "score", "status"]), output)


def _check_lines(scores: Path, mask: Mask) -> None:
    """Raise OutputError for a path that is more than a line."""
    import pyarrow.compute as pc

    for table in kept_rows(scores, mask):
        broken = table["path"].filter(pc.match_substring_regex(table["path"], r"[\r\n]"))
        if len(broken):
            raise OutputError(
                f"a .txt cannot hold {broken[0].as_py()!r}, which has a line break; write .csv or .parquet"
            )


def write_rows(scores: Path, mask: Mask, output: Path, *, restart: bool = False) -> Delivered:
    """The kept paths (.txt) or rows (.parquet, .csv, .jsonl), in the order of the scores file.

    Raises:
        OutputError: it cannot be written, or cannot hold the columns.
        DifferentRun: it is there already.
        RunError: the disk is full or fails.
    """
    check_rows(scores, mask, output, restart=restart)
    count = int(mask.sum())
    if output.suffix.lower() == ".txt":
        with atomic(output) as temporary, temporary.open("w", encoding="utf-8") as file:
            for table in kept_rows(scores, mask):
                file.writelines(as_line(path) + "\n" for path in table["path"].to_pylist())
        return Delivered(str(output), count)
    schema = check_columns(read_schema(scores, ["path", "score", "status"]), output)
    metadata = output_metadata(scores)
    if metadata is not None:
        schema = with_metadata(schema, {**metadata, "filtered_from": str(scores), ROOT: common_root(scores)})
    write_output(output, schema, kept_rows(scores, mask), count)
    return Delivered(str(output), count)
