"""Folders for what a process needs as it works. They go with it or, where it was killed, when the next one begins."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

PREFIX = "fiqa-trt-scratch-"
_DRAWN = re.compile("[a-z0-9_]{8}")  # what mkdtemp puts behind it


class Scratch:
    """A new folder, held by a lock on it as long as this process lives; those of dead processes beside it are removed.

    The lock is the folder's, wherever that is moved to, until it is let go of.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: Path | None = None, prefix: str = PREFIX) -> None:
        """Make it. Raises OSError.

        Args:
            parent: where; the system's temporary folder if None.
            prefix: of its name, and of those that may be removed: nobody else's folders begin with it.
        """
        home = Path(tempfile.gettempdir()) if parent is None else parent
        _sweep(home, prefix)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=home))
            held = _lock(self.path)
            # Between the two lines above another process may have taken it for a dead one's.
            if held is not None and self.path.exists():
                self._held = held
                return

    def let_go(self) -> None:
        """The folder, if it is still there, is not this process's any more."""
        if self._held >= 0:
            os.close(self._held)
            self._held = -1

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.let_go()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Such a folder for as long as a block takes. Raises OSError if it cannot be made."""
    folder = Scratch()
    try:
        yield folder.path
    finally:
        folder.remove()


def _lock(folder: Path) -> int | None:
    """A descriptor that holds a folder; None if another process does, or the folder is gone."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(held)
        return None
    return held


def _sweep(home: Path, prefix: str) -> None:
    try:
        with os.scandir(home) as entries:
            names = [entry.name for entry in entries if entry.name.startswith(prefix)]
    except OSError:
        return
    for name in names:
        if _DRAWN.fullmatch(name.removeprefix(prefix)) and (held := _lock(home / name)) is not None:
            shutil.rmtree(home / name, ignore_errors=True)
            os.close(held)
