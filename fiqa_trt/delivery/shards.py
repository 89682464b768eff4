"""The kept images as WebDataset tar shards, which appear one after the other, each complete."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from fiqa_trt.delivery.common import Delivered, Report, Skips, image_suffix
from fiqa_trt.errors import DifferentRun, OutputError
from fiqa_trt.filtering import Mask, kept_rows
from fiqa_trt.outputs import check_columns, hold, read_schema, to_json
from fiqa_trt.progress import Progress
from fiqa_trt.records import ImageError, open_path
from fiqa_trt.shards import DEFAULT_COLUMN, ShardReader, locate, read_recorded
from fiqa_trt.sources import SUFFIXES as IMAGE_SUFFIXES
from fiqa_trt.storage import atomic, check_output

SHARD_SIZE = 10_000
_ROWS = ".jsonl"  # the form of the rows beside the images


def write_shards(
    scores: Path,
    mask: Mask,
    output: Path,
    shard_size: int = SHARD_SIZE,
    image_column: str | None = None,
    report: Report = lambda progress: None,
    *,
    restart: bool = False,
) -> Delivered:
    """The kept images as WebDataset shards: `faces.tar` becomes `faces-000000.tar`, `faces-000001.tar` and so on.

    Each image is a pair of members, `000000017.jpg` with its own suffix and bytes, and `000000017.json` with its row.

    Args:
        scores: a scores file.
        mask: its kept rows.
        output: ends in .tar.
        shard_size: images of a shard.
        image_column: of tables among the inputs.
        report: receives the images done.
        restart: replace shards of that name that are there; the ones beyond the last new one go when that is written.

    Raises:
        DifferentRun: shards of that name are there already.
        OutputError: they cannot be written there, cannot hold the columns, or hold images that are to be delivered.
        RunError: the disk is full or fails.
    """
    present = check_shards(scores, mask, output, restart=restart)
    skips, reader, total, done, count = Skips(), ShardReader(image_column or DEFAULT_COLUMN), 0, 0, int(mask.sum())

    def members() -> Iterator[tuple[dict[str, object], bytes]]:
        for table in kept_rows(scores, mask):
            for row in hold(table, _ROWS).to_pylist():
                blob = read_recorded(row["path"], reader)
                if isinstance(blob, ImageError):
                    skips.add(row["path"], blob.outcome.status.value)
                else:
                    yield row, blob

    made = set[Path]()
    try:
        for number, part in enumerate(_split(members(), shard_size)):
            path = output.with_name(f"{output.stem}-{number:06}.tar")
            made.add(path)
            with atomic(path) as temporary, tarfile.open(temporary, "w") as archive:
                for row, data in part:
                    _add(archive, done, row, data)
                    done, total = done + 1, total + len(data)
                    report(Progress(done, count, sum(skips.reasons.values())))
    finally:
        reader.close()
    for path in present:
        if path not in made:
            path.unlink()
    written = str(output.with_name(f"{output.stem}-*.tar"))
    return Delivered(written, done, 0, dict(skips.reasons), skips.examples, total)


def check_shards(scores: Path, mask: Mask, output: Path, *, restart: bool) -> list[Path]:
    """Shards that `write_shards` would replace. Raises what it raises before it begins."""
    check_output(output, (".tar",))
    check_columns(read_schema(scores, ["path", "score", "status"]), output, _ROWS)
    pattern = re.compile(re.escape(output.stem) + r"-[0-9]{6,}\.tar")
    present = sorted(path for path in output.parent.iterdir() if pattern.fullmatch(path.name))
    if present:
        _refuse_sources(scores, mask, present)
    if present and not restart:
        raise DifferentRun(f"{present[0]} exists already; --restart replaces it, or choose another OUT")
    return present


def _refuse_sources(scores: Path, mask: Mask, present: list[Path]) -> None:
    """Raise OutputError if an image that is to be delivered lies in one of the shards that would be replaced."""
    theirs = {os.path.realpath(path) for path in present}
    for table in kept_rows(scores, mask):
        for path in table["path"].to_pylist():
            if os.path.realpath(locate(path)[0]) in theirs:
                raise OutputError(f"{path} is to be delivered, and would be replaced; choose another OUT")


def _split(
    items: Iterable[tuple[dict[str, object], bytes]], size: int
) -> Iterator[Iterator[tuple[dict[str, object], bytes]]]:
    """Iterators over `size` items each, which must be used up in turn."""
    iterator = iter(items)
    for first in iterator:

        def part(head: tuple[dict[str, object], bytes] = first) -> Iterator[tuple[dict[str, object], bytes]]:
            yield head
            for _, item in zip(range(size - 1), iterator, strict=False):
                yield item

        yield part()


def _add(archive: tarfile.TarFile, number: int, row: dict[str, object], data: bytes) -> None:
    suffix = os.path.splitext(open_path(str(row["path"])))[1].lower()
    suffix = suffix if suffix in IMAGE_SUFFIXES else image_suffix(data)
    text = to_json(row).encode()
    for name, content in ((f"{number:09}{suffix}", data), (f"{number:09}.json", text)):
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
