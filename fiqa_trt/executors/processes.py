"""One process for each of several devices. The units of one that dies go to the others, or to the one in its place.

Each writes the part of a unit as soon as it is done, so that such a death costs nothing but time.
"""

from __future__ import annotations

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.errors import EngineError, FiqaError, RunError, StoreError
from fiqa_trt.executors.attempts import Dispatch
from fiqa_trt.executors.base import Alone, Setup, Units
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.pipeline import Task
from fiqa_trt.progress import Count, Say, silent

AHEAD = 3  # units that a process has been given and not finished
_CLOSING_SECONDS = 3.0


def parse_devices(devices: str) -> list[str]:
    """`0,1` as [`cuda:0`, `cuda:1`]; `all` for every GPU; `cpu` may stand among them, and each of them repeatedly.

    Raises:
        EngineError: something else, or `all` without a GPU.
    """
    if devices == "all":
        from fiqa_trt.engines.cuda import count_gpus

        found = [f"cuda:{index}" for index in range(count_gpus())]
        if not found:
            raise EngineError("--devices all: there is no GPU that can be used here; see fiqa-trt doctor")
        return found
    names = [f"cuda:{name}" if name.isdecimal() else name for name in devices.replace(" ", "").split(",")]
    if any(name != "cpu" and not name.removeprefix("cuda:").isdecimal() for name in names):
        raise EngineError(f"--devices {devices}: give GPUs by number, as in 0,1, or `all`, `auto` or cpu,cpu")
    return names


def opened(devices: str, setup: Setup, say: Say) -> Processes:
    """A process for each of `devices`, as `parse_devices` reads them, or what `auto` finds. Raises EngineError."""
    if devices == "auto":
        from fiqa_trt.engines.cuda import count_gpus
        from fiqa_trt.executors.race import Race

        return Race(parse_devices("all"), setup, say) if count_gpus() else Processes(["cpu"], setup, say)
    return Processes(parse_devices(devices), setup, say)


@dataclasses.dataclass(frozen=True)
class _Task:
    """A unit for a worker."""

    units: Units
    number: int
    careful: bool


@dataclasses.dataclass(frozen=True)
class _Opened:
    """A worker is ready."""

    info: EngineInfo
    decoder: str


@dataclasses.dataclass(frozen=True)
class _Told:
    """A worker has something to say to the user."""

    message: str


@dataclasses.dataclass(frozen=True)
class _Scored:
    """A worker has scored a batch."""

    rows: int
    failed: int


@dataclasses.dataclass(frozen=True)
class _Finished:
    """A worker has written the part of a unit."""

    unit: int
    rows: int
    failed: int


class _Refused(Exception):
    """A store did not give, or take, what one of the units needed that a worker had; it has none of them any more."""


def _serve(setup: Setup, parent: Connection) -> None:
    """What a worker process does: score the units whose numbers arrive, until None does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end ends us
    if setup.cores:
        os.sched_setaffinity(0, setup.cores)
    lock = threading.Lock()

    def tell(message: object) -> None:
        with lock:  # a decoder has threads of its own, and may have something to say in any of them
            parent.send(message)

    try:
        executor = InProcess.open(setup, lambda message: tell(_Told(message)))
        tell(_Opened(executor.info, executor.decoder))
        over = False

        def given(task: _Task) -> Iterator[Task]:
            nonlocal over
            yield executor.task(task.units, task.number, careful=task.careful)
            # Without another at hand the pipeline is emptied, or the parent would wait for us and we for it.
            while parent.poll():
                following = parent.recv()
                if following is None:
                    over = True
                    return
                yield executor.task(following.units, following.number, careful=following.careful)

        while not over and (task := parent.recv()) is not None:
            found = executor.score(given(task), lambda rows, failed: tell(_Scored(rows, failed)))
            try:
                for number, rows in found:
                    task.units.keep(number, rows)
                    tell(_Finished(number, rows.num_rows, rows["score"].null_count))
            except StoreError as exc:
                tell(_Refused(str(exc)))
        executor.close()
    except FiqaError as exc:
        tell(exc)
    except (EOFError, ConnectionError):
        os._exit(1)  # the parent is gone; threads that still read must not hold us back


@dataclasses.dataclass
class Worker:
    """A process as its parent sees it."""

    setup: Setup
    process: BaseProcess
    connection: Connection
    units: set[int] = dataclasses.field(default_factory=set)
    opened: bool = False
    resting: bool = False  # it is given no units
    rows: int = 0  # reported of units that are not finished
    failed: int = 0

    @property
    def device(self) -> str:
        """That it works on."""
        return self.setup.device


def started(setup: Setup) -> Worker:
    """A process that opens its engine now."""
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(setup, theirs), daemon=True)
    process.start()
    theirs.close()  # so that its death closes the last other end
    return Worker(setup, process, mine)


class Processes(Alone):
    """One process for each device."""

    def __init__(self, devices: list[str], setup: Setup, say: Say = silent) -> None:
        """Start them and wait until each is ready; one that dies meanwhile is done without.

        Args:
            devices: of `parse_devices`.
            setup: its `threads` are shared out; its `device` does not count.
            say: hears what the user should know of.

        Raises:
            EngineError: one of them cannot be used, or they would not score alike.
            RunError: all of them died.
        """
        self._say, self._said = say, set[str]()
        cores = sorted(os.sched_getaffinity(0))
        on_cpu = devices.count("cpu")
        self._workers = list[Worker]()
        for index, device in enumerate(devices):
            threads = max(1, setup.threads // len(devices))
            share = tuple(cores[devices[:index].count("cpu") :: on_cpu]) if device == "cpu" else ()
            own = dataclasses.replace(setup, device=device, threads=threads, cores=share)
            self._workers.append(started(own))
        opened = list[_Opened]()
        try:
            for worker in list(self._workers):
                try:
                    opened.append(self._opened(worker))
                except (EOFError, ConnectionError) as exc:
                    self._lose(worker, _end(worker)[0], exc)
        except FiqaError:
            self.close()
            raise
        self.info, self.decoder = opened[0].info, opened[0].decoder
        self.setup = dataclasses.replace(setup, decoder=self.decoder)
        try:
            for worker, other in zip(self._workers, opened, strict=True):
                self._compare(worker, other)
        except EngineError:
            self.close()
            raise

    def _compare(self, worker: Worker, other: _Opened) -> None:
        """Raise EngineError if a worker would score otherwise than the first one."""
        for name in ("backend", "precision", "executed", "batch", "model"):
            here, there = getattr(self.info, name), getattr(other.info, name)
            if here != there:
                raise EngineError(
                    f"--devices: {name} is {here} on {self._workers[0].device} and {there} on {worker.device}, so "
                    "their scores would differ; give --engine, --precision and --batch-size, or use like devices"
                )

    def _opened(self, worker: Worker) -> _Opened:
        while True:
            message = worker.connection.recv()
            if isinstance(message, _Opened):
                worker.opened = True
                return message
            if isinstance(message, FiqaError):
                raise message
            self._tell(worker, message)

    def _tell(self, worker: Worker, told: _Told) -> None:
        if told.message not in self._said:  # most of what they say at the start, all of them say
            self._said.add(told.message)
            self._say(f"{worker.device}: {told.message}")

    def work(self, units: Units, report: Count) -> None:
        """See `Executor.work`."""
        dispatch = Dispatch(units)
        meanwhile = self._meanwhile(dispatch)
        while not dispatch.over:
            next(meanwhile, None)
            for worker in list(self._workers):
                room = 0 if worker.resting else AHEAD
                while len(worker.units) < room and (found := dispatch.give(worker.connection)) is not None:
                    worker.units.add(found[0])
                    send = functools.partial(worker.connection.send, _Task(units, *found))
                    self._guarded(worker, dispatch, report, send)
                    if worker not in self._workers:
                        break
            for connection in wait([worker.connection for worker in self._workers], timeout=1):
                worker = next(worker for worker in self._workers if worker.connection is connection)
                self._guarded(worker, dispatch, report, functools.partial(self._hear, worker, dispatch, report))

    def _meanwhile(self, dispatch: Dispatch) -> Iterator[None]:
        """What is done beside, a step between messages."""
        yield from ()

    def _guarded(self, worker: Worker, dispatch: Dispatch, report: Count, action: Callable[[], None]) -> None:
        """Do something with a worker; if it turns out to be dead, another one gets its units."""
        try:
            action()
        except (EOFError, ConnectionError) as exc:
            reason, crashed = _end(worker)
            report(-worker.rows, -worker.failed)
            dispatch.lost(worker.connection, f"the process for {worker.device} {reason}")
            if crashed and worker.units:
                self._replace(worker, reason)
            else:
                self._lose(worker, reason, exc)
        except RunError as exc:
            self._lose(worker, str(exc), exc)
            self._give_back(worker, dispatch, report, str(exc))
        except _Refused as exc:
            self._give_back(worker, dispatch, report, str(exc))

    def _give_back(self, worker: Worker, dispatch: Dispatch, report: Count, error: str) -> None:
        """A worker could not do its units. Raises RunError if that has been so with one of them too often."""
        report(-worker.rows, -worker.failed)
        numbers, worker.units, worker.rows, worker.failed = sorted(worker.units), set(), 0, 0
        for number in numbers:
            dispatch.failed(worker.connection, number, error)

    def _replace(self, worker: Worker, reason: str) -> None:
        """Put another process in the place of one that has crashed, be it because of what it was given."""
        self._say(f"the process for {worker.device} {reason}; another takes its place")
        worker.connection.close()
        self._workers[self._workers.index(worker)] = started(worker.setup)

    def _lose(self, worker: Worker, reason: str, error: Exception) -> None:
        """Go on without a worker, if that leaves any."""
        self._workers.remove(worker)
        worker.connection.close()
        if not self._workers:
            raise RunError(
                f"the process for {worker.device}, the last one, {reason}; run the same command again to resume"
            ) from error
        self._say(f"the process for {worker.device} {reason}; its units go to the others")

    def _hear(self, worker: Worker, dispatch: Dispatch, report: Count) -> None:
        message = worker.connection.recv()
        if isinstance(message, (FiqaError, _Refused)):
            raise message
        if isinstance(message, _Told):
            self._tell(worker, message)
        elif isinstance(message, _Opened):
            worker.opened = True
            self._compare(worker, message)
        elif isinstance(message, _Scored):
            worker.rows, worker.failed = worker.rows + message.rows, worker.failed + message.failed
            report(message.rows, message.failed)
        elif isinstance(message, _Finished):
            worker.units.discard(message.unit)
            dispatch.finished(worker.connection, message.unit)
            worker.rows, worker.failed = worker.rows - message.rows, worker.failed - message.failed

    def close(self) -> None:
        """See `Executor.close`."""
        self._dismiss(list(self._workers))

    def _dismiss(self, workers: list[Worker]) -> None:
        """Let some workers go."""
        for worker in workers:
            try:
                worker.connection.send(None)
            except (OSError, ValueError):
                continue
        deadline = time.monotonic() + _CLOSING_SECONDS
        for worker in workers:
            worker.process.join(max(0, deadline - time.monotonic()))
            worker.process.kill()  # at work still: the run has failed, and what is finished is kept
            worker.connection.close()
            self._workers.remove(worker)


def _end(worker: Worker) -> tuple[str, bool]:
    """How a process ended, and whether of something that it did itself: SIGKILL is somebody's who needs its memory."""
    worker.process.join(5)
    code = worker.process.exitcode
    when = "" if worker.opened else " while it started"
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}{when}", worker.opened and code != -signal.SIGKILL
    return f"ended with exit code {code}{when}", worker.opened
