"""What the machine, or a limit (ulimit -a), does not give this process: the fault of no image and of no file.

Libraries say it in ways without number, so that it is not read off their words: whoever was refused something asks here
whether the like of it is refused at this moment.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading

from fiqa_trt.errors import Starved, one_line

_REFUSALS = (errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
_FOR_AN_IMAGE = 16 << 20
_FOR_A_LIBRARY = 512 << 20


def _has_memory(size: int) -> bool:
    try:
        mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()  # reserved, and never touched
    except (OSError, MemoryError):
        return False
    return True


def _can_open() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        return exc.errno not in _REFUSALS
    return True


def _can_start_threads() -> bool:
    thread = threading.Thread(target=int)
    try:
        thread.start()
    except (RuntimeError, MemoryError):
        return False
    thread.join()
    return True


def _refused(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _REFUSALS


def starved_by(error: BaseException) -> Starved | None:
    """If an error comes of what an image needs and this process is refused, the one to raise in its place."""
    if isinstance(error, Starved):
        return error
    if _refused(error) or not _has_memory(_FOR_AN_IMAGE) or not _can_open():
        return Starved(_said(error))
    return None


def starved_program(error: BaseException) -> Starved | None:
    """Likewise of what libraries need, which reserve hundreds of megabytes and start threads."""
    if isinstance(error, MemoryError) or not _has_memory(_FOR_A_LIBRARY) or not _can_start_threads():
        return Starved(_said(error))
    return starved_by(error)


def _said(error: BaseException) -> str:
    return (
        f"this machine or a limit (see ulimit -a) leaves too little for this: {one_line(error)}; what is finished is "
        "kept, and the same command goes on with it"
    )
