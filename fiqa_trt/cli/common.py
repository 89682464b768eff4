"""What several commands share: the message on standard error, and the end of an interrupted run."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import complain, tell
from fiqa_trt.errors import printable
from fiqa_trt.progress import Say
from fiqa_trt.storage.base import KNOWN, is_remote
from fiqa_trt.storage.places import Uri, drop_copies
from fiqa_trt.storage.registry import is_stored

INTERRUPTED = 130
F = TypeVar("F", bound=Callable[..., Any])


class PlaceType(click.Path):
    """A path of this machine, or the address of an object."""

    def __init__(self, *, exists: bool = False, dir_okay: bool = True) -> None:
        super().__init__(exists=exists, dir_okay=dir_okay, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The place."""
        text = os.fspath(value)
        if is_remote(text) and not is_stored(text) and not os.path.lexists(text):
            self.fail(f"{text}: {KNOWN}", param, ctx)
        return Uri(value) if is_stored(text) else super().convert(value, param, ctx)


def quiet_and_json(function: F) -> F:
    """The options of every command: `quiet`, and `as_json` for one object on stdout once the command has finished."""
    function = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")(function)
    return click.option("-q", "--quiet", is_flag=True, help="No progress and no messages; errors only.")(function)


def engines() -> str:
    """What `--engine` takes, for its help."""
    from fiqa_trt.engines.registry import names  # only for commands that have it: `fiqa-trt --help` is to be quick

    return "|".join(("auto", *names(), "DIR"))


def speaker(quiet: bool) -> Say:
    """Prints lines on stderr, or nothing."""
    return lambda message: None if quiet else tell("\n".join(map(printable, message.split("\n"))))


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
    complain(message)
    drop_copies()
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(INTERRUPTED)
