"""How one file is delivered: copied, linked or moved, complete when it has its name, and never over another."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from fiqa_trt.curation.delivery.plan import Image, Unplaced
from fiqa_trt.inputs.reader import ContainerReader, read_addresses
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.registry import is_stored, store_of
from fiqa_trt.storage.writing import sync_file

_BLOCK = 1 << 20


def of_source(error: OSError, source: str) -> bool:
    """Whether an operation failed for what is read, not for where it goes."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # which shutil reports for the source as well
    return error.filename is not None and os.fspath(error.filename) == source and error.errno not in full


class Unlinkable(Exception):
    """An image that cannot be delivered in this way."""


INSIDE = "inside a shard, so it can only be copied, not --{}"
AWAY = "in an object store, so it can only be copied, not --{}"
_ELSEWHERE = "on another file system, so it cannot be hard-linked: --copy or --symlink"


def data_of(image: Image, reader: ContainerReader) -> bytes:
    """Bytes of a member or an object; a companion may be empty. Raises ImageError."""
    blob = read_addresses([image.address], reader)[0].blob
    if not isinstance(blob, ImageError):
        return blob
    if image.companion and blob.outcome.status is Status.EMPTY:
        return b""
    raise blob


def size_of(image: Image, reader: ContainerReader) -> int:
    """Bytes of it. Raises OSError, ImageError."""
    file, key, _ = image.address
    if key is not None:
        return len(data_of(image, reader))
    if not is_stored(file):
        return os.stat(file).st_size
    size = store_of(file).origin(file).bytes
    if size is None:
        raise ImageError(Status.MISSING, "there is no such object")
    return size


def temporary_of(target: Path) -> Path:
    """The name that a file has until it is complete."""
    return target.with_name(f".{hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()}.tmp")


def deliver_file(
    image: Image, target: Path, way: str, reader: ContainerReader, device: int, moving: Callable[[], None]
) -> int:
    """Deliver one image onto `device`; returns its bytes. The name appears when the file is complete.

    `moving` is called before a file is moved.
    """
    temporary = temporary_of(target)
    if image.address.key is not None or is_stored(image.address.file):
        if way != "copy":
            raise Unlinkable((INSIDE if image.address.key is not None else AWAY).format(way))
        data = data_of(image, reader)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(data)
        with contextlib.suppress(OSError):  # by which it is known again, like a copy of a file
            if (stamp := store_of(image.address.file).stamp(image.address.file)) is not None:
                os.utime(temporary, ns=(stamp.modified_ns, stamp.modified_ns))
        temporary.rename(target)
        return len(data)
    info = os.stat(image.address.file)
    if not stat.S_ISREG(info.st_mode):
        raise Unlinkable("not a file any more")
    if way == "hardlink" and info.st_dev != device:
        raise Unlinkable(_ELSEWHERE)
    target.parent.mkdir(parents=True, exist_ok=True)
    if way == "symlink":
        target.symlink_to(os.path.abspath(image.address.file))
    elif way == "hardlink":
        try:
            os.link(os.path.realpath(image.address.file), target)
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP):
                raise Unlinkable(_ELSEWHERE) from exc
            raise
    elif way == "copy":
        shutil.copy2(image.address.file, temporary)
        temporary.rename(target)
    else:
        moving()
        move(image.address.file, temporary, target)
    return info.st_size


def move(source: str, temporary: Path, target: Path) -> None:
    """Move a file; of a link what it leads to is copied, as a moved link may lead nowhere."""
    if os.path.islink(source) or not _linked(source, target):
        shutil.copy2(source, temporary)
        sync_file(temporary)
        if content(temporary) != content(Path(source)):
            temporary.unlink()
            raise Unlinkable("its copy is not what it is; it was left where it is")
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


def end_move(source: str, target: Path) -> None:
    """Remove the source of a move that was stopped when its target was complete."""
    if os.path.lexists(source) and (os.path.samefile(source, target) or content(Path(source)) == content(target)):
        os.unlink(source)


def content(path: str | Path) -> bytes:
    """A digest of what a file holds."""
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while block := file.read(_BLOCK):
            found.update(block)
    return found.digest()


def remove_empty(folder: Path, places: Iterable[str]) -> None:
    """Remove the folders that were above some places below `folder`, where they are empty now. Raises OSError."""
    emptied = {parent for place in places for parent in Path(place).parents if parent.parts}
    for each in sorted(emptied, key=lambda path: len(path.parts), reverse=True):
        remove_folder(folder / each)


def remove_folder(folder: Path) -> None:
    """Remove a folder, unless there is something in it. Raises OSError if it cannot be removed though it is empty."""
    try:
        folder.rmdir()
    except OSError as exc:
        if exc.errno not in (errno.ENOTEMPTY, errno.ENOENT, errno.EEXIST, errno.EBUSY):
            raise


def reason(error: OSError | Unplaced) -> str:
    """Why an image was not delivered, in a few words."""
    if isinstance(error, FileNotFoundError):
        return Status.MISSING.value
    return str(error) if isinstance(error, Unplaced) else (error.strerror or str(error)).lower()
