"""The kept images as a folder, their tree preserved: copies, links, or the images themselves.

It fills file by file, each complete when it has its name, and a call that was stopped goes on where it was. Nothing
that is there is ever overwritten.
"""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from fiqa_trt.delivery.common import Delivered, LeftBehind, Report, Skips, image_suffix
from fiqa_trt.delivery.companions import Companions, Wish
from fiqa_trt.errors import InputError, OutputError, storage_error
from fiqa_trt.filtering import Mask, kept_rows
from fiqa_trt.formats import SUFFIXES as IMAGE_SUFFIXES
from fiqa_trt.outputs import atomic
from fiqa_trt.progress import Progress
from fiqa_trt.records import ImageError, Status, record_path
from fiqa_trt.shards import DEFAULT_COLUMN, SEPARATOR, ShardReader, locate
from fiqa_trt.spec import digest

WAYS = ("copy", "hardlink", "symlink", "move")
_NOTE = ".fiqa_trt_filter.json"  # in a folder that is being filled: what with
_BLOCK = 1 << 20


@dataclasses.dataclass(frozen=True)
class _Image:
    """An image to deliver, or a companion of one.

    Attributes:
        path: as recorded.
        file: that it is, or that it is in.
        key: of it within a shard.
        target: where it goes below the output.
        companion: goes along with an image.
    """

    path: str
    file: str
    key: str | None
    target: str
    companion: bool = False


class _Places:
    """Places of the output that an image has been given."""

    def __init__(self) -> None:
        self._taken = set[bytes]()

    def take(self, target: str) -> bool:
        """Give a place to an image, unless another has it."""
        name, before = hashlib.blake2b(os.fsencode(target), digest_size=12).digest(), len(self._taken)
        self._taken.add(name)
        return len(self._taken) > before


_OCCUPIED = "another image has its place in the output"


class _Plan:
    """What is to be delivered below the folder `base`, and the account of what is not."""

    def __init__(
        self, scores: Path, mask: Mask, base: str, reader: ShardReader, wish: Wish | None, samples: bool = False
    ) -> None:
        self.skips, self.places, self.left_behind = Skips(), _Places(), LeftBehind()
        self._scores, self._mask, self._base = scores, mask, base
        self._companions, self._wish = Companions(reader), wish
        self._wish_in_tars = Wish() if samples and wish is None else wish

    def __iter__(self) -> Iterator[_Image]:
        """The kept images, each followed by its companions; those outside the base are skipped."""
        for table in kept_rows(self._scores, self._mask):
            for path in table["path"].to_pylist():
                file, key = locate(path)
                target = _target(file, key, self._base)
                if target.split(os.sep, 1)[0] == os.pardir or target == os.curdir:
                    self.skips.add(path, f"not below --root {self._base}")
                    continue
                companions = list(self._companions.of(file, key, self._wish or Wish()))
                if self.places.take(target):
                    yield _Image(path, file, key, target)
                else:
                    self.skips.add(path, _OCCUPIED)
                    continue
                if (self._wish if key is None else self._wish_in_tars) is None:
                    self.left_behind.add(companions)
                    continue
                for each in companions:
                    beside = _target(each.file, each.key, self._base)
                    # It may be a kept image itself, or go along with two of them.
                    if self.places.take(beside):
                        recorded = record_path(each.file + ("" if each.key is None else SEPARATOR + each.key))
                        yield _Image(recorded, each.file, each.key, beside, companion=True)


def _target(file: str, key: str | None, base: str) -> str:
    """Where a file, or a member of a shard, goes; relative to the output."""
    whole = os.path.normpath(os.path.abspath(file))
    return os.path.relpath(whole if key is None else os.path.join(whole, *_parts(key)), base)


def _parts(key: str) -> list[str]:
    """A member's name as a relative path that leads nowhere else; `a.jpg::2` becomes `a::2.jpg`."""
    name, separator, number = key.rpartition(SEPARATOR)
    if separator and number.isdigit():
        stem, suffix = os.path.splitext(name)
        key = stem + separator + number + suffix
    parts = [part for part in key.split("/") if part not in ("", ".", "..")]
    return parts or ["_"]


def _base(scores: Path, mask: Mask, root: str | None) -> str:
    """Where the tree that is kept starts, absolute. Raises InputError."""
    if root is None:
        return common_root(scores, mask)
    if not os.path.isdir(root):
        raise InputError(f"--root {root}: no such folder")
    return os.path.abspath(root)


def common_root(scores: Path, mask: Mask) -> str:
    """The deepest folder that holds every kept image, absolute."""
    found: str | None = None
    for table in kept_rows(scores, mask):
        folders = {os.path.dirname(os.path.abspath(locate(path)[0])) for path in table["path"].to_pylist()}
        found = os.path.commonpath([*folders, found] if found else list(folders))
    return found or os.getcwd()


def measure(
    scores: Path,
    mask: Mask,
    way: str | None = None,
    root: str | None = None,
    image_column: str | None = None,
    companions: Wish | None = None,
    samples: bool = False,
) -> Delivered:
    """What a delivery would write: counts and bytes, nothing touched. Arguments and errors as of `fill_folder`.

    `samples`: images out of tars take their samples along in any case, as `write_shards` has it.
    """
    reader, account = ShardReader(image_column or DEFAULT_COLUMN), _Account()
    plan = _Plan(scores, mask, _base(scores, mask, root), reader, companions, samples)
    for image in plan:
        try:
            if image.key is not None and way not in (None, "copy"):
                plan.skips.add(image.path, _INSIDE.format(way))
                continue
            account.add(image, os.stat(image.file).st_size if image.key is None else len(_data(image, reader)))
        except (OSError, ImageError) as exc:
            plan.skips.add(image.path, _reason(exc))
    reader.close()
    return account.of("", plan)


@dataclasses.dataclass
class _Account:
    """What was written."""

    written: int = 0
    already: int = 0
    companions: int = 0
    bytes: int = 0

    def add(self, image: _Image, size: int) -> None:
        self.written, self.companions = self.written + (not image.companion), self.companions + image.companion
        self.bytes += size

    def of(self, output: str, plan: _Plan) -> Delivered:
        """With what was not."""
        done = (output, self.written, self.already, dict(plan.skips.reasons), plan.skips.examples)
        return Delivered(*done, self.bytes, self.companions, plan.left_behind.images, plan.left_behind.kinds())


def fill_folder(
    scores: Path,
    mask: Mask,
    output: Path,
    way: str,
    root: str | None = None,
    image_column: str | None = None,
    report: Report = lambda progress: None,
    companions: Wish | None = None,
) -> Delivered:
    """Put the kept images into a folder, their tree below `root` preserved.

    Args:
        scores: a scores file.
        mask: its kept rows.
        output: a folder that does not exist, or is empty, or was being filled by the same call.
        way: one of WAYS. A move across devices copies, compares and only then removes; of a link, what it leads to is
            copied and the link removed.
        root: where the tree starts; by default the deepest folder that holds all.
        image_column: of tables among the inputs.
        report: receives the images done.
        companions: which of the files that go with the images are delivered as well; None for none.

    Raises:
        InputError: there is no folder `root`.
        OutputError: the folder is not empty, cannot be written, or lies where the images come from.
        RunError: the disk is full or fails; the same call goes on.
    """
    base, account, done, count = _base(scores, mask, root), _Account(), 0, int(mask.sum())
    note = check_folder(scores, mask, output, way, root, companions)
    try:
        output.mkdir(exist_ok=True)
        with atomic(output / _NOTE) as temporary:
            temporary.write_text(note)
    except OSError as exc:
        raise OutputError(f"cannot write {output}: {exc.strerror}") from exc
    reader, device = ShardReader(image_column or DEFAULT_COLUMN), output.stat().st_dev
    plan = _Plan(scores, mask, base, reader, companions)
    try:
        for image in plan:
            target = output / image.target
            try:
                if image.key is not None and not image.companion and not image.target.lower().endswith(IMAGE_SUFFIXES):
                    suffix = image_suffix(reader.read(image.file, image.key))
                    target = target.with_name(target.name + suffix)
                    if not plan.places.take(image.target + suffix):
                        plan.skips.add(image.path, _OCCUPIED)
                        continue
                if os.path.lexists(target):
                    account.already += not image.companion
                    if way == "move" and image.key is None:
                        _end_move(image.file, target)
                    continue
                account.add(image, _deliver(image, target, way, reader, device))
            except ImageError as exc:
                plan.skips.add(image.path, exc.outcome.status.value)
            except FileNotFoundError:
                plan.skips.add(image.path, "missing")
            except _Unlinkable as exc:
                plan.skips.add(image.path, str(exc))
            except (FileExistsError, NotADirectoryError):  # a member that is another one's folder
                plan.skips.add(image.path, _OCCUPIED)
            except OSError as exc:
                if not _of_source(exc, image.file):
                    raise storage_error(target, exc) from exc
                plan.skips.add(image.path, _reason(exc))
            finally:
                done += not image.companion
                report(Progress(done, count, sum(plan.skips.reasons.values())))
    finally:
        reader.close()
    (output / _NOTE).unlink()
    return account.of(str(output), plan)


def _stamp(scores: Path) -> list[int]:
    info = scores.stat()
    return [info.st_size, info.st_mtime_ns]


def check_folder(
    scores: Path, mask: Mask, output: Path, way: str, root: str | None, companions: Wish | None = None
) -> str:
    """A digest of all that `fill_folder` is to do. Raises what it raises before it begins."""
    along = companions and companions.suffixes
    plan = digest([way, root, along, int(mask.sum()), hashlib.sha256(mask.tobytes()).hexdigest(), _stamp(scores)])
    inside = os.path.realpath(output)
    for table in kept_rows(scores, mask):
        for path in table["path"].to_pylist():
            if os.path.realpath(locate(path)[0]).startswith(inside + os.sep):
                raise OutputError(f"{output} holds images that are to be delivered ({path}); choose another OUT")
    note = output / _NOTE
    try:
        if note.exists() and note.read_text() != plan:
            raise OutputError(f"{output} was being filled by another call; empty it or choose another OUT")
        if output.exists() and not note.exists() and any(output.iterdir()):
            raise OutputError(f"{output} is not empty, and nothing is ever overwritten; choose another OUT")
    except OSError as exc:
        raise OutputError(f"cannot write {output}: {exc.strerror}") from exc
    return plan


def _of_source(error: OSError, source: str) -> bool:
    """Whether an operation failed for what is read, not for where it goes."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # which shutil reports for the source as well
    return error.filename is not None and os.fspath(error.filename) == source and error.errno not in full


class _Unlinkable(Exception):
    """An image that cannot be delivered in this way."""


_INSIDE = "inside a shard, so it can only be copied, not --{}"
_ELSEWHERE = "on another file system, so it cannot be hard-linked: --copy or --symlink"


def _data(image: _Image, reader: ShardReader) -> bytes:
    """Bytes of a member; a companion may be empty. Raises ImageError."""
    try:
        return reader.read(image.file, image.key or "")
    except ImageError as exc:
        if image.companion and exc.outcome.status is Status.EMPTY:
            return b""
        raise


def _deliver(image: _Image, target: Path, way: str, reader: ShardReader, device: int) -> int:
    """Deliver one image onto `device`; returns its bytes. The name appears when the file is complete."""
    temporary = target.with_name(f".{hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()}.tmp")
    if image.key is not None:
        if way != "copy":
            raise _Unlinkable(_INSIDE.format(way))
        data = _data(image, reader)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        temporary.rename(target)
        return len(data)
    info = os.stat(image.file)
    if not stat.S_ISREG(info.st_mode):
        raise _Unlinkable("not a file any more")
    if way == "hardlink" and info.st_dev != device:
        raise _Unlinkable(_ELSEWHERE)
    target.parent.mkdir(parents=True, exist_ok=True)
    if way == "symlink":
        target.symlink_to(os.path.abspath(image.file))
    elif way == "hardlink":
        try:
            os.link(os.path.realpath(image.file), target)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
                raise _Unlinkable(_ELSEWHERE) from exc
            raise
    elif way == "copy":
        shutil.copy2(image.file, temporary)
        temporary.rename(target)
    else:
        _move(image.file, temporary, target)
    return info.st_size


def _move(source: str, temporary: Path, target: Path) -> None:
    """Move a file; of a link what it leads to is copied, as a moved link may lead nowhere."""
    if os.path.islink(source) or not _linked(source, target):
        shutil.copy2(source, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if _content(temporary) != _content(Path(source)):
            temporary.unlink()
            raise _Unlinkable("its copy is not what it is; it was left where it is")
        temporary.rename(target)
    os.unlink(source)


def _linked(source: str, target: Path) -> bool:
    """Whether the file could be given its new name beside the old one; unlike a rename, that never replaces."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        return False
    return True


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
