"""The units of a run, scored in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from fiqa_trt.decoding.base import Decoder
from fiqa_trt.decoding.registry import open_decoder
from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.opening import open_engine
from fiqa_trt.errors import EngineError
from fiqa_trt.executors.base import Setup, Units
from fiqa_trt.pipeline import Unit, score_units
from fiqa_trt.progress import Count, Say, silent


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
        """See `Executor.work`."""
        pending = ((number, units.inputs(number)) for number in units.pending())
        for number, rows in self.score(pending, report):
            units.keep(number, rows)

    def score(self, units: Iterable[Unit], report: Count) -> Iterator[Unit]:
        """See `pipeline.score_units`."""
        return score_units(units, self._decoder, self._engine, report, self.setup.requests)

    def close(self) -> None:
        """See `Executor.close`."""
        self._engine.close()
