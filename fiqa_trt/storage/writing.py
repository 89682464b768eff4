"""Files that appear complete or not at all, under their own name or that of the file that a link leads to.

What is replaced keeps its permissions and, where that is allowed, its owner and group. It is a new file all the same:
other hard links to the old one keep the old content, as backups that are made of hard links need.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from fiqa_trt.errors import OutputError, storage_error, unwritable
from fiqa_trt.storage.base import NOT_WRITTEN, is_remote
from fiqa_trt.storage.places import Place, Uri
from fiqa_trt.storage.registry import writer_of
from fiqa_trt.storage.scratch import scratch

# What file systems answer that cannot sync a folder (CIFS, VirtualBox's, some of FUSE) or do not let it be opened.
# SQLite, PostgreSQL and borg go on as well. Anything else, EIO and ENOSPC above all, is a disk that fails.
_NO_SYNC = (
    errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES, errno.EPERM, errno.EISDIR,
)  # fmt: skip
_MODE = 0o666  # less the umask
_LONGEST = 255  # bytes of a file's name


@overload
def target_of(path: Path) -> Path: ...
@overload
def target_of(path: Place) -> Place: ...
def target_of(path: Place) -> Place:
    """The file that `path` stands for: itself, or what it leads to if it is a link, be that there or not.

    Raises:
        OutputError: a link that leads to itself.
    """
    if isinstance(path, Uri) or not path.is_symlink():
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OutputError(f"cannot write {path}: it is a link that leads back to itself")
    return target


@overload
def beside(path: Path, suffix: str) -> Path: ...
@overload
def beside(path: Place, suffix: str) -> Place: ...
def beside(path: Place, suffix: str) -> Place:
    """A name for what belongs to a file, in its folder: with a suffix, shortened where it would be too long a name."""
    name = path.name + suffix
    if len(os.fsencode(name)) > _LONGEST:
        name = _digest(path.name) + suffix
    return path.with_name(name)


def _digest(name: str) -> str:
    return hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()


def check_output(output: Place, suffixes: Sequence[str]) -> None:
    """Refuse an output that could not be written at the end.

    Raises:
        OutputError: unknown suffix, missing or unwritable folder, something in its place that is not a file.
    """
    if output.suffix.lower() not in suffixes and isinstance(output, Uri):
        raise OutputError(f"cannot tell the format of {output}: name it {', '.join(suffixes)}")
    if isinstance(output, Uri):
        writer_of(os.fspath(output)).check(os.fspath(output))
        return
    try:
        target = target_of(output)
        _existing(output)
        what = f"cannot write {output}: " + (f"it is a link to {target}, and " if target != output else "")
        if output.suffix.lower() not in suffixes:
            raise OutputError(f"cannot tell the format of {output}: name it {', '.join(suffixes)}")
        if not target.parent.is_dir():
            why = NOT_WRITTEN if is_remote(str(output)) else f"the folder {target.parent} does not exist"
            raise OutputError(f"{what}{why}")
        if reason := _unwritable(target.parent):
            raise OutputError(f"{what}{reason}")
    except OSError as exc:
        raise unwritable(output, exc) from exc


def check_folder(folder: Path) -> None:
    """Refuse a folder that could not be made, or not be written into.

    Raises:
        OutputError: something in its place or on the way to it is no folder, or may not be written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise OutputError(f"cannot write into {folder}: {there} is not a folder")
    if reason := _unwritable(there):
        raise OutputError(f"cannot write into {folder}: {reason}")


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written in a folder; None if something can."""
    if os.access(folder, os.W_OK | os.X_OK):
        return None
    if os.statvfs(folder).f_flag & os.ST_RDONLY:
        return f"{folder} is on a file system that is read-only"
    return f"no permission to write in {folder}"


def lock(descriptor: int, output: Path) -> None:
    """Hold a file or a folder until it is closed, or the process ends; where a file system has no locks, go on without.

    Args:
        descriptor: of the file or folder.
        output: what is written under its protection.

    Raises:
        OutputError: another run holds it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        raise OutputError(f"another run is writing {output} at this moment") from exc
    except OSError:
        pass


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder against other runs that write it. Raises OutputError if one does, OSError if it is not there."""
    with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        lock(descriptor, folder)
        yield


@contextlib.contextmanager
def atomic(path: Place) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when the block ends well, and vanishes when it does not.

    Where `path` is a link, what it leads to is replaced, in the folder where that lies. Of one in a store, the file is
    in the system's temporary folder, and uploaded.

    Raises:
        OutputError: a link that leads to itself, or something that is not a file, or another run is writing it.
        RunError: the disk is full or fails, or the store does.
    """
    if isinstance(path, Uri):
        writer_of(os.fspath(path)).check(os.fspath(path))
        with scratch() as folder:
            file = folder / f"output{path.suffix}"
            try:
                yield file
            except OSError as exc:
                raise storage_error(file, exc) from exc
            writer_of(os.fspath(path)).put(os.fspath(path), file)
        return
    try:
        target = target_of(path)
        temporary = beside(target.with_name(f".{target.name}"), ".tmp")
        old = _existing(path)
        with _claimed(temporary, path) as descriptor:
            try:
                if old is not None:  # from the beginning, as it may hold what others are not to see
                    _keep(descriptor, old, stat.S_IRUSR | stat.S_IWUSR)
                yield temporary
                with _opened(temporary, os.O_RDWR) as written:
                    _sync(written)
                    if old is not None:
                        _keep(written, old)
                temporary.replace(target)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink(missing_ok=True)
                raise
        sync_folder(target.parent)
    except OSError as exc:
        raise storage_error(path, exc) from exc


@contextlib.contextmanager
def _claimed(temporary: Path, output: Path) -> Iterator[int]:
    """A new file, locked; what a run that was killed has left under its name goes.

    Raises:
        OutputError: another run is writing `output`.
    """
    while True:
        _remove_left(temporary, output)
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
        except FileExistsError:  # another run's, which will be heard of
            continue
        try:
            lock(descriptor, output)
            if is_at(descriptor, temporary):  # another run has not taken it for a leftover before it was locked
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _remove_left(temporary: Path, output: Path) -> None:
    """Remove a file that nobody holds. Raises OutputError if another run does."""
    try:
        with _opened(temporary, os.O_RDONLY | os.O_NOFOLLOW) as left:
            lock(left, output)
            if is_at(left, temporary):  # not what another run has put there since
                temporary.unlink()
    except FileNotFoundError:
        pass
    except OSError:  # a link, or somebody else's
        temporary.unlink(missing_ok=True)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file has that name still."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


def write_text(path: Place, text: str) -> None:
    """Write a file of text, in UTF-8, as `atomic` has it. Raises what that raises."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


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
    descriptor = os.open(path, flags | os.O_CLOEXEC, _MODE)
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
