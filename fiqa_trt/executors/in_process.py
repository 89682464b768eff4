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
from fiqa_trt.executors.base import Setup, Units
from fiqa_trt.pipeline import Unit, score_units
from fiqa_trt.progress import Count, Say, silent

FEW = 3
"""Units that a store has left without their images, after which the run ends."""


class InProcess:
    """One engine and one decoder in this process."""

    def __init__(self, engine: Engine, decoder: Decoder, setup: Setup = Setup()) -> None:
        self.info, self.decoder = engine.info, decoder.name
        self.setup = dataclasses.replace(setup, decoder=decoder.name, max_pixels=decoder.max_pixels)
        self._engine, self._decoder = engine, decoder

    @classmethod
    def open(cls, setup: Setup, say: Say = silent) -> InProcess:
        """Open the engine and the decoder. Raises EngineError."""
        engine = open_engine(setup.device, setup.precision, setup.engine, setup.batch, say)
        try:
            return cls(engine, open_decoder(setup.decoder, engine.place, setup.threads, setup.max_pixels, say), setup)
        except EngineError:
            engine.close()
            raise

    def work(self, units: Units, report: Count) -> None:
        """See `Executor.work`. A unit whose images a store does not give is left, until there are a few of them."""
        waiting, failed = deque(units.pending()), list[StoreError]()
        while waiting and len(failed) < FEW:
            if self._work(units, waiting, None, report) is None:
                continue
            # Which one it was is not known, as several are under way: the first by itself, and then the others.
            if waiting and (error := self._work(units, waiting, 1, report)) is not None:
                failed.append(error)
                waiting.popleft()
        if failed:
            raise failed[0]

    def _work(self, units: Units, waiting: deque[int], count: int | None, report: Count) -> StoreError | None:
        """Score the first of the units that wait, which leave when they are kept; what a store has against it."""
        seen, bad = 0, 0

        def tell(rows: int, failures: int) -> None:
            nonlocal seen, bad
            seen, bad = seen + rows, bad + failures
            report(rows, failures)

        scored = self.score(((number, units.inputs(number)) for number in [*islice(waiting, count)]), tell)
        while True:
            try:
                number, rows = next(scored)
            except StopIteration:
                return None
            except StoreError as exc:
                report(-seen, -bad)
                return exc
            units.keep(number, rows)
            waiting.popleft()
            seen, bad = seen - rows.num_rows, bad - rows["score"].null_count

    def score(self, units: Iterable[Unit], report: Count) -> Iterator[Unit]:
        """See `pipeline.score_units`."""
        return score_units(units, self._decoder, self._engine, report, self.setup.requests)

    def close(self) -> None:
        """See `Executor.close`."""
        self._engine.close()
