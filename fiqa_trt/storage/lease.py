"""A lease on a place in a store: what a lock is on a disk, for runs that may be on different machines.

The objects `lease-1`, `lease-2`, … are created only where they are not there yet, so that of several runs one gets the
next. It writes its own again every few seconds. A lease that was not written for a minute by the store's own clock has
run out, and so has one of a process of this machine that is gone: then the next number may be taken. Whoever finds a
higher number than his own, or his own gone, has lost his.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from fiqa_trt.errors import OutputError, RunError
from fiqa_trt.outcomes import ImageError
from fiqa_trt.storage.places import Uri
from fiqa_trt.storage.registry import store_of, writer_of

SECONDS = 60
_OFTEN = 4  # times that it is written again while it lasts
_PATIENCE = 10.0  # seconds that its end waits for what is being written
_NAME = "lease-"


def _machine() -> str:
    """This machine since it was started, as far as the numbers of processes mean the same."""
    boot, numbers = "", ""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        numbers = os.readlink("/proc/self/ns/pid")
    return f"{socket.gethostname()} {boot} {numbers}"


def _started(process: int) -> str:
    """When a process of this machine began; empty if there is none."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


@dataclasses.dataclass(frozen=True)
class _Holder:
    """Who holds a lease."""

    id: str
    machine: str
    process: int
    started: str

    def is_gone(self) -> bool:
        """Whether it is a process of this machine that is there no more."""
        return bool(self.started) and self.machine == _machine() and _started(self.process) != self.started


class Lease:
    """A lease. A context manager: held as long as the block lasts."""

    def __init__(self, home: Uri, output: Uri) -> None:
        """`home` is where its objects are; `output` what is written under its protection."""
        self._home, self._output = os.fspath(home), output
        self._me = _Holder(uuid.uuid4().hex, _machine(), os.getpid(), _started(os.getpid()))
        self._number, self._lost, self._end = 0, False, threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> Lease:
        """Raises OutputError if another run holds it, StoreError if nothing can be written there."""
        store = writer_of(self._home)
        while True:
            newest = max(self._there(), default=0)
            if newest:
                self._refuse_held(newest)
            try:
                store.create(self._path(newest + 1), self._content())
            except FileExistsError:
                if self._holder(newest + 1) != self._me:  # it may be ours, if the answer to that was lost
                    continue
            self._number = newest + 1
            break
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end.set()
        self._thread.join(_PATIENCE)  # so that it does not write once more what goes now
        with contextlib.suppress(RunError):  # it runs out by itself
            if not self._lost:
                writer_of(self._home).remove([self._path(number) for number in sorted(self._there())])

    def check(self) -> None:
        """Raise RunError if it was lost."""
        if self._lost:
            raise RunError(
                f"another run has taken over {self._output}, as this one was not heard of for {SECONDS} seconds; what "
                "is finished is kept"
            )

    def check_now(self) -> None:
        """The same, of this moment."""
        self._look()
        self.check()

    def _renew(self) -> None:
        while not self._end.wait(SECONDS / _OFTEN):
            with contextlib.suppress(RunError):  # a store that does not answer for a while
                self._look()
                if not self._lost and not self._end.is_set():
                    writer_of(self._home).put(self._path(self._number), self._content())

    def _look(self) -> None:
        self._lost = (
            self._lost or self._holder(self._number) != self._me or max(self._there(), default=0) > self._number
        )

    def _content(self) -> bytes:
        return json.dumps(dataclasses.asdict(self._me)).encode()

    def _path(self, number: int) -> str:
        return f"{self._home}/{_NAME}{number}"

    def _there(self) -> Iterator[int]:
        for entry in store_of(self._home).entries(self._home):
            number = entry.name.removeprefix(_NAME)
            if number != entry.name and number.isdigit():
                yield int(number)

    def _holder(self, number: int) -> _Holder | None:
        blob = store_of(self._home).read(self._path(number)).blob
        try:
            return None if isinstance(blob, ImageError) else _Holder(**json.loads(blob))
        except (ValueError, TypeError):
            return None

    def _refuse_held(self, number: int) -> None:
        """Raise OutputError if a lease that is there still holds."""
        holder, store = self._holder(number), store_of(self._home)
        if holder is None or holder.is_gone():
            return
        clock = f"{self._home}/clock-{self._me.id}"
        writer_of(self._home).put(clock, b"")
        now, then = store.origin(clock).modified, store.origin(self._path(number)).modified
        writer_of(self._home).remove([clock])
        if now is None or then is None:
            return
        age = max(0, now - then) // 1_000_000
        if age < SECONDS:
            host = holder.machine.partition(" ")[0]
            raise OutputError(
                f"another run is writing {self._output} at this moment, on {host}; if that is gone, try again in "
                f"{SECONDS - age} seconds"
            )
