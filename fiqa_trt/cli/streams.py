"""Standard input, output and error as the command uses them: whatever they are, they never end a run.

Messages (standard error) are a courtesy: where they cannot be written, they are not, and the work goes on. Results
(standard output) are what was asked for: a reader that went away had enough of them, and the command ends with the code
that the shell gives to programs that die of it (141); any other failure to write them is an error. Nothing but results
reaches standard output: what libraries print there, in Python or in C, goes where messages go.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
from collections.abc import Iterator
from typing import Protocol, TextIO

from fiqa_trt.errors import printable

READER_GONE = 128 + 13
"""What a shell reports of a program that SIGPIPE ended."""
_PATIENCE_SECONDS = 5.0
# A pipe that is ready takes this much at once (PIPE_BUF); more might wait for its reader.
_AT_ONCE = 4096


class _Sink(Protocol):
    """Takes bytes for a descriptor; raises OSError once, if ever."""

    def write(self, descriptor: int, data: memoryview) -> int: ...


class _Patient:
    """For results: waits for a slow reader as long as that takes."""

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write some of `data`; how much was."""
        try:
            return os.write(descriptor, data)
        except BlockingIOError:  # a descriptor that somebody made non-blocking
            _ready(descriptor, None)
            return 0


class _Impatient:
    """For messages: a reader that sleeps (a terminal on Ctrl-S) holds the work up for some seconds, once.

    Until it wakes, they are dropped.
    """

    def __init__(self) -> None:
        self._patience = _PATIENCE_SECONDS

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write or drop some of `data`; how much was."""
        if not _ready(descriptor, self._patience):
            self._patience = 0.0
            return len(data)
        self._patience = _PATIENCE_SECONDS
        try:
            return os.write(descriptor, data[:_AT_ONCE])
        except BlockingIOError:  # another process was quicker
            return len(data)


def _ready(descriptor: int, seconds: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return bool(poll.poll(None if seconds is None else seconds * 1000))


class Stream(io.RawIOBase):
    """A descriptor to which writing never fails: the first failure is kept, and all that comes after it is dropped.

    Attributes:
        failure: why nothing is written any more; None while all is well.
    """

    def __init__(self, descriptor: int, sink: _Sink, *, owned: bool = False) -> None:
        self.failure: OSError | None = None
        self._descriptor, self._sink, self._owned = descriptor, sink, owned

    def writable(self) -> bool:
        """It is."""
        return True

    def fileno(self) -> int:
        """The descriptor."""
        return self._descriptor

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        return os.isatty(self._descriptor)

    def write(self, data: object) -> int:
        """Write or drop all of `data`; its bytes."""
        view = memoryview(data).cast("B")  # type: ignore[arg-type]
        done = 0
        while self.failure is None and done < len(view):
            try:
                done += self._sink.write(self._descriptor, view[done:])
            except OSError as exc:
                self.failure = exc
        return len(view)

    def close(self) -> None:
        """Close the descriptor too, if it is ours."""
        if self._owned and not self.closed:
            os.close(self._descriptor)
        super().close()

    def text(self, like: TextIO | None) -> TextIO:
        """As text, in the encoding of another; characters that it lacks appear as escapes."""
        encoding = getattr(like, "encoding", None) or "utf-8"
        return io.TextIOWrapper(io.BufferedWriter(self), encoding, "backslashreplace", line_buffering=True)


def messages(descriptor: int, like: TextIO | None, *, owned: bool = False) -> TextIO:
    """A stream of messages to a descriptor; `owned` closes it with the stream."""
    return Stream(descriptor, _Impatient(), owned=owned).text(like)


def secure() -> Stream:
    """Put streams that never fail in the places of Python's, and return that of results.

    All that a library or Python itself writes to them goes through them too. A descriptor that was closed is one of
    /dev/null from here on: whoever closed it wants nothing of it, and the next file that is opened must not get its
    number, or what a C library writes to standard error would end up in that file. Results get a descriptor of their
    own: 1, which C libraries and processes that are begun write to, becomes another name of standard error.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            os.dup2(opened, descriptor)
            if opened != descriptor:
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
    results = Stream(os.dup(1), _Patient())
    os.dup2(2, 1)
    sys.stdout = results.text(sys.stdout)
    sys.stderr = messages(2, sys.stderr)
    return results


_results: TextIO | None = None


@contextlib.contextmanager
def results_apart() -> Iterator[None]:
    """Within the block, `sys.stdout` is for messages, and what `give` is given goes to what it was before."""
    global _results
    kept, _results, sys.stdout = (_results, sys.stdout), sys.stdout, sys.stderr
    try:
        yield
    finally:
        _results, sys.stdout = kept


def give(text: str) -> None:
    """Write a result to standard output."""
    # Not by click, which takes a stream in ASCII for one that is meant to be in UTF-8.
    results = _results or sys.stdout
    results.write("\n".join(map(printable, text.split("\n"))) + "\n")
    results.flush()


def tell(text: str, *, end: str = "\n") -> None:
    """Write a message to standard error, whatever that is (none at all, an object of a notebook); never raises."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(text + end)
            sys.stderr.flush()
    except (AttributeError, OSError, ValueError):  # whatever somebody put in its place, full, gone or closed
        pass


def complain(text: str) -> None:
    """Tell of an error, in one line."""
    tell(f"fiqa-trt: {printable(text)}")


def is_terminal() -> bool:
    """Whether messages go to one on which a line can be written anew."""
    try:
        return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, OSError, ValueError):
        return False


def columns() -> int:
    """Of that terminal. Python's own function asks about standard output, which may go elsewhere."""
    try:
        found = int(os.environ.get("COLUMNS") or 0) or os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):
        found = 0
    return found if found > 0 else 80


def can_take(text: str) -> bool:
    """Whether the encoding of messages has these characters."""
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "utf-8")
    except (LookupError, UnicodeEncodeError):
        return False
    return True
