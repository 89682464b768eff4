"""Progress on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import os
import time

import click

from fiqa_trt.cli.streams import can_take, columns, is_terminal, tell
from fiqa_trt.progress import Progress

_BAR_SECONDS = 0.2
_LINE_SECONDS = 10.0
_SMALLEST = 5
"""Columns of a bar that is worth showing."""


class ProgressLine:
    """Called with each `Progress`; decides when and how to show it."""

    def __init__(self, unit: str, *, quiet: bool = False) -> None:
        self._unit = unit
        self._quiet = quiet
        self._terminal = is_terminal()
        self._colour = self._terminal and "NO_COLOR" not in os.environ
        self._marks = "█░" if can_take("█░") else "#-"
        self._began = self._shown = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        """Show it, unless it is too early."""
        now = time.monotonic()
        wait = _BAR_SECONDS if self._terminal else _LINE_SECONDS
        if self._quiet or (now - self._shown < wait and not (self._terminal and progress.done == progress.total)):
            return
        self._shown = now
        rate = (progress.done - progress.before) / max(now - self._began, 1e-9)
        left = (progress.total - progress.done) / rate if rate else 0.0
        decimals = 0 if rate >= 10 else 1
        facts = [
            f"{progress.done:,}/{progress.total:,}",
            f"{rate:,.{decimals}f} {self._unit}/s",
            f"{_clock(left)} left",
        ]
        facts += [f"{progress.failed:,} failed"] if progress.failed else []
        facts += [progress.at_work] if progress.at_work else []
        if not self._terminal:
            tell("  ".join(facts))
            return
        room = columns() - 1  # a terminal may begin a new line once the last column is taken
        while len(facts) > 1 and len("  ".join(facts)) > room:
            facts.pop()
        text = "  ".join(facts)[:room]
        width = min(30, room - len(text) - 2)
        bar = ""
        if width >= _SMALLEST:
            filled = round(width * progress.done / max(progress.total, 1))
            bar = self._marks[0] * filled + self._marks[1] * (width - filled)
            bar = (click.style(bar, fg="cyan") if self._colour else bar) + "  "
        tell(f"\r{bar}{text}\x1b[K", end="")

    def end(self) -> None:
        """Leave the terminal on a clean line."""
        if self._terminal and not self._quiet:
            tell("\r\x1b[K", end="")


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
