"""What becomes of the images that a filter keeps: a list, rows, a folder of them, or tar shards."""

from __future__ import annotations

from pathlib import Path

from fiqa_trt.curation.delivery.common import Delivered
from fiqa_trt.curation.delivery.companions import Wish
from fiqa_trt.curation.delivery.folder import WAYS, check_folder, fill_folder, measure
from fiqa_trt.curation.delivery.plan import common_root
from fiqa_trt.curation.delivery.rows import check_rows, write_rows
from fiqa_trt.curation.delivery.shards import SHARD_SIZE, check_shards, shard_of, write_shards
from fiqa_trt.curation.delivery.undo import Undone, undo_move
from fiqa_trt.curation.select import Mask
from fiqa_trt.errors import OutputError
from fiqa_trt.progress import Report, silent
from fiqa_trt.scores.files import SUFFIXES

__all__ = [
    "SHARD_SIZE",
    "WAYS",
    "Delivered",
    "Undone",
    "common_root",
    "deliver",
    "fill_folder",
    "measure",
    "shard_of",
    "undo_move",
    "write_rows",
    "write_shards",
]


def deliver(
    scores: Path,
    mask: Mask,
    output: Path,
    way: str | None = None,
    *,
    root: str | None = None,
    shard_size: int = SHARD_SIZE,
    image_column: str | None = None,
    restart: bool = False,
    dry_run: bool = False,
    companions: str | None = None,
    update: bool = False,
    report: Report = silent,
) -> Delivered:
    """Deliver the kept images in the form that `output` asks for.

    Args:
        scores: a scores file.
        mask: its kept rows; without any, nothing is touched.
        output: .txt, .parquet, .csv or .jsonl for `write_rows`, .tar for `write_shards`; with a `way` the folder of
            `fill_folder`.
        way: one of WAYS, or None.
        root: see `fill_folder`.
        shard_size: images of a shard.
        image_column: of tables among the inputs; by default the one that the scores file records.
        restart: replace files that are there.
        dry_run: touch nothing; the result says what would be written.
        companions: `auto` or suffixes like `.txt,.json`: which of the files that go with an image are delivered along
            with it; None for none, but for images out of tars to tars, whose samples are delivered whole.
        update: see `fill_folder`.
        report: receives the images done.

    Raises:
        UsageError: `companions` is neither.
        OutputError: it cannot be told what `output` is to be, or it cannot be written.
        FiqaError: as the functions that it calls.
    """
    suffix = output.suffix.lower()
    wish = None if companions is None else Wish.parse(companions)
    if output.exists() and output.samefile(scores):
        raise OutputError(f"{output} holds the scores that are being filtered; choose another OUT")
    if not mask.any():
        return Delivered("", 0)
    if way is not None:
        if dry_run:
            fill = check_folder(scores, mask, output, way, root, image_column, wish, update=update)
            return measure(scores, mask, way, root, image_column, wish, fill=fill)
        return fill_folder(scores, mask, output, way, root, image_column, report, wish, update=update)
    if root is not None:
        raise OutputError(f"--root {root}: it goes with --copy, --hardlink, --symlink or --move")
    if update:
        raise OutputError("--update goes with --copy, --hardlink, --symlink or --move; --restart replaces a file")
    if suffix == ".tar":
        if dry_run:
            check_shards(scores, mask, output, restart=restart)
            return measure(scores, mask, image_column=image_column, companions=wish, samples=True)
        return write_shards(scores, mask, output, shard_size, image_column, report, restart=restart, companions=wish)
    if wish is not None:
        raise OutputError("--companions goes with a folder or a .tar; a list names only the images")
    if suffix in (".txt", *SUFFIXES):
        if dry_run:
            check_rows(scores, mask, output, restart=restart)
            return Delivered("", int(mask.sum()))
        return write_rows(scores, mask, output, restart=restart)
    raise OutputError(
        f"cannot tell what {output} is to be: name it .txt, {', '.join(SUFFIXES)} or .tar, or give --copy, --hardlink, "
        "--symlink or --move for a folder"
    )
