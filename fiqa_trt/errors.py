"""Everything that fiqa-trt raises on purpose. Each message is one line that names the value and the way out.

FiqaError                   exit code 1
├── UsageError              exit code 2: the command cannot start as it was given
│   ├── InputError          an input that is missing, empty or not a list
│   │   └── NoColumn        a table without the column of images that was asked for
│   ├── OutputError         an output that cannot be written
│   ├── DifferentRun        an output or a working state that belongs to another run
│   └── EngineError         a device, precision or engine that this machine cannot use
│       └── OutOfMemory     a batch that the device has no memory for
└── RunError                exit code 1: the run began and could not go on (it can be resumed)
    ├── StoreError          an object store that denies, or does not answer: no image's fault
    └── Starved             memory or file descriptors that the machine, or a limit, refuses: likewise
"""

from __future__ import annotations

import errno
import os


class FiqaError(Exception):
    """Base of every error that the user is told about in one line."""

    exit_code = 1


class UsageError(FiqaError):
    """The command cannot start as it was given."""

    exit_code = 2


class InputError(UsageError):
    """An input that is missing, empty or not what it should be."""


class NoColumn(InputError):
    """A table without the column of images that was asked for."""


class OutputError(UsageError):
    """An output that cannot be written where it was asked for."""


class DifferentRun(UsageError):
    """An output, or the working state beside it, belongs to another run."""


class EngineError(UsageError):
    """A device, a precision or an engine directory that cannot be used here."""


class OutOfMemory(EngineError):
    """The device has no memory for a batch.

    Attributes:
        batch: its images.
    """

    def __init__(self, message: str, batch: int) -> None:
        super().__init__(message)
        self.batch = batch

    def __reduce__(self) -> tuple[type[OutOfMemory], tuple[str, int]]:
        """For its way out of a worker process."""
        return type(self), (str(self), self.batch)


class RunError(FiqaError):
    """The run began and could not go on; what is finished is kept."""


class StoreError(RunError):
    """An object store denies access or does not answer, which is no image's fault."""


class Starved(RunError):
    """The machine, or a limit, refuses memory or file descriptors, which is no image's fault either."""


def storage_error(path: str | os.PathLike[str], error: OSError) -> RunError:
    """Translate a failed write below `path` into a RunError that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return RunError(f"no space left for {os.fspath(path)}; free some and run the same command again")
    reason = error.strerror or str(error)
    return RunError(f"cannot write {os.fspath(path)}: {reason}; run the same command again once that is mended")


def unwritable(path: str | os.PathLike[str], error: OSError) -> OutputError:
    """Translate what keeps work from beginning at `path`."""
    return OutputError(f"cannot write {os.fspath(path)}: {error.strerror}")


def already_there(path: str | os.PathLike[str], restart: str = "replaces it", other: str = "-o") -> DifferentRun:
    """Of an output that is there before its work begins.

    Args:
        path: of the output.
        restart: what --restart does.
        other: how the command names another output.
    """
    return DifferentRun(f"{os.fspath(path)} exists already; --restart {restart}, or choose another {other}")


def one_line(error: BaseException, length: int = 300) -> str:
    """What a library's exception says, in one line of at most `length` characters; its type if it says nothing."""
    return " ".join(str(error).split())[:length] or type(error).__name__


def printable(text: str) -> str:
    """Text that leaves a terminal as it is: what is not printable in a file's name appears as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def number_of(count: int, noun: str, plural: str = "") -> str:
    """A count for a person: `1 image`, `2,000 images`; `plural` where that does not just take an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
