"""Keeps off the terminal what C libraries write there about damaged images: their rows say it."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import threading
from collections.abc import Iterator

from fiqa_trt.cli.streams import messages

_STDERR = 2
_COMPLAINT = re.compile(
    rb"Corrupt JPEG|Premature end of JPEG|Invalid SOS|Inconsistent progression|Unsupported JPEG|Bogus |Warning: unknown"
    rb"|libpng (error|warning)|(TIFF\w*|\w+Decode\w*|JPEGLib|OJPEG\w*|\S*tempfile\.tif): ",
)
_JOIN_SECONDS = 1.0


@contextlib.contextmanager
def without_complaints() -> Iterator[None]:
    """Within the block, lines about damaged images that reach the file descriptor of standard error are dropped.

    Python's own `sys.stderr` goes where it went; everything else that C code, or a process begun within, writes to the
    descriptor follows it line by line.
    """
    python = sys.stderr
    try:
        elsewhere = python.fileno() != _STDERR
        python.flush()
        kept = os.dup(_STDERR)
    except (AttributeError, OSError, ValueError):  # none at all, or no file
        elsewhere = True
    if elsewhere:
        yield
        return
    reading, writing = os.pipe()
    os.dup2(writing, _STDERR)
    os.close(writing)
    thread = threading.Thread(target=_forward, args=(reading, os.dup(kept)), daemon=True, name="stderr")
    thread.start()
    sys.stderr = ours = messages(os.dup(kept), python, owned=True)
    try:
        yield
    finally:
        sys.stderr = python
        ours.close()
        os.dup2(kept, _STDERR)  # closes the last writing end, unless a process that outlives us has one
        os.close(kept)
        thread.join(_JOIN_SECONDS)


def _forward(source: int, target: int) -> None:
    """Lines to `target` until the other end is closed; without a reader to the end, those who write would wait."""
    with messages(target, None, owned=True) as told, open(source, "rb") as lines:
        for line in lines:
            if not _COMPLAINT.match(line):
                told.buffer.write(line)
                told.flush()
