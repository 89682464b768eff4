"""One process or two for each GPU: both are measured at the work of the run itself, and what is quicker goes on.

A process has one lock, under which each image costs some time, and two on a GPU take turns. Which of them counts for
more depends on the processor, the GPU and the images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator

from fiqa_trt.errors import EngineError
from fiqa_trt.executors.attempts import Dispatch
from fiqa_trt.executors.base import Setup, Units
from fiqa_trt.executors.processes import AHEAD, Processes, Worker, started
from fiqa_trt.progress import Count, Say, silent

WARM_UP, MEASURED = 2.0, 5.0
"""Seconds before a rate is measured, and that it is."""
LONG = 120.0
"""Seconds of work left that make it worth the start of more processes."""
GAIN = 1.1
"""Times as quick as one process that two have to be, as they take twice the memory."""


class Race(Processes):
    """One process for each device, then two, then what was quicker."""

    def __init__(self, devices: list[str], setup: Setup, say: Say = silent) -> None:
        """As `Processes`; no device twice."""
        super().__init__(devices, setup, say)
        self._rows, self._added = 0, list[Worker]()

    def work(self, units: Units, report: Count) -> None:
        """See `Executor.work`."""

        def counted(rows: int, failed: int) -> None:
            self._rows += rows
            report(rows, failed)

        super().work(units, counted)

    def _meanwhile(self, dispatch: Dispatch) -> Iterator[None]:
        alone = yield from self._rate()
        while math.isinf(dispatch.seconds_left):
            yield
        first = list(self._workers)
        if dispatch.seconds_left / (AHEAD * len(first)) < LONG:
            return
        self._added = [started(worker.setup) for worker in first]
        self._workers += self._added
        for worker in self._added:
            worker.resting = True
        while any(not worker.opened for worker in self._more()):
            yield
        for worker in self._more():
            worker.resting = False
        if not self._more():
            return
        both = yield from self._rate()
        rates = f"{both:,.0f} images/s with two processes on a GPU, {alone:,.0f} with one"
        if both >= GAIN * alone:
            self._say(f"{rates}: two go on")
            return
        self._say(f"{rates}: one goes on")
        for worker in self._more():
            worker.resting = True
        while any(worker.units for worker in self._more()):
            yield
        self._dismiss(self._more())

    def _more(self) -> list[Worker]:
        """Those that came later and live."""
        return [worker for worker in self._added if worker in self._workers]

    def _hear(self, worker: Worker, dispatch: Dispatch, report: Count) -> None:
        try:
            super()._hear(worker, dispatch, report)
        except EngineError as exc:
            if not worker.resting:
                raise
            self._dismiss([worker])
            self._say(f"one process on {worker.device}, as another cannot be had: {exc}")

    def _rate(self) -> Generator[None, None, float]:
        """Images/s from now on."""
        began = time.monotonic()
        while time.monotonic() < began + WARM_UP:
            yield
        began, rows = time.monotonic(), self._rows
        while time.monotonic() < began + MEASURED:
            yield
        return (self._rows - rows) / (time.monotonic() - began)
