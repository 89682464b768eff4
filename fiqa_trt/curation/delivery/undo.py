"""Taking a move back: what is needed for it is written down before each file is moved."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fiqa_trt.curation.delivery.common import Skips
from fiqa_trt.curation.delivery.file import Unlinkable, content, move, remove_empty, remove_folder, temporary_of
from fiqa_trt.errors import InputError, storage_error
from fiqa_trt.inputs.marks import JOURNAL, MOVE, NOTE, TABLE, read_mark
from fiqa_trt.progress import Progress, Report, silent
from fiqa_trt.storage.writing import locked_folder

_MISSING = "neither in the folder nor in its old place"
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@dataclasses.dataclass(frozen=True)
class _Move:
    """A file that was moved.

    Attributes:
        file: where it is now, below the folder.
        source: where it was, absolute.
        digest: of its content, hexadecimal.
        link: what stood there, if that was a symbolic link.
    """

    file: str
    source: str
    digest: str
    link: str | None = None


class Journal:
    """The moves into a folder, each noted before it is made. A line that a kill has cut is of a file not yet moved."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL
        self._file: IO[str] | None = None

    def add(self, file: str, source: str) -> None:
        """Note a move that is about to be made. Raises OSError of the source, RunError of the journal."""
        link = os.readlink(source) if os.path.islink(source) else None
        entry = _Move(file, os.path.normpath(os.path.abspath(source)), content(source).hex(), link)
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
                if self._file.tell():
                    self._file.write("\n")
            self._file.write(json.dumps(dataclasses.asdict(entry)) + "\n")
            self._file.flush()
        except OSError as exc:
            raise storage_error(self._path, exc) from exc

    def close(self) -> None:
        """Bring it to the disk."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())
            self._file.close()


@dataclasses.dataclass(frozen=True)
class Undone:
    """What was taken back.

    Attributes:
        folder: out of which.
        returned: files that went back to where they were, companions included.
        already: files that were there.
        skipped: files that stay in the folder, by reason.
        examples: a line for each of the first of them.
        removed: whether the folder is gone: nothing was left in it.
        finished: whether nothing is left to take back; what is missing on both sides is not.
    """

    folder: str
    returned: int
    already: int
    skipped: dict[str, int]
    examples: list[str]
    removed: bool
    finished: bool


def undo_move(folder: Path, report: Report = silent) -> Undone:
    """Take back what `fill_folder` has moved into a folder; a call that was stopped goes on where it was.

    Each file is compared with the digest that was noted before it was moved. What was changed since, and what has
    another file in its old place, stays in the folder.

    Args:
        folder: as `fill_folder` has left it, finished or not.
        report: receives the files done.

    Raises:
        InputError: it is no such folder.
        OutputError: another run is writing it.
        RunError: the disk is full or fails; the same call goes on.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # what is wrong with it is said below
            held.enter_context(locked_folder(folder))
        moves, skips, counts = _moves(folder), Skips(), {True: 0, False: 0}
        for done, each in enumerate(moves, 1):
            try:
                counts[_take_back(each, folder / each.file)] += 1
            except Unlinkable as exc:
                skips.add(f"{folder / each.file} (from {each.source})", str(exc))
            except OSError as exc:
                if exc.errno in _OF_THE_DISK:
                    raise storage_error(each.source, exc) from exc
                skips.add(f"{folder / each.file} (from {each.source})", (exc.strerror or str(exc)).lower())
            report(Progress(done, len(moves), sum(skips.reasons.values())))
        # What is on neither side cannot be waited for: it is said once.
        finished = not set(skips.reasons) - {_MISSING}
        try:
            removed = _clear(folder, moves, finished=finished)
        except OSError as exc:
            raise storage_error(folder, exc) from exc
    return Undone(str(folder), counts[True], counts[False], dict(skips.reasons), skips.examples, removed, finished)


def _moves(folder: Path) -> list[_Move]:
    try:
        mark = read_mark(folder)
        if mark is None or not mark.way:
            if not folder.exists():
                raise InputError(f"--undo {folder}: no such folder; it goes when everything in it has been taken back")
            raise InputError(
                f"--undo {folder}: no move is noted there: not filled by filter --move, or all is taken back already"
            )
        if mark.way != MOVE:
            raise InputError(
                f"--undo {folder}: filled by --{mark.way}, so the images are where they were; the folder can be removed"
            )
        return list({each.file: each for each in _read(folder / JOURNAL)}.values())
    except OSError as exc:
        raise InputError(f"--undo {folder}: {(exc.strerror or str(exc)).lower()}") from exc


def _read(journal: Path) -> Iterator[_Move]:
    if not journal.exists():
        return
    with journal.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            with contextlib.suppress(ValueError, TypeError):
                yield _Move(**json.loads(line))


def _take_back(each: _Move, at: Path) -> bool:
    """Whether it was done now, not before. Raises Unlinkable or OSError if it cannot be."""
    temporary_of(at).unlink(missing_ok=True)
    if not os.path.lexists(at):
        if not os.path.lexists(each.source):
            raise Unlinkable(_MISSING)
        return False
    if not stat.S_ISREG(os.lstat(at).st_mode):
        raise Unlinkable("not a file any more")
    if content(at).hex() != each.digest:
        raise Unlinkable("changed since it was moved, so it was left where it is")
    source = Path(each.source)
    if os.path.lexists(source):
        if not _holds(source, each.digest):
            raise Unlinkable("its old place is taken by something else, so it was left where it is")
        at.unlink()
        return True
    source.parent.mkdir(parents=True, exist_ok=True)
    if each.link is not None and _holds(source.parent / each.link, each.digest):
        source.symlink_to(each.link)
        at.unlink()
    else:
        move(str(at), temporary_of(source), source)
    return True


def _holds(path: Path, digest: str) -> bool:
    return path.is_file() and content(path).hex() == digest


def _clear(folder: Path, moves: list[_Move], *, finished: bool) -> bool:
    """Remove what is ours, and folders that are empty now; whether the folder itself is gone."""
    remove_empty(folder, [each.file for each in moves])
    (folder / TABLE).unlink(missing_ok=True)  # of images that are elsewhere now
    if not finished:
        return False
    for name in (JOURNAL, NOTE):  # the note last, which a call that goes on asks for
        (folder / name).unlink(missing_ok=True)
    remove_folder(folder)
    return not folder.exists()
