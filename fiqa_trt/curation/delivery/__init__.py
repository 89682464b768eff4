"""What becomes of the images that a filter keeps: a list, rows, a folder of them, or tar shards."""

from __future__ import annotations

from pathlib import Path

from fiqa_trt.curation.delivery.common import Delivered
from fiqa_trt.curation.delivery.companions import Wish
from fiqa_trt.curation.delivery.folder import WAYS, check_folder, fill_folder, measure
from fiqa_trt.curation.delivery.prefix import check_prefix, fill_prefix
from fiqa_trt.curation.delivery.rows import check_rows, write_rows
from fiqa_trt.curation.delivery.shards import SHARD_SIZE, check_shards, shard_of, write_shards
from fiqa_trt.curation.delivery.undo import Undone, undo_move
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import OutputError
from fiqa_trt.progress import Report, silent
from fiqa_trt.scores.files import SUFFIXES
from fiqa_trt.storage.places import Place, Uri, is_same

__all__ = [
    "SHARD_SIZE",
    "WAYS",
    "Delivered",
    "Undone",
    "deliver",
    "fill_folder",
    "measure",
    "shard_of",
    "undo_move",
    "write_rows",
    "write_shards",
]


def deliver(
    kept: Kept,
    output: Place,
    way: str | None = None,
    *,
    root: str | None = None,
    shard_size: int = SHARD_SIZE,
    restart: bool = False,
    dry_run: bool = False,
    companions: str | None = None,
    update: bool = False,
    report: Report = silent,
) -> Delivered:
    """Deliver the kept images in the form that `output` asks for.

    Args:
        kept: rows of a scores file; without any, nothing is touched.
        output: .txt, .parquet, .csv or .jsonl for `write_rows`, .tar for `write_shards`; with a `way` the folder of
            `fill_folder`.
        way: one of WAYS, or None.
        root: see `fill_folder`.
        shard_size: images of a shard.
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
    wish = None if companions is None else Wish.parse(companions)
    if is_same(output, kept.scores):
        raise OutputError(f"{output} holds the scores that are being filtered; choose another OUT")
    if not len(kept):
        return Delivered("", 0)
    if way is not None:
        if not isinstance(output, Path):
            return _below_prefix(kept, output, way, root, wish, report, dry_run=dry_run, update=update)
        if dry_run:
            return measure(kept, way, root, wish, fill=check_folder(kept, output, way, root, wish, update=update))
        return fill_folder(kept, output, way, root, report, wish, update=update)
    if root is not None:
        raise OutputError(f"--root {root}: it goes with --copy, --hardlink, --symlink or --move")
    if update:
        raise OutputError("--update goes with --copy, --hardlink, --symlink or --move; --restart replaces a file")
    return _as_file(kept, output, shard_size, wish, report, restart=restart, dry_run=dry_run)


def _below_prefix(
    kept: Kept,
    output: Uri,
    way: str,
    root: str | None,
    wish: Wish | None,
    report: Report,
    *,
    dry_run: bool,
    update: bool,
) -> Delivered:
    """As objects of a store."""
    if way != "copy":
        raise OutputError(f"{output}: in an object store there is only --copy, not --{way}")
    if wish is not None or update:
        option = "--update" if update else "--companions"
        raise OutputError(f"{option} is for folders of this machine, and {output} is none; leave it out")
    if dry_run:
        check_prefix(kept, output, root)
        return measure(kept, way, root)
    return fill_prefix(kept, output, root, report)


def _as_file(
    kept: Kept, output: Place, shard_size: int, wish: Wish | None, report: Report, *, restart: bool, dry_run: bool
) -> Delivered:
    """By the output's suffix."""
    suffix = output.suffix.lower()
    if suffix == ".tar":
        if dry_run:
            check_shards(kept, output, restart=restart)
            return measure(kept, companions=wish, samples=True)
        return write_shards(kept, output, shard_size, report, restart=restart, companions=wish)
    if wish is not None:
        raise OutputError("--companions goes with a folder or a .tar; a list names only the images")
    if suffix in (".txt", *SUFFIXES):
        if dry_run:
            check_rows(kept, output, restart=restart)
            return Delivered("", len(kept))
        return write_rows(kept, output, restart=restart)
    raise OutputError(
        f"cannot tell what {output} is to be: name it .txt, {', '.join(SUFFIXES)} or .tar, or give --copy, --hardlink, "
        "--symlink or --move for a folder"
    )
