"""Inputs to rows: read, decode, engine, with bounded queues between them and everything in order."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fiqa_trt.decode import Decoder
from fiqa_trt.engines import Engine
from fiqa_trt.engines.base import Scores
from fiqa_trt.errors import RunError
from fiqa_trt.records import ImageError, Outcome, Status, open_path, to_table
from fiqa_trt.sources import read_file
from fiqa_trt.spec import PreprocessSpec

T = TypeVar("T")
R = TypeVar("R")

Unit = tuple[int, pa.Table]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """One engine call's worth of a unit's inputs."""

    unit: int
    paths: list[str]
    last: bool


@dataclasses.dataclass(frozen=True)
class _Decoded:
    """A chunk with the outcome of each input, and uint8 pixels [batch, 224, 224, 3]: the good ones first."""

    chunk: _Chunk
    outcomes: list[Outcome]
    pixels: npt.NDArray[np.uint8]


def bounded_map(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`map` over a pool, in order, with at most `ahead` items begun and not yet taken."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def score_units(
    units: Iterable[Unit],
    decoder: Decoder,
    engine: Engine,
    workers: int,
    report: Callable[[int, int], None] = lambda rows, failed: None,
) -> Iterator[Unit]:
    """Score units of inputs; yields each unit's number and its output rows, in order.

    Decoding (in `workers` threads) and the engine overlap, also from one unit to the next. Memory holds a few units of
    rows and a few batches of pixels, however many units there are.

    Args:
        units: number and inputs (column `path` first) of each.
        decoder: bytes to pixels.
        engine: pixels to scores.
        workers: threads that read and decode.
        report: called after every batch with its rows and how many of them failed.
    """
    batch, size = engine.info.batch, PreprocessSpec().size
    begun: dict[int, pa.Table] = {}

    def chunks() -> Iterator[_Chunk]:
        for number, table in units:
            begun[number] = table
            paths = table.column(0).to_pylist()
            for start in range(0, len(paths), batch):
                yield _Chunk(number, paths[start : start + batch], start + batch >= len(paths))

    def decode(chunk: _Chunk) -> _Decoded:
        pixels = np.zeros((batch, size, size, 3), np.uint8)
        outcomes = decoder.decode([_read(path) for path in chunk.paths], pixels)
        return _Decoded(chunk, outcomes, pixels)

    pool = ThreadPoolExecutor(workers, "decode")
    try:
        outcomes, scores = list[Outcome](), list[Scores]()
        for decoded, result in _infer(bounded_map(pool, decode, chunks(), 2 * workers), engine):
            outcomes += decoded.outcomes
            scores.append(_spread(decoded.outcomes, result, len(engine.info.members)))
            report(len(decoded.outcomes), sum(outcome.status is not Status.OK for outcome in decoded.outcomes))
            if decoded.chunk.last:
                number = decoded.chunk.unit
                yield number, to_table(begun.pop(number), outcomes, np.concatenate(scores), engine.info.members)
                outcomes, scores = [], []
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _read(path: str) -> bytes | ImageError:
    try:
        return read_file(open_path(path))
    except ImageError as exc:
        return exc


def _infer(batches: Iterable[_Decoded], engine: Engine) -> Iterator[tuple[_Decoded, Scores | None]]:
    """Keep the engine busy: a result is taken when it is there, and awaited only when enough others are under way."""
    flying: deque[tuple[_Decoded, Future[Scores] | None]] = deque()

    def land() -> tuple[_Decoded, Scores | None]:
        decoded, future = flying.popleft()
        return decoded, None if future is None else future.result()

    for decoded in batches:
        wanted = any(outcome.status is Status.OK for outcome in decoded.outcomes)
        flying.append((decoded, engine.submit(decoded.pixels) if wanted else None))
        while flying and ((future := flying[0][1]) is None or future.done() or len(flying) > 2 * engine.slots):
            yield land()
    while flying:
        yield land()


def _spread(outcomes: list[Outcome], result: Scores | None, members: int) -> Scores:
    """Scores [N, members] in the order of the outcomes; rows of failures are NaN.

    Raises:
        RunError: a score that is not a number. No image may bring that about, so the engine is at fault.
    """
    scores = np.full((len(outcomes), members), np.nan, np.float32)
    good = [index for index, outcome in enumerate(outcomes) if outcome.status is Status.OK]
    if result is not None:
        scores[good] = result[: len(good)]
    if not np.isfinite(scores[good]).all():
        raise RunError("the engine returned a score that is not a number; check the checkpoint or use --precision fp32")
    return scores
