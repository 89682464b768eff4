"""What becomes of the images that a filter keeps: a list, rows, a folder of them, or tar shards.

A list or rows appear complete or not at all. A folder fills file by file, each complete when it has its name, and a
call that was stopped goes on where it was; nothing that is there is ever overwritten. Shards appear one after the
other, each complete.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from fiqa_trt.errors import DifferentRun, OutputError, storage_error
from fiqa_trt.filtering import Mask, kept_rows
from fiqa_trt.parquet import (
    SUFFIXES,
    atomic,
    check_columns,
    check_output,
    output_metadata,
    read_output,
    with_metadata,
    write_output,
)
from fiqa_trt.progress import Progress
from fiqa_trt.reading import read_file
from fiqa_trt.records import ImageError, open_path
from fiqa_trt.shards import DEFAULT_COLUMN, SEPARATOR, ShardReader, locate
from fiqa_trt.sources import SUFFIXES as IMAGE_SUFFIXES
from fiqa_trt.spec import digest

if TYPE_CHECKING:
    pass

SHARD_SIZE = 10_000
WAYS = ("copy", "hardlink", "symlink", "move")
_NOTE = ".fiqa_trt_filter.json"  # in a folder that is being filled: what with
_BLOCK = 1 << 20

Report = Callable[[Progress], None]


@dataclasses.dataclass(frozen=True)
class Delivered:
    """What was delivered.

    Attributes:
        output: where to.
        written: files, rows or members.
        already: files that an earlier call had delivered.
        skipped: images that could not be delivered, by reason.
        examples: a line for each of the first of them.
        bytes: of the images, where they were looked at.
    """

    output: str
    written: int
    already: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: list[str] = dataclasses.field(default_factory=list)
    bytes: int = 0


class _Skips:
    """Counts what could not be delivered."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.examples = list[str]()

    def add(self, path: str, reason: str) -> None:
        """Count one."""
        self.reasons[reason] += 1
        if len(self.examples) < 20:
            self.examples.append(f"{path}: {reason}")


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
    report: Report = lambda progress: None,
) -> Delivered:
    """Deliver the kept images in the form that `output` asks for.

    Args:
        scores: a scores file.
        mask: its kept rows.
        output: .txt, .parquet, .csv or .jsonl for `write_rows`, .tar for `write_shards`; with a `way` the folder of
            `fill_folder`.
        way: one of WAYS, or None.
        root: see `fill_folder`.
        shard_size: images of a shard.
        image_column: of tables among the inputs.
        restart: replace files that are there.
        report: receives the images done.

    Raises:
        OutputError: it cannot be told what `output` is to be, or it cannot be written.
        FiqaError: as the functions that it calls.
    """
    suffix = output.suffix.lower()
    if output.exists() and output.samefile(scores):
        raise OutputError(f"{output} holds the scores that are being filtered; choose another OUT")
    if way is not None:
        return fill_folder(scores, mask, output, way, root, image_column, report)
    if root is not None:
        raise OutputError(f"--root {root}: it goes with --copy, --hardlink, --symlink or --move")
    if suffix == ".tar":
        return write_shards(scores, mask, output, shard_size, image_column, report, restart=restart)
    if suffix in (".txt", *SUFFIXES):
        return write_rows(scores, mask, output, restart=restart)
    raise OutputError(
        f"cannot tell what {output} is to be: name it .txt, {', '.join(SUFFIXES)} or .tar, or give --copy, --hardlink, "
        "--symlink or --move for a folder"
    )


def write_rows(scores: Path, mask: Mask, output: Path, *, restart: bool = False) -> Delivered:
    """The kept paths (.txt) or rows (.parquet, .csv, .jsonl), in the order of the scores file.

    Raises:
        OutputError: it cannot be written, or cannot hold the columns.
        DifferentRun: it is there already.
        RunError: the disk is full or fails.
    """
    text = output.suffix.lower() == ".txt"
    check_output(output, (".txt", *SUFFIXES))
    if output.exists() and not restart:
        raise DifferentRun(f"{output} exists already; --restart replaces it, or choose another OUT")
    count = int(mask.sum())
    if text:
        with atomic(output) as temporary, temporary.open("w", encoding="utf-8") as file:
            for table in kept_rows(scores, mask):
                paths = table["path"].to_pylist()
                for path in paths:
                    if "\n" in path or "\r" in path:
                        raise OutputError(
                            f"a .txt cannot hold {path!r}, which has a line break; write .csv or .parquet"
                        )
                file.writelines(path + "\n" for path in paths)
        return Delivered(str(output), count)
    schema = next(iter(read_output(scores, ["path", "score", "status"]))).schema
    check_columns(schema, output)
    metadata = output_metadata(scores)
    if metadata is not None:
        schema = with_metadata(schema, {**metadata, "filtered_from": str(scores)})
    write_output(output, schema, kept_rows(scores, mask), count)
    return Delivered(str(output), count)


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image to deliver: its path as recorded, the file and the key in it, and where it goes below the output."""

    path: str
    file: str
    key: str | None
    target: str


def _images(scores: Path, mask: Mask, root: str | None, skips: _Skips) -> Iterator[_Image]:
    """The kept images with their places below the root; those outside it are skipped."""
    base = os.path.abspath(root) if root is not None else common_root(scores, mask)
    taken = set[bytes]()
    for table in kept_rows(scores, mask):
        for path in table["path"].to_pylist():
            file, key = locate(path)
            whole = os.path.normpath(os.path.abspath(file))
            if key is not None:
                whole = os.path.join(whole, *_parts(key))
            target = os.path.relpath(whole, base)
            if target.startswith("..") or os.path.isabs(target) or target == ".":
                skips.add(path, f"not below --root {base}")
                continue
            name = hashlib.blake2b(os.fsencode(target), digest_size=12).digest()
            if name in taken:
                skips.add(path, "another image has its place in the output")
                continue
            taken.add(name)
            yield _Image(path, file, key, target)


def _parts(key: str) -> list[str]:
    """A member's name as a relative path that leads nowhere else; `a.jpg::2` becomes `a::2.jpg`."""
    name, separator, number = key.rpartition(SEPARATOR)
    if separator and number.isdigit():
        stem, suffix = os.path.splitext(name)
        key = stem + separator + number + suffix
    parts = [part for part in key.split("/") if part not in ("", ".", "..")]
    return parts or ["_"]


def image_suffix(data: bytes) -> str:
    """What a file with these bytes is named; `.jpg` where that cannot be told."""
    kinds = {b"\x89PNG": ".png", b"GIF8": ".gif", b"BM": ".bmp", b"II*\0": ".tif", b"MM\0*": ".tif"}
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for start, suffix in kinds.items() if data.startswith(start)), ".jpg")


def common_root(scores: Path, mask: Mask) -> str:
    """The deepest folder that holds every kept image, absolute."""
    found: str | None = None
    for table in kept_rows(scores, mask):
        folders = {os.path.dirname(os.path.abspath(locate(path)[0])) for path in table["path"].to_pylist()}
        found = os.path.commonpath([*folders, found] if found else list(folders))
    return found or os.getcwd()


def measure(scores: Path, mask: Mask, root: str | None) -> Delivered:
    """What a delivery would write: counts and bytes, nothing touched."""
    skips, reader, count, total = _Skips(), ShardReader(), 0, 0
    for image in _images(scores, mask, root, skips):
        try:
            size = os.stat(image.file).st_size if image.key is None else len(reader.read(image.file, image.key))
        except (OSError, ImageError) as exc:
            skips.add(image.path, _reason(exc))
            continue
        count, total = count + 1, total + size
    reader.close()
    return Delivered("", count, 0, dict(skips.reasons), skips.examples, total)


def fill_folder(
    scores: Path,
    mask: Mask,
    output: Path,
    way: str,
    root: str | None = None,
    image_column: str | None = None,
    report: Report = lambda progress: None,
) -> Delivered:
    """Put the kept images into a folder, their tree below `root` preserved.

    Args:
        scores: a scores file.
        mask: its kept rows.
        output: a folder that does not exist, or is empty, or was being filled by the same call.
        way: one of WAYS. A move across devices copies, compares and only then removes.
        root: where the tree starts; by default the deepest folder that holds all.
        image_column: of tables among the inputs.
        report: receives the images done.

    Raises:
        OutputError: the folder is not empty, cannot be written, or lies where the images come from.
        RunError: the disk is full or fails; the same call goes on.
    """
    skips, count = _Skips(), int(mask.sum())
    written = already = size = 0
    images = _images(scores, mask, root, skips)
    plan = digest([way, root, count, hashlib.sha256(mask.tobytes()).hexdigest(), _stamp(scores)])
    _take_over(output, plan, scores, mask)
    reader = ShardReader(image_column or DEFAULT_COLUMN)
    try:
        for number, image in enumerate(images, 1):
            target = output / image.target
            try:
                if image.key is not None and not image.target.lower().endswith(IMAGE_SUFFIXES):
                    target = target.with_name(target.name + image_suffix(reader.read(image.file, image.key)))
                if os.path.lexists(target):
                    already += 1
                    if way == "move" and image.key is None:
                        _end_move(image.file, target)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                size += _deliver(image, target, way, reader)
                written += 1
            except ImageError as exc:
                skips.add(image.path, exc.outcome.status.value)
            except FileNotFoundError:
                skips.add(image.path, "missing")
            except _Unlinkable as exc:
                skips.add(image.path, str(exc))
            except (FileExistsError, NotADirectoryError):  # a member that is another one's folder
                skips.add(image.path, "another image has its place in the output")
            except OSError as exc:
                raise storage_error(target, exc) from exc
            finally:
                report(Progress(number, count, sum(skips.reasons.values())))
    finally:
        reader.close()
    (output / _NOTE).unlink()
    return Delivered(str(output), written, already, dict(skips.reasons), skips.examples, size)


def _stamp(scores: Path) -> list[int]:
    info = scores.stat()
    return [info.st_size, info.st_mtime_ns]


def _take_over(output: Path, plan: str, scores: Path, mask: Mask) -> None:
    """Make the folder, or go on with what the same call left there."""
    inside = os.path.realpath(output)
    for table in kept_rows(scores, mask):
        for path in table["path"].to_pylist():
            if os.path.realpath(locate(path)[0]).startswith(inside + os.sep):
                raise OutputError(f"{output} holds images that are to be delivered ({path}); choose another OUT")
    note = output / _NOTE
    try:
        output.mkdir(exist_ok=True)
        if note.exists():
            if note.read_text() != plan:
                raise OutputError(f"{output} was being filled by another call; empty it or choose another OUT")
            return
        if any(output.iterdir()):
            raise OutputError(f"{output} is not empty, and nothing is ever overwritten; choose another OUT")
        with atomic(note) as temporary:
            temporary.write_text(plan)
    except OSError as exc:
        raise OutputError(f"cannot write {output}: {exc.strerror}") from exc


class _Unlinkable(Exception):
    """An image that cannot be delivered in this way."""


def _deliver(image: _Image, target: Path, way: str, reader: ShardReader) -> int:
    """Deliver one image; returns its bytes. The name appears when the file is complete."""
    temporary = target.with_name(f".{target.name[-200:]}.tmp")
    if image.key is not None:
        if way != "copy":
            raise _Unlinkable(f"inside a shard, so it can only be copied, not --{way}")
        data = reader.read(image.file, image.key)
        temporary.write_bytes(data)
        temporary.rename(target)
        return len(data)
    info = os.stat(image.file)
    if way == "symlink":
        target.symlink_to(os.path.abspath(image.file))
    elif way == "hardlink":
        try:
            os.link(os.path.realpath(image.file), target)
        except OSError as exc:
            if exc.errno in (18, 1, 95):  # EXDEV, EPERM, EOPNOTSUPP
                raise _Unlinkable("on another file system, so it cannot be hard-linked: --copy or --symlink") from exc
            raise
    elif way == "copy":
        shutil.copy2(image.file, temporary)
        temporary.rename(target)
    else:
        _move(image.file, temporary, target)
    return info.st_size


def _move(source: str, temporary: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)  # unlike a rename, it never replaces
    except OSError:
        shutil.copy2(source, temporary, follow_symlinks=False)
        if not os.path.islink(source):
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            if _content(temporary) != _content(Path(source)):
                temporary.unlink()
                raise _Unlinkable("its copy is not what it is; it was left where it is") from None
        temporary.rename(target)
    os.unlink(source)


def _end_move(source: str, target: Path) -> None:
    """Remove the source of a move that was stopped when its target was complete."""
    if os.path.lexists(source) and (os.path.samefile(source, target) or _content(Path(source)) == _content(target)):
        os.unlink(source)


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        found = hashlib.sha256()
        while block := file.read(_BLOCK):
            found.update(block)
    return found.digest()


def _reason(error: OSError | ImageError) -> str:
    return error.outcome.status.value if isinstance(error, ImageError) else (error.strerror or str(error)).lower()


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
        restart: replace shards that are there.

    Raises:
        DifferentRun: shards of that name are there already.
        OutputError: they cannot be written there.
        RunError: the disk is full or fails.
    """
    check_output(output, (".tar",))
    present = sorted(output.parent.glob(f"{output.stem}-??????.tar"))
    if present and not restart:
        raise DifferentRun(f"{present[0]} exists already; --restart replaces it, or choose another OUT")
    for path in present:
        path.unlink()
    skips, reader, total, done, count = _Skips(), ShardReader(image_column or DEFAULT_COLUMN), 0, 0, int(mask.sum())

    def members() -> Iterator[tuple[dict[str, object], bytes]]:
        for table in kept_rows(scores, mask):
            for row in table.to_pylist():
                file, key = locate(row["path"])
                try:
                    yield row, read_file(file) if key is None else reader.read(file, key)
                except ImageError as exc:
                    skips.add(row["path"], exc.outcome.status.value)

    try:
        for number, part in enumerate(_split(members(), shard_size)):
            path = output.with_name(f"{output.stem}-{number:06}.tar")
            with atomic(path) as temporary, tarfile.open(temporary, "w") as archive:
                for row, data in part:
                    _add(archive, done, row, data)
                    done, total = done + 1, total + len(data)
                    report(Progress(done, count, sum(skips.reasons.values())))
    finally:
        reader.close()
    written = str(output.with_name(f"{output.stem}-*.tar"))
    return Delivered(written, done, 0, dict(skips.reasons), skips.examples, total)


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
    text = json.dumps(row, default=str, ensure_ascii=False).encode()
    for name, content in ((f"{number:09}{suffix}", data), (f"{number:09}.json", text)):
        entry = tarfile.TarInfo(name)
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
