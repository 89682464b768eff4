"""An engine against the FP32 reference, and against the clock."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from fiqa_trt.engines import Engine
from fiqa_trt.engines.base import EngineInfo, Scores
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.errors import EngineError
from fiqa_trt.verification import check, compare, verification_batch

_TIMED_SECONDS, _ROUNDS = 0.4, 5

Pixels = npt.NDArray[np.uint8]
Say = Callable[[str], None]
T = TypeVar("T")


def infer(engine: Engine, images: Pixels) -> Scores:
    """Member scores of any number of images, in padded batches."""
    batch = engine.info.batch
    pending: list[tuple[Future[Scores], int]] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        padded = np.zeros((batch, *images.shape[1:]), np.uint8)
        padded[: len(part)] = part
        pending.append((engine.submit(padded), len(part)))
    return np.concatenate([future.result()[:count] for future, count in pending])


def throughput(engine: Engine, seconds: float) -> float:
    """Images per second of an engine that is kept busy, its copies included."""
    images = np.resize(verification_batch(), (engine.info.batch, 224, 224, 3))
    flying = deque(engine.submit(images) for _ in range(2 * engine.slots))
    flying[0].result()  # the first calls allocate
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        flying.append(engine.submit(images))
        flying.popleft().result()
        done += 1
    rate = done * len(images) / (time.perf_counter() - began)
    for future in flying:
        future.result()
    return rate


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an engine turned out to be: itself with the quickest batch, images per second, agreement with FP32."""

    info: EngineInfo
    rate: float
    agreement: dict[str, float]


def measure_engine(
    open_with: Callable[[int], Engine], batches: Sequence[int], reference: Scores, precision: str, what: str, say: Say
) -> Measured:
    """Verify an engine, then time it with several batch sizes, in turn, so that none has a quiet moment for itself.

    Raises:
        EngineError: out of tolerance.
    """
    with contextlib.ExitStack() as stack:
        engines = list[Engine]()
        for batch in batches:
            engines.append(open_with(batch))
            stack.callback(engines[-1].close)
            if len(engines) == 1:
                agreement = compare(infer(engines[0], verification_batch()), reference)
                check(agreement, precision, what)
        rounds = [[throughput(engine, _TIMED_SECONDS) for engine in engines] for _ in range(_ROUNDS)]
    rates = [statistics.median(rates) for rates in zip(*rounds, strict=True)]
    say(f"{what}, images/s by batch: " + ", ".join(f"{b} {rate:,.0f}" for b, rate in zip(batches, rates, strict=True)))
    best = max(range(len(rates)), key=lambda index: rates[index])
    return Measured(engines[best].info, rates[best], agreement.rounded())


def quickest(measured: Callable[[T], Measured], ways: Sequence[T], say: Say) -> Measured:
    """The quickest of several ways to run a network that are within tolerance; the others are told to `say`.

    Raises:
        EngineError: none is; the message is the last one's.
    """
    best: Measured | None = None
    for index, way in enumerate(ways):
        try:
            found = measured(way)
        except EngineError as exc:
            if best is None and index == len(ways) - 1:
                raise
            say(f"left out: {exc}")
            continue
        if best is None or found.rate > best.rate:
            best = found
    assert best is not None
    return best


def with_figures(manifest: Manifest, found: Measured) -> Manifest:
    """The manifest with what was measured."""
    low, _, high = manifest.batch
    return dataclasses.replace(
        manifest,
        executed=found.info.executed,
        batch=(low, found.info.batch, high),
        throughput=round(found.rate, 1),
        agreement=found.agreement,
    )


def batch_sizes(sizes: Sequence[int], max_batch: int) -> list[int]:
    """Those of `sizes` up to `max_batch`, and itself."""
    return sorted({size for size in sizes if size <= max_batch} | ({max_batch} if max_batch < sizes[-1] else set()))
