"""Files that appear complete or not at all, under their own name or that of the file that a link leads to.

What is replaced keeps its permissions and, where that is allowed, its owner and group. It is a new file all the same:
other hard links to the old one keep the old content, as backups that are made of hard links need.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from fiqa_trt.errors import OutputError, storage_error

# What file systems answer that cannot sync a folder (CIFS, VirtualBox's, some of FUSE) or do not let it be opened.
# SQLite, PostgreSQL and borg go on as well. Anything else, EIO and ENOSPC above all, is a disk that fails.
_NO_SYNC = (
    errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR,
)  # fmt: skip
_LONGEST = 255  # bytes of a file's name


def target_of(path: Path) -> Path:
    """The file that `path` stands for: itself, or what it leads to if it is a link, be that there or not.

    Raises:
        OutputError: a link that leads to itself.
    """
    if not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OutputError(f"cannot write {path}: it is a link that leads back to itself")
    return target


def beside(path: Path, suffix: str) -> Path:
    """A name for what belongs to a file, in its folder: with a suffix, shortened where it would be too long a name."""
    name = path.name + suffix
    if len(os.fsencode(name)) > _LONGEST:
        name = _digest(path.name) + suffix
    return path.with_name(name)


def _digest(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()


def check_output(output: Path, suffixes: Sequence[str]) -> None:
    """Refuse an output that could not be written at the end.

    Raises:
        OutputError: unknown suffix, missing or unwritable folder, something in its place that is not a file.
    """
    try:
        target = target_of(output)
        _existing(output)
        what = f"cannot write {output}: " + (f"it is a link to {target}, and " if target != output else "")
        if output.suffix.lower() not in suffixes:
            raise OutputError(f"cannot tell the format of {output}: name it {', '.join(suffixes)}")
        if not target.parent.is_dir():
            raise OutputError(f"{what}the folder {target.parent} does not exist")
        if not os.access(target.parent, os.W_OK | os.X_OK):
            raise OutputError(f"{what}no permission to write in {target.parent}")
    except OSError as exc:
        raise OutputError(f"cannot write {output}: {exc.strerror}") from exc


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made, or not be written into.

    Raises:
        OutputError: something in its place or on the way to it is no folder, or may not be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise OutputError(f"cannot write into {folder}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write into {folder}: no permission to write in {there}")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when the block ends well, and vanishes when it does not.

    Where `path` is a link, what it leads to is replaced, in the folder where that lies.

    Raises:
        OutputError: a link that leads to itself, or something that is not a file.
        RunError: the disk is full or fails.
    """
    temporary: Path | None = None
    try:
        target = target_of(path)
        temporary = beside(target.with_name(f".{target.name}"), ".tmp")
        old = _existing(path)
        temporary.unlink(missing_ok=True)
        with _opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as descriptor:
            if old is not None:  # from the beginning, as it may hold what others are not to see
                _keep(descriptor, old, stat.S_IRUSR | stat.S_IWUSR)
        yield temporary
        with _opened(temporary, os.O_RDWR) as descriptor:
            _sync(descriptor)
            if old is not None:
                _keep(descriptor, old)
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as exc:
        raise storage_error(path, exc) from exc
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)


def _existing(path: Path) -> os.stat_result | None:
    """What stands at a path, or at what it leads to, if there is anything. Raises OutputError if that is no file."""
    try:
        old = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(old.st_mode):
        kind = "a folder" if stat.S_ISDIR(old.st_mode) else "a device or a pipe, not a file"
        raise OutputError(f"cannot write {path}: {'it leads to' if path.is_symlink() else 'it is'} {kind}")
    return old


@contextlib.contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)  # less the umask
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _keep(descriptor: int, old: os.stat_result, more: int = 0) -> None:
    """Give a file the owner, group and permissions of another one, as far as that is allowed here."""
    for owner in (old.st_uid, -1):
        with contextlib.suppress(OSError):
            os.fchown(descriptor, owner, old.st_gid)
            break
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, stat.S_IMODE(old.st_mode) | more)


def sync_file(path: Path) -> None:
    """Bring a file's content to the disk. Raises OSError if that fails."""
    with _opened(path, os.O_RDWR) as descriptor:
        _sync(descriptor)


def sync_folder(path: Path) -> None:
    """Bring a folder's names to the disk, where its file system can. Raises OSError if the disk fails."""
    try:
        with _opened(path, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
            os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in _NO_SYNC:
            raise


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):  # cannot, not: did not
            raise
