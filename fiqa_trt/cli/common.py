"""What several commands share: the message on standard error, and the end of an interrupted run."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator

import click

from fiqa_trt.cli.progress import ProgressLine

INTERRUPTED = 130


def speaker(quiet: bool) -> Callable[[str], None]:
    """Prints a line on stderr, or nothing."""
    return lambda message: None if quiet else click.echo(message, err=True)


def printable(text: str) -> str:
    """Text that leaves a terminal as it is: what is not printable in a file's name appears as an escape."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextlib.contextmanager
def interruptible(bar: ProgressLine, hint: str) -> Iterator[None]:
    """Around long work: SIGTERM counts as Ctrl-C; both leave a clean terminal, a hint, and exit code 130."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        bar.end()
        click.echo(f"fiqa-trt: interrupted; {hint}", err=True)
        sys.stderr.flush()
        # At once: finished work is safe, and a thread that hangs on a dead disk must not hold us back.
        os._exit(INTERRUPTED)
    finally:
        bar.end()
