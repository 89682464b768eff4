"""An engine against the FP32 reference, and against the clock."""

from __future__ import annotations

import contextlib
import dataclasses
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import numpy as np

from fiqa_trt.engines.base import Engine, EngineInfo, Judged, Scores
from fiqa_trt.engines.known import agreement, judge
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.store import NOISE
from fiqa_trt.errors import EngineError
from fiqa_trt.models.verification import Fidelity, check, verification_batch
from fiqa_trt.progress import Say

_TIMED_SECONDS, _ROUNDS = 0.3, 7

T = TypeVar("T")


def throughput(engine: Engine, seconds: float) -> float:
    """Images per second of an engine that is kept busy for `seconds` or a little longer, its copies included.

    From the first image that goes in to the last that comes out: what is under way when a clock stops would count for
    more, the larger the batch.
    """
    images = verification_batch()
    images = np.resize(images, (engine.info.batch, *images.shape[1:]))
    for future in [engine.submit(images) for _ in range(engine.slots)]:  # the first calls allocate
        future.result()
    flying, done, began = deque[Future[Judged]](), 0, time.perf_counter()
    while time.perf_counter() - began < seconds or done % engine.slots:  # all its slots have the same to do
        flying.append(engine.submit(images))
        done += 1
        if len(flying) > 2 * engine.slots:
            flying.popleft().result()
    for future in flying:
        future.result()
    return done * len(images) / (time.perf_counter() - began)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What an engine turned out to be.

    Attributes:
        info: of it with the batch that was chosen.
        rate: images per second.
        agreement: with FP32.
        judged: of the verification batch.
        gain: images for each one that another engine scored in the same time; 0 where there was none to compare with.
    """

    info: EngineInfo
    rate: float
    agreement: dict[str, float]
    judged: Judged
    gain: float = 0.0


def measure_engine(
    open_with: Callable[[int], Engine],
    batches: Sequence[int],
    reference: Judged,
    precision: str,
    what: str,
    say: Say,
    *,
    beside: Engine | None = None,
) -> Measured:
    """Verify an engine with every batch size, and time it.

    Args:
        open_with: opens it with a batch size.
        batches: sizes to try, the one to be preferred first; those that the machine has no memory for are left out,
            and `say` hears of it.
        reference: of the verification batch.
        precision: whose tolerance holds.
        what: the engine, in a word.
        say: told what was measured.
        beside: another engine. It and all batch sizes are then kept open and timed in turn, round by round, so that
            what else the machine does, it does to all of them. Not on a GPU, whose memory that could exceed.

    Raises:
        EngineError: out of tolerance, or it cannot be opened with any batch size.
    """
    rates, found = dict[int, list[float]](), dict[int, tuple[EngineInfo, Fidelity, Judged]]()
    gain = 0.0
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
            judged = judge(engine, verification_batch())
            near = agreement(judged, reference)
            check(near, precision, f"the {what} engine")
            found[batch] = engine.info, near, judged
            if beside is None:
                rates[batch] = [throughput(engine, _TIMED_SECONDS) for _ in range(_ROUNDS)]
                stack.pop_all().close()
        if beside is not None:
            rates, others = _in_turn(engines, beside, _ROUNDS)
        medians = {batch: statistics.median(rates[batch]) for batch in sorted(rates)}
        say(f"{what}, images/s by batch: " + ", ".join(f"{batch}: {rate:,.0f}" for batch, rate in medians.items()))
        best = choose(rates)
        if beside is not None:
            if len(engines) > 1:  # one right after the other, twice as often: engines of other days compare by it
                duel, others = _in_turn({best: engines[best]}, beside, 2 * _ROUNDS)
                rates[best] = duel[best]
            gain = statistics.median(ours / theirs for ours, theirs in zip(rates[best], others, strict=True))
    info, near, judged = found[best]
    return Measured(info, statistics.median(rates[best]), near.rounded(), judged, gain)


def _in_turn(engines: dict[int, Engine], beside: Engine, rounds: int) -> tuple[dict[int, list[float]], list[float]]:
    """Rates of engines, and of the one beside them, in rounds; every second round goes backwards."""
    rates: dict[int, list[float]] = {batch: [] for batch in engines}
    others = list[float]()
    turns = [(beside, others), *((engine, rates[batch]) for batch, engine in engines.items())]
    for number in range(rounds):
        for engine, into in turns[:: -1 if number % 2 else 1]:
            into.append(throughput(engine, _TIMED_SECONDS))
    return rates, others


def choose(rates: Mapping[T, Sequence[float]]) -> T:
    """The first way that none outruns for sure: by more than 5 % at the median, and in all rounds but one.

    Args:
        rates: images/s round by round, the way to be preferred first.
    """
    best = max(rates, key=lambda way: statistics.median(rates[way]))

    def beaten(way: T) -> bool:
        ratios = [first / second for first, second in zip(rates[best], rates[way], strict=True)]
        return statistics.median(ratios) > NOISE and sum(ratio > 1 for ratio in ratios) >= len(ratios) - 1

    return next(way for way in rates if not beaten(way))


def quickest(measured: Callable[[T], Measured], ways: Sequence[T], say: Say) -> tuple[T, Measured]:
    """The quickest of several ways to run a network that are within tolerance; the others are told to `say`.

    Of ways that are as quick, but for noise, it is the first.

    Raises:
        EngineError: none is; the message is the last one's.
    """
    best: tuple[T, Measured] | None = None
    for index, way in enumerate(ways):
        try:
            found = measured(way)
        except EngineError as exc:
            if best is None and index == len(ways) - 1:
                raise
            say(f"left out: {exc}")
            continue
        if best is None or _speed(found) > NOISE * _speed(best[1]):
            best = way, found
    assert best is not None
    return best


def _speed(found: Measured) -> float:
    """What ways are compared by: a load that comes or goes between them does not change what one is of another."""
    return found.gain or found.rate


def with_figures(manifest: Manifest, found: Measured) -> Manifest:
    """The manifest with what was measured."""
    low, _, high = manifest.batch
    return dataclasses.replace(
        manifest,
        executed=found.info.executed,
        batch=(low, found.info.batch, high),
        throughput=round(found.rate, 1),
        gain=round(found.gain, 3),
        agreement=found.agreement,
        **recorded(found.judged),
    )


def recorded(judged: Judged) -> dict[str, Any]:
    """The fields of a manifest that say what an engine gives."""
    return {"reference": rounded(judged.scores), "severities": rounded(judged.causes) if judged.causes.size else ()}


def rounded(scores: Scores) -> tuple[tuple[float, ...], ...]:
    """Member scores as a manifest records them."""
    return tuple(tuple(float(f"{value:.7g}") for value in row) for row in scores)


def batch_sizes(sizes: Sequence[int], max_batch: int) -> list[int]:
    """Those of `sizes` up to `max_batch`; that itself, too, if it is below the largest of them."""
    return sorted({size for size in sizes if size <= max_batch} | ({max_batch} if max_batch < sizes[-1] else set()))
