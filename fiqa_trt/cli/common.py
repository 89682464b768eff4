"""What several commands share: the message on standard error, and the end of an interrupted run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import click

from fiqa_trt.cli.progress import ProgressLine

INTERRUPTED = 130


def speaker(quiet: bool) -> Callable[[str], None]:
    """Prints a line on stderr, or nothing."""
    return lambda message: None if quiet else click.echo(message, err=True)


@contextlib.contextmanager
def interruptible(bar: ProgressLine, hint: str) -> Iterator[None]:
    """Around long work: Ctrl-C leaves a clean terminal, a hint, and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        bar.end()
        end_interrupted(f"interrupted; {hint}")
    finally:
        bar.end()


def end_interrupted(message: str) -> NoReturn:
    """Say it and end, at once: finished work is safe, and a thread that hangs on a dead disk must not hold us back."""
    click.echo(f"fiqa-trt: {message}", err=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(INTERRUPTED)
