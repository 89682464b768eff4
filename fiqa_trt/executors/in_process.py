"""The units of a run, scored in this process."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable, Iterator
from itertools import islice

from fiqa_trt.decoding.base import Decoder
from fiqa_trt.decoding.registry import open_decoder
from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.opening import open_engine
from fiqa_trt.errors import EngineError, StoreError
from fiqa_trt.executors.attempts import Attempts
from fiqa_trt.executors.base import Alone, Setup, Units
from fiqa_trt.executors.sifting import sift
from fiqa_trt.pipeline import Task, Unit, score_units
from fiqa_trt.progress import Count, Say, silent

FEW = 3
"""Units that a store has left without their images, after which the run ends."""


class InProcess(Alone):
    """One engine and one decoder in this process."""

    def __init__(self, engine: Engine, decoder: Decoder, setup: Setup = Setup(), say: Say = silent) -> None:
        self.info, self.decoder = engine.info, decoder.name
        self.setup = dataclasses.replace(setup, decoder=decoder.name, max_pixels=decoder.max_pixels)
        self._engine, self._decoder, self._say = engine, decoder, say

    @classmethod
    def open(cls, setup: Setup, say: Say = silent) -> InProcess:
        """Open the engine and the decoder. Raises EngineError."""
        engine = open_engine(setup.device, setup.precision, setup.engine, setup.batch, say)
        try:
            decoder = open_decoder(setup.decoder, engine.place, setup.threads, setup.max_pixels, say)
            return cls(engine, decoder, setup, say)
        except EngineError:
            engine.close()
            raise

    def work(self, units: Units, report: Count) -> None:
        """See `Executor.work`. A unit whose images a store does not give is left, until there are a few of them."""
        attempts, waiting, failed = Attempts(units), deque(units.pending()), list[StoreError]()
        try:
            while waiting and len(failed) < FEW:
                if self._work(units, waiting, attempts, None, report) is None:
                    continue
                # Which one it was is not known, as several are under way: the first by itself, and then the others.
                if waiting and (error := self._work(units, waiting, attempts, 1, report)) is not None:
                    failed.append(error)
                    waiting.popleft()
        finally:
            attempts.close()
        if failed:
            raise failed[0]

    def _work(
        self, units: Units, waiting: deque[int], attempts: Attempts, count: int | None, report: Count
    ) -> StoreError | None:
        """Score the first of the units that wait, which leave when they are kept; what a store has against it."""
        seen, bad = 0, 0

        def tell(rows: int, failures: int) -> None:
            nonlocal seen, bad
            seen, bad = seen + rows, bad + failures
            report(rows, failures)

        def begun() -> Iterator[Task]:
            for number in [*islice(waiting, count)]:
                careful = attempts.careful(number)
                attempts.begin(number)
                yield self.task(units, number, careful=careful)

        scored = self.score(begun(), tell)
        while True:
            try:
                number, rows = next(scored)
            except StopIteration:
                return None
            except StoreError as exc:
                attempts.close()
                report(-seen, -bad)
                return exc
            units.keep(number, rows)
            attempts.end(number)
            waiting.popleft()
            seen, bad = seen - rows.num_rows, bad - rows["score"].null_count

    def task(self, units: Units, number: int, *, careful: bool) -> Task:
        """A unit that is to be scored; if one is to be `careful`, without the images that end a process."""
        table = units.inputs(number)
        found = sift(number, table, self.setup, self._engine.place, self._say) if careful else {}
        return Task(number, table, found)

    def score(self, units: Iterable[Task], report: Count) -> Iterator[Unit]:
        """See `pipeline.score_units`."""
        return score_units(units, self._decoder, self._engine, report, self.setup.requests, causes=self.setup.causes)

    def close(self) -> None:
        """See `Executor.close`."""
        self._engine.close()
