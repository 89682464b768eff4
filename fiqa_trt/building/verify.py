"""An engine that is there, opened and compared again; timed if that could not be done when it was built."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fiqa_trt.building.cuda import BATCHES
from fiqa_trt.building.measuring import batch_sizes, measure_engine
from fiqa_trt.engines.known import fidelity, record
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import open_engine
from fiqa_trt.engines.registry import BACKENDS
from fiqa_trt.models.verification import Fidelity, check
from fiqa_trt.progress import Say


def verify(folder: Path, say: Say) -> tuple[Fidelity, Manifest]:
    """How near an engine comes to the scores that it records, and its manifest after that.

    Raises:
        EngineError: it cannot be used here, or it is too far from them.
    """
    engine = open_engine(engine=str(folder), say=say)
    try:
        manifest = Manifest.read(folder)
        found = fidelity(engine, manifest)
        check(found, manifest.precision, str(folder), "should not be used")
    finally:
        engine.close()
    if manifest.throughput or not BACKENDS[manifest.backend].built:
        return found, manifest
    low, _, high = manifest.batch
    measured = measure_engine(
        lambda batch: open_engine(engine=str(folder), batch=batch),
        [size for size in batch_sizes(BATCHES, high) if size >= low],
        manifest.known, manifest.precision, str(folder), say,
    )  # fmt: skip
    timed = dataclasses.replace(
        manifest,
        batch=(low, measured.info.batch, high),
        throughput=round(measured.rate, 1),
        agreement=measured.agreement,
    )
    record(folder, timed)
    return found, timed
