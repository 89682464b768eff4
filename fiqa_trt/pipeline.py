"""Images to scores: read, decode, engine, with bounded queues between them and everything in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fiqa_trt.decoding.base import Decoded, Decoder
from fiqa_trt.decoding.items import PIXELS, Picture, pixels_of
from fiqa_trt.engines.base import Engine, Judged
from fiqa_trt.errors import FiqaError, RunError, one_line
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.read_ahead import READERS, REQUESTS, Plan, Reader
from fiqa_trt.models.causes import NONE, Causes
from fiqa_trt.outcomes import ImageError, Origin, Outcome, Status, unforeseen
from fiqa_trt.progress import Count, silent
from fiqa_trt.scores.schema import to_table
from fiqa_trt.storage.base import Blob, Read

_READ_BYTES = 256 << 20
"""Files that are being read, or wait to be decoded, hold about this much at most, if they are large."""
_DECODE_BYTES = max(256 << 20, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 16)
"""The same of files that are being decoded: a sixteenth of the memory, or many cores would run short of large ones."""

T = TypeVar("T")
R = TypeVar("R")

Unit = tuple[int, pa.Table]
Given = Address | bytes | ImageError | Picture
"""An image: where it is, its bytes or why there are none, or its pixels."""


class Task(NamedTuple):
    """A unit that is to be scored: its number, its inputs (column `path` first), and by row what is known already."""

    number: int
    inputs: pa.Table
    known: Mapping[int, Read] = {}


class Chunk(NamedTuple):
    """Images that an engine scores in one call, as many as its batch holds at most; some may be read already."""

    given: Sequence[Given | Read]
    engine: Engine


class Scored(NamedTuple):
    """What the images of a chunk were given, in their order; rows of failures are NaN."""

    outcomes: list[Outcome]
    origins: list[Origin]
    judged: Judged


class _Decoded(NamedTuple):
    chunk: Chunk
    origins: list[Origin]
    batch: Decoded


def bounded_map(submit: Callable[[T], Future[R]], items: Iterable[T], ahead: Callable[[], int]) -> Iterator[R]:
    """Results of what `submit` begins, in order, with at most `ahead()` items begun and not yet taken."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(submit(item))
        while len(waiting) >= ahead():
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Pipeline:
    """Reads, decodes and scores, all at once, also from one chunk to the next. Safe to use from several threads.

    Memory holds a few chunks of files and a few batches of pixels, however many chunks there are.
    """

    def __init__(self, decoder: Decoder, requests: int = REQUESTS) -> None:
        self.reader = Reader(requests)
        self._decoder, self._decoding = decoder, ThreadPoolExecutor(decoder.threads, "decode")

    def run(self, chunks: Iterable[Chunk]) -> Iterator[Scored]:
        """What the images of each chunk are given, in order.

        Raises:
            RunError: the device failed.
            RuntimeError, CancelledError: the pipeline, or an engine, was closed meanwhile.
        """
        largest = 0  # bytes of a chunk so far
        order: deque[Chunk] = deque()  # of what is being read

        def within(size: int, most: int) -> int:
            """Chunks of `largest` that `size` bytes hold, from 2 to `most`; 2 until a first one is known."""
            return max(2, min(most, size // largest)) if largest else 2

        def read(chunk: Chunk) -> Future[list[Read]]:
            order.append(chunk)
            addresses = [one for one in chunk.given if isinstance(one, Address)]
            return self.reader.submit(addresses) if addresses else _at_hand()

        def decode(read: list[Read]) -> Future[_Decoded]:
            nonlocal largest
            chunk, found = order.popleft(), iter(read)
            whole = [next(found) if isinstance(one, Address) else one for one in chunk.given]
            largest = max(largest, sum(map(_size, whole)))
            return self._decoding.submit(self._decode, chunk, whole)

        ready = bounded_map(read, chunks, lambda: within(_READ_BYTES, 2 * READERS))
        decoded = bounded_map(decode, ready, lambda: within(_DECODE_BYTES, 2 * self._decoder.threads))
        for (chunk, origins, batch), result in _infer(decoded):
            yield Scored(batch.outcomes, origins, judged_if_good(batch.outcomes, result, chunk.engine.info.widths))

    def _decode(self, chunk: Chunk, whole: list[Read | Blob | Picture]) -> _Decoded:
        origins = [one.origin if isinstance(one, Read) else Origin() for one in whole]
        images = [one.blob if isinstance(one, Read) else one for one in whole]
        return _Decoded(chunk, origins, self.decode(images, chunk.engine.info.batch))

    def decode(self, images: Sequence[Blob | Picture], batch: int) -> Decoded:
        """A batch of pixels of images at hand. Raises RunError: the device failed."""
        # What are pixels already is put into the batch afterwards.
        blobs = [_NO_FILE if isinstance(one, PIXELS) else one for one in images]
        decoded = decode_all(self._decoder, blobs, batch)
        outcomes, arrays = list(decoded.outcomes), dict[int, npt.NDArray[np.uint8]]()
        for row, one in enumerate(images):
            if isinstance(one, PIXELS):
                outcomes[row], arrays[row] = pixels_of(one, self._decoder.max_pixels)
        if arrays and isinstance(decoded.pixels, np.ndarray):
            decoded.pixels[list(arrays)] = list(arrays.values())
        elif arrays:
            import torch

            decoded.pixels[list(arrays)] = torch.from_numpy(np.stack(list(arrays.values()))).to(decoded.pixels.device)
            torch.cuda.current_stream(decoded.pixels.device).synchronize()  # the engine reads on another
        return Decoded(outcomes, decoded.pixels)

    def close(self) -> None:
        """Begin nothing more, and release what is open; waits for nobody, as a disk may never answer."""
        self._decoding.shutdown(wait=False, cancel_futures=True)
        self.reader.close()


_NO_FILE = ImageError(Status.OK, "")


def _at_hand() -> Future[list[Read]]:
    done = Future[list[Read]]()
    done.set_result([])
    return done


def _size(image: Read | Blob | Picture) -> int:
    """Bytes that an image takes while it waits."""
    if isinstance(image, Read):
        image = image.blob
    if isinstance(image, ImageError):
        return 0
    if isinstance(image, bytes):
        return len(image)
    return image.nbytes if isinstance(image, np.ndarray) else image.width * image.height * len(image.getbands())


def score_units(
    units: Iterable[Task],
    decoder: Decoder,
    engine: Engine,
    report: Count = silent,
    requests: int = REQUESTS,
    *,
    causes: bool = False,
) -> Iterator[Unit]:
    """Score units of inputs; yields each unit's number and its output rows, in order.

    Args:
        units: what is to be scored.
        decoder: bytes to pixels.
        engine: pixels to scores.
        report: called after every batch with its rows and how many of them failed.
        requests: to object stores, at a time.
        causes: whether the rows tell of causes; the engine must, then.
    """
    batch, members, told = engine.info.batch, engine.info.members, engine.info.causes if causes else NONE
    begun: deque[tuple[Task, Plan]] = deque()
    pipeline = Pipeline(decoder, requests)

    def planned() -> Iterator[tuple[Task, Plan]]:
        waiting = deque[Task]()

        def begin(unit: Task) -> Future[Plan]:
            waiting.append(unit)
            return pipeline.reader.plan(unit.inputs.column(0).to_pylist())

        for plan in bounded_map(begin, units, lambda: 2):
            yield waiting.popleft(), plan

    def chunks() -> Iterator[Chunk]:
        for unit, plan in planned():
            begun.append((unit, plan))
            given: Sequence[Given | Read] = plan.addresses
            if unit.known:
                rows = range(len(given)) if plan.order is None else plan.order.tolist()
                given = [unit.known.get(row, one) for row, one in zip(rows, given, strict=True)]
            for start in range(0, len(given), batch):
                yield Chunk(given[start : start + batch], engine)

    try:
        done, images = list[Scored](), 0
        for scored in pipeline.run(chunks()):
            done.append(scored)
            images += len(scored.outcomes)
            report(len(scored.outcomes), sum(outcome.status is not Status.OK for outcome in scored.outcomes))
            unit, plan = begun[0]
            if images == len(plan.addresses):
                yield unit.number, _rows(unit.inputs, plan, done, members, told)
                begun.popleft()
                done, images = [], 0
    finally:
        pipeline.close()


def _rows(table: pa.Table, plan: Plan, done: list[Scored], members: Sequence[str], causes: Causes) -> pa.Table:
    """The rows of a unit whose chunks are done."""
    places = plan.places()
    outcomes = [outcome for part in done for outcome in part.outcomes]
    origins = [origin for part in done for origin in part.origins]
    judged = Judged(*(np.concatenate(parts)[places] for parts in zip(*(each.judged for each in done), strict=True)))
    outcomes, origins = [outcomes[place] for place in places], [origins[place] for place in places]
    return to_table(table, outcomes, origins, judged.scores, members, judged.causes, causes)


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


def _infer(batches: Iterable[_Decoded]) -> Iterator[tuple[_Decoded, Judged | None]]:
    """Keep the engine busy: a result is taken when it is there, and awaited only when enough others are under way."""
    flying: deque[tuple[_Decoded, Future[Judged] | None]] = deque()

    def land() -> tuple[_Decoded, Judged | None]:
        decoded, future = flying.popleft()
        return decoded, None if future is None else future.result()

    for decoded in batches:
        engine = decoded.chunk.engine
        wanted = any(outcome.status is Status.OK for outcome in decoded.batch.outcomes)
        flying.append((decoded, engine.submit(decoded.batch.pixels) if wanted else None))
        while flying and ((future := flying[0][1]) is None or future.done() or len(flying) > 2 * engine.slots):
            yield land()
    while flying:
        yield land()


def judged_if_good(outcomes: list[Outcome], result: Judged | None, widths: Sequence[int]) -> Judged:
    """What an engine with outputs of these widths gave the images of N outcomes; rows of failures are NaN.

    Raises:
        RunError: a score that is not a number. No image may bring that about, so the engine is at fault.
    """
    judged = Judged.of([np.full((len(outcomes), width), np.nan) for width in widths])
    good = [index for index, outcome in enumerate(outcomes) if outcome.status is Status.OK]
    if result is not None:
        for ours, theirs in zip(judged, result, strict=True):
            ours[good] = theirs[good]
    if not all(np.isfinite(each[good]).all() for each in judged):
        raise RunError("the engine returned a score that is not a number; check the checkpoint or use --precision fp32")
    return judged
