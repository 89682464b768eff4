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
from fiqa_trt.verification import Agreement, check, compare, verification_batch

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
    images = verification_batch()
    images = np.resize(images, (engine.info.batch, *images.shape[1:]))
    flying = deque(engine.submit(images) for _ in range(2 * engine.slots))

    def turn() -> None:
        flying.append(engine.submit(images))
        flying.popleft().result()

    for _ in range(len(flying)):  # the first calls allocate, and what they finished is not to be counted
        turn()
    done, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        turn()
        done += 1
    rate = done * len(images) / (time.perf_counter() - began)
    for future in flying:
        future.result()
    return rate


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an engine turned out to be: itself with the quickest batch, images per second, agreement with FP32.

    `scores` are those of the verification batch.
    """

    info: EngineInfo
    rate: float
    agreement: dict[str, float]
    scores: Scores


def measure_engine(
    open_with: Callable[[int], Engine],
    batches: Sequence[int],
    reference: Scores,
    precision: str,
    what: str,
    say: Say,
    *,
    at_once: bool = False,
) -> Measured:
    """Verify an engine with every batch size, and time it.

    Args:
        open_with: opens it with a batch size.
        batches: sizes to try; those that the machine has no memory for are left out, and `say` hears of it.
        reference: member scores of the verification batch.
        precision: whose tolerance holds.
        what: the engine, in a word.
        say: told what was measured.
        at_once: keep all open and time them in turn, so that none has a quiet moment of the machine for itself. Not on
            a GPU, whose memory that could exceed.

    Raises:
        EngineError: out of tolerance, or it cannot be opened with any batch size.
    """
    rates, found = dict[int, list[float]](), dict[int, tuple[EngineInfo, Agreement, Scores]]()
    with contextlib.ExitStack() as stack:
        engines = dict[int, Engine]()
        for batch in batches:
            try:
                engine = open_with(batch)
            except EngineError as exc:
                if batch == batches[-1] and not found:
                    raise
                say(f"{what}, batch {batch} left out: {exc}")
                continue
            stack.callback(engine.close)
            engines[batch] = engine
            scores = infer(engine, verification_batch())
            agreement = compare(scores, reference)
            check(agreement, precision, f"the {what} engine")
            found[batch] = engine.info, agreement, scores
            if not at_once:
                rates[batch] = [throughput(engine, _TIMED_SECONDS) for _ in range(_ROUNDS)]
                stack.pop_all().close()
        if at_once:
            rounds = [[throughput(engine, _TIMED_SECONDS) for engine in engines.values()] for _ in range(_ROUNDS)]
            rates = {batch: [one[place] for one in rounds] for place, batch in enumerate(engines)}
    medians = {batch: statistics.median(values) for batch, values in rates.items()}
    say(f"{what}, images/s by batch: " + ", ".join(f"{batch}: {rate:,.0f}" for batch, rate in medians.items()))
    best = max(medians, key=lambda batch: medians[batch])
    info, agreement, scores = found[best]
    return Measured(info, medians[best], agreement.rounded(), scores)


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
        reference=rounded(found.scores),
    )


def rounded(scores: Scores) -> tuple[tuple[float, ...], ...]:
    """Member scores as a manifest records them."""
    return tuple(tuple(float(f"{value:.7g}") for value in row) for row in scores)


def batch_sizes(sizes: Sequence[int], max_batch: int) -> list[int]:
    """Those of `sizes` up to `max_batch`; that itself, too, if it is below the largest of them."""
    return sorted({size for size in sizes if size <= max_batch} | ({max_batch} if max_batch < sizes[-1] else set()))
