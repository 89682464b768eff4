"""The units of a run, scored in this process."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

from fiqa_trt.decoder import Decoder
from fiqa_trt.decoders import open_decoder
from fiqa_trt.engines import Engine, open_engine
from fiqa_trt.errors import EngineError
from fiqa_trt.executor import Setup
from fiqa_trt.pipeline import Unit, score_units
from fiqa_trt.progress import Count, Say, silent
from fiqa_trt.runs import RunFolder


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

    def work(self, folder: RunFolder, image_column: str | None, report: Count) -> None:
        """See `Workers.work`."""
        units = ((number, folder.unit(number)) for number in folder.pending())
        for number, table in self.score(units, image_column, report):
            folder.write_part(number, table)

    def score(self, units: Iterable[Unit], image_column: str | None, report: Count) -> Iterator[Unit]:
        """See `pipeline.score_units`."""
        return score_units(units, self._decoder, self._engine, image_column, report)

    def close(self) -> None:
        """See `Workers.close`."""
        self._engine.close()
