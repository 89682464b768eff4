"""Inputs to rows: read, decode, engine, with bounded queues between them and everything in order."""

from __future__ import annotations

import dataclasses
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import pyarrow as pa

from fiqa_trt.decode import Decoded, Decoder
from fiqa_trt.engines import Engine
from fiqa_trt.engines.base import Scores
from fiqa_trt.errors import FiqaError, RunError, one_line
from fiqa_trt.records import Outcome, Status, to_table, unforeseen
from fiqa_trt.shards import DEFAULT_COLUMN, Blob, ShardReader, locate, read_place

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
class _Chunk:
    """One engine call's worth of a unit's inputs."""

    unit: int
    paths: list[str]
    last: bool


class Reader:
    """Reads the files of a chunk: plain ones in several threads; shards, from their beginning to their end, in one."""

    def __init__(self, image_column: str | None = None) -> None:
        self._files, self._shards = ThreadPoolExecutor(READERS, "read"), ThreadPoolExecutor(1, "read-shard")
        self._shard_reader = ShardReader(image_column or DEFAULT_COLUMN)
        self._closed = False

    def submit(self, paths: Sequence[str]) -> Future[list[Blob]]:
        """Start reading recorded paths; the result holds the bytes of each, or why there are none."""
        places = [locate(path) for path in paths]
        pool = self._files if all(key is None for _, key in places) else self._shards
        return pool.submit(self._read, places)

    def _read(self, places: list[tuple[str, str | None]]) -> list[Blob]:
        return [read_place(path, key, self._shard_reader) for path, key in places if not self._closed]

    def close(self) -> None:
        """Begin nothing more, and release what is open; waits for nobody, as a disk may never answer."""
        self._closed = True
        self._files.shutdown(wait=False, cancel_futures=True)
        self._shards.submit(self._shard_reader.close)
        self._shards.shutdown(wait=False)


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
    report: Callable[[int, int], None] = lambda rows, failed: None,
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
    begun: dict[int, pa.Table] = {}
    order: deque[_Chunk] = deque()  # of what is under way
    largest = 0  # bytes of a chunk so far
    reader, decoding = Reader(image_column), ThreadPoolExecutor(decoder.threads, "decode")

    def chunks() -> Iterator[_Chunk]:
        for number, table in units:
            begun[number] = table
            paths = table.column(0).to_pylist()
            for start in range(0, len(paths), batch):
                order.append(_Chunk(number, paths[start : start + batch], start + batch >= len(paths)))
                yield order[-1]

    def within(size: int, most: int) -> int:
        """Chunks of `largest` that `size` bytes hold, from 2 to `most`; 2 until a first one is known."""
        return max(2, min(most, size // largest)) if largest else 2

    def decode(blobs: list[Blob]) -> Future[Decoded]:
        nonlocal largest
        largest = max(largest, sum(len(blob) for blob in blobs if isinstance(blob, bytes)))
        return decoding.submit(decode_all, decoder, blobs, batch)

    try:
        outcomes, scores = list[Outcome](), list[Scores]()
        read = bounded_map(lambda chunk: reader.submit(chunk.paths), chunks(), lambda: within(_READ_BYTES, 2 * READERS))
        decoded_ahead = bounded_map(decode, read, lambda: within(_DECODE_BYTES, 2 * decoder.threads))
        for decoded, result in _infer(decoded_ahead, engine):
            chunk = order.popleft()
            outcomes += decoded.outcomes
            scores.append(scores_of_good(decoded.outcomes, result, len(members)))
            report(len(decoded.outcomes), sum(outcome.status is not Status.OK for outcome in decoded.outcomes))
            if chunk.last:
                yield chunk.unit, to_table(begun.pop(chunk.unit), outcomes, np.concatenate(scores), members)
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
