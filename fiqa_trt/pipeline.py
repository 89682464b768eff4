"""Inputs to rows: read, decode, engine, with bounded queues between them and everything in order."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fiqa_trt.decoding.base import Decoded, Decoder
from fiqa_trt.engines.base import Engine, Scores
from fiqa_trt.errors import FiqaError, RunError, one_line
from fiqa_trt.inputs.containers.columns import DEFAULT_COLUMN
from fiqa_trt.inputs.containers.registry import is_table
from fiqa_trt.inputs.places import Place, locate
from fiqa_trt.inputs.reader import ShardReader, read_places
from fiqa_trt.outcomes import Origin, Outcome, Status, unforeseen
from fiqa_trt.progress import Count, silent
from fiqa_trt.scores.schema import to_table
from fiqa_trt.storage.reading import Blob, Read

READERS = 8
"""Threads that wait for the disk: more than there may be cores, because a network's disk answers late."""
_READ_BYTES = 256 << 20
"""Files that are being read, or wait to be decoded, hold about this much at most, if they are large."""
_DECODE_BYTES = max(256 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16)
"""The same of files that are being decoded: a sixteenth of the memory, or many cores would run short of large ones."""

T = TypeVar("T")
R = TypeVar("R")

Unit = tuple[int, pa.Table]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The images of a unit in the order in which they are best read: those of a shard as they stand in it.

    Attributes:
        places: of the images, in that order.
        order: number of each in the unit; None if the order is that of the unit.
    """

    places: list[Place]
    order: npt.NDArray[np.intp] | None

    def restored(
        self, outcomes: list[Outcome], origins: list[Origin], scores: Scores
    ) -> tuple[list[Outcome], list[Origin], Scores]:
        """What the images were given, in the order of the unit."""
        if self.order is None:
            return outcomes, origins, scores
        back = np.argsort(self.order)
        return [outcomes[index] for index in back], [origins[index] for index in back], scores[back]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """One engine call's worth of a unit's inputs."""

    unit: int
    places: list[Place]
    last: bool


class Reader:
    """Reads the files of a chunk: in several threads, but rows of tables, which are best read in turn, in one."""

    def __init__(self, image_column: str | None = None) -> None:
        self._pools = [ThreadPoolExecutor(count, name) for count, name in ((READERS, "read"), (1, "rows"), (1, "plan"))]
        self._files, self._tables, self._plans = self._pools
        self._shards = ShardReader(image_column or DEFAULT_COLUMN)
        self._closed = False

    def plan(self, paths: Sequence[str]) -> Future[Plan]:
        """Start to find out where recorded paths lead, and in which order they are best read."""
        return self._plans.submit(self._plan, paths)

    def _plan(self, paths: Sequence[str]) -> Plan:
        known = dict[str, bool]()
        places = [locate(path, known) for path in paths]
        inside = dict[str, list[int]]()
        for index, (file, key) in enumerate(places):
            if key is not None:
                inside.setdefault(file, []).append(index)
        if not inside:
            return Plan(places, None)

        def positions(file: str) -> list[int]:
            return [] if self._closed else self._shards.positions(file, [places[i][1] or "" for i in inside[file]])

        # Whole shards in the order in which they first occur; plain files stay together where the first of them is.
        ranks = dict.fromkeys(file if key is not None else "" for file, key in places)
        rank = {file: number for number, file in enumerate(ranks)}
        within = list(range(len(places)))
        for file, found in zip(inside, self._files.map(positions, inside), strict=True):
            for index, position in zip(inside[file], found, strict=False):
                within[index] = position
        key_of = [
            (rank[file if key is not None else ""], place) for (file, key), place in zip(places, within, strict=True)
        ]
        order = sorted(range(len(places)), key=key_of.__getitem__)
        if order == list(range(len(places))):
            return Plan(places, None)
        return Plan([places[index] for index in order], np.array(order, np.intp))

    def submit(self, places: Sequence[Place]) -> Future[list[Read]]:
        """Start reading; the result holds the bytes of each, or why there are none."""
        pool = self._tables if any(key is not None and is_table(file) for file, key in places) else self._files
        return pool.submit(read_places, places, self._shards, lambda: self._closed)

    def close(self) -> None:
        """Begin nothing more, and release what is open; waits for nobody, as a disk may never answer."""
        self._closed = True
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        self._shards.close()


def bounded_map(submit: Callable[[T], Future[R]], items: Iterable[T], ahead: Callable[[], int]) -> Iterator[R]:
    """Results of what `submit` begins, in order, with at most `ahead()` items begun and not yet taken."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(submit(item))
        while len(waiting) >= ahead():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def score_units(
    units: Iterable[Unit],
    decoder: Decoder,
    engine: Engine,
    image_column: str | None = None,
    report: Count = silent,
) -> Iterator[Unit]:
    """Score units of inputs; yields each unit's number and its output rows, in order.

    Reading, decoding and the engine overlap, also from one unit to the next. Memory holds a few units of rows, a few
    chunks of files and a few batches of pixels, however many units there are.

    Args:
        units: number and inputs (column `path` first) of each.
        decoder: bytes to pixels.
        engine: pixels to scores.
        image_column: of the tables among the inputs.
        report: called after every batch with its rows and how many of them failed.
    """
    batch, members = engine.info.batch, engine.info.members
    begun: dict[int, tuple[pa.Table, Plan]] = {}
    order: deque[_Chunk] = deque()  # of what is under way
    came: deque[Origin] = deque()  # from where, what was read and is not scored yet
    largest = 0  # bytes of a chunk so far
    reader, decoding = Reader(image_column), ThreadPoolExecutor(decoder.threads, "decode")

    def planned() -> Iterator[tuple[Unit, Plan]]:
        waiting = deque[Unit]()

        def begin(unit: Unit) -> Future[Plan]:
            waiting.append(unit)
            return reader.plan(unit[1].column(0).to_pylist())

        for plan in bounded_map(begin, units, lambda: 2):
            yield waiting.popleft(), plan

    def chunks() -> Iterator[_Chunk]:
        for (number, table), plan in planned():
            begun[number] = table, plan
            for start in range(0, len(plan.places), batch):
                chunk = plan.places[start : start + batch]
                order.append(_Chunk(number, chunk, start + batch >= len(plan.places)))
                yield order[-1]

    def within(size: int, most: int) -> int:
        """Chunks of `largest` that `size` bytes hold, from 2 to `most`; 2 until a first one is known."""
        return max(2, min(most, size // largest)) if largest else 2

    def decode(read: list[Read]) -> Future[Decoded]:
        nonlocal largest
        blobs = [blob for blob, _ in read]
        came.extend(origin for _, origin in read)
        largest = max(largest, sum(len(blob) for blob in blobs if isinstance(blob, bytes)))
        return decoding.submit(decode_all, decoder, blobs, batch)

    try:
        outcomes, scores = list[Outcome](), list[Scores]()
        read = bounded_map(
            lambda chunk: reader.submit(chunk.places), chunks(), lambda: within(_READ_BYTES, 2 * READERS)
        )
        decoded_ahead = bounded_map(decode, read, lambda: within(_DECODE_BYTES, 2 * decoder.threads))
        for decoded, result in _infer(decoded_ahead, engine):
            chunk = order.popleft()
            outcomes += decoded.outcomes
            scores.append(scores_of_good(decoded.outcomes, result, len(members)))
            report(len(decoded.outcomes), sum(outcome.status is not Status.OK for outcome in decoded.outcomes))
            if chunk.last:
                table, plan = begun.pop(chunk.unit)
                origins = [came.popleft() for _ in outcomes]
                yield chunk.unit, to_table(table, *plan.restored(outcomes, origins, np.concatenate(scores)), members)
                outcomes, scores = [], []
    finally:
        decoding.shutdown(wait=False, cancel_futures=True)
        reader.close()


def decode_all(decoder: Decoder, blobs: Sequence[Blob], batch: int) -> Decoded:
    """`decoder.decode`; an image that makes it raise what nobody foresaw gets a row that says so, the others theirs.

    Raises:
        RunError: the device failed, or the decoder fails on a batch of images each of which it can decode.
    """
    try:
        return decoder.decode(blobs, batch)
    except FiqaError:
        raise
    except Exception:
        sifted = [_sifted(decoder, blob) for blob in blobs]
    try:
        return decoder.decode(sifted, batch)
    except FiqaError:
        raise
    except Exception as exc:
        raise RunError(f"the decoder {decoder.name} failed on a batch: {type(exc).__name__}: {one_line(exc)}") from exc


def _sifted(decoder: Decoder, blob: Blob) -> Blob:
    """The bytes of an image that can be decoded, or the row of one that cannot even by itself."""
    try:
        decoder.decode([blob], 1)
    except FiqaError:
        raise
    except Exception as exc:
        return unforeseen(exc)
    return blob


def _infer(batches: Iterable[Decoded], engine: Engine) -> Iterator[tuple[Decoded, Scores | None]]:
    """Keep the engine busy: a result is taken when it is there, and awaited only when enough others are under way."""
    flying: deque[tuple[Decoded, Future[Scores] | None]] = deque()

    def land() -> tuple[Decoded, Scores | None]:
        decoded, future = flying.popleft()
        return decoded, None if future is None else future.result()

    for decoded in batches:
        wanted = any(outcome.status is Status.OK for outcome in decoded.outcomes)
        flying.append((decoded, engine.submit(decoded.pixels) if wanted else None))
        while flying and ((future := flying[0][1]) is None or future.done() or len(flying) > 2 * engine.slots):
            yield land()
    while flying:
        yield land()


def scores_of_good(outcomes: list[Outcome], result: Scores | None, members: int) -> Scores:
    """Scores [N, members] of N outcomes; rows of failures are NaN.

    Raises:
        RunError: a score that is not a number. No image may bring that about, so the engine is at fault.
    """
    scores = np.full((len(outcomes), members), np.nan, np.float32)
    good = [index for index, outcome in enumerate(outcomes) if outcome.status is Status.OK]
    if result is not None:
        scores[good] = result[good]
    if not np.isfinite(scores[good]).all():
        raise RunError("the engine returned a score that is not a number; check the checkpoint or use --precision fp32")
    return scores
