"""Progress on stderr: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import os
import shutil
import sys
import time

import click

from fiqa_trt.progress import Progress

_BAR_SECONDS = 0.2
_LINE_SECONDS = 10.0


class ProgressLine:
    """Called with each `Progress`; decides when and how to show it."""

    def __init__(self, unit: str, *, quiet: bool = False) -> None:
        self._unit = unit
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._colour = self._terminal and "NO_COLOR" not in os.environ
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
        text = f"{progress.done:,}/{progress.total:,}  {rate:,.{decimals}f} {self._unit}/s  {_clock(left)} left"
        text += f"  {progress.failed:,} failed" if progress.failed else ""
        if not self._terminal:
            click.echo(text, err=True)
            return
        columns = shutil.get_terminal_size().columns
        width = max(0, min(30, columns - len(text) - 5))
        filled = round(width * progress.done / max(progress.total, 1))
        bar = "█" * filled + "░" * (width - filled)
        bar = click.style(bar, fg="cyan") if self._colour else bar
        click.echo(f"\r{bar}  {text[: columns - 5]}\x1b[K", err=True, nl=False)

    def end(self) -> None:
        """Leave the terminal on a clean line."""
        if self._terminal and not self._quiet:
            click.echo("\r\x1b[K", err=True, nl=False)


def _clock(seconds: float) -> str:
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
