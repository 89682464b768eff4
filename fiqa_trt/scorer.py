"""Scores images at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import islice
from types import TracebackType
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS, Decoded
from fiqa_trt.decoding.items import PIXELS, Item, check_item, each_item, path_of, pixels_of
from fiqa_trt.decoding.registry import open_decoder
from fiqa_trt.engines import Engine, EngineInfo, open_sizes
from fiqa_trt.engines.base import Scores
from fiqa_trt.errors import EngineError, UsageError
from fiqa_trt.executors.base import Setup
from fiqa_trt.inputs.containers.columns import DEFAULT_COLUMN
from fiqa_trt.inputs.reader import ShardReader, read_recorded
from fiqa_trt.outcomes import ImageError, Outcome, Status
from fiqa_trt.pipeline import bounded_map, decode_all, scores_of_good
from fiqa_trt.progress import Say, silent
from fiqa_trt.scores.score import Score
from fiqa_trt.storage.reading import Blob


class Scorer:
    """Scores images at hand. Loads once; safe to use from several threads; a context manager.

    It belongs to the process that opened it: what an engine consists of does not survive a fork, nor can it be pickled.
    A worker process opens one of its own.

    Raises:
        EngineError: what was asked for cannot be had here.
    """

    def __init__(
        self,
        device: str = "auto",
        precision: str = "auto",
        engine: str = "auto",
        *,
        batch: int | None = None,
        decoder: str = "auto",
        threads: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        image_column: str = DEFAULT_COLUMN,
        say: Say = silent,
    ) -> None:
        """Open the engine and the decoder.

        Args:
            device: auto, cpu, cuda or cuda:i.
            precision: auto, fp32, fp16 or int8.
            engine: auto, openvino, tensorrt, torch, or an engine directory.
            batch: images per engine call, where there are enough; fewer than half of it are scored one at a time.
            decoder: auto, cpu or dali.
            threads: that decode; by default one for each core.
            max_pixels: larger images are refused (`too_large`).
            image_column: of Parquet or Arrow tables, whose images are paths like `x.parquet::17`.
            say: hears, in lines, of decisions that one should know of.
        """
        threads = threads or len(os.sched_getaffinity(0))
        setup = Setup(device, precision, engine, batch, decoder, threads, max_pixels)
        self._engine, self._small = open_sizes(device, precision, engine, batch, say)
        try:
            self._decoder = open_decoder(setup.decoder, self._engine.place, setup.threads, setup.max_pixels, say)
        except EngineError:
            self._close_engines()
            raise
        self._pool, self._shards = ThreadPoolExecutor(self._decoder.threads, "scorer"), ShardReader(image_column)
        self._process, self._closed = os.getpid(), False

    @property
    def info(self) -> EngineInfo:
        """What scores."""
        return self._engine.info

    def score(self, items: Iterable[Item]) -> list[Score]:
        """Scores of images, in their order.

        Args:
            items: several, also from a generator; of one, give `[item]`. Each a path (members of shards like
                `x.tar::a.jpg` too), the bytes of a file, a PIL image of any mode (its EXIF orientation counts, as in a
                file), or a uint8 array: RGB [H, W, 3], grey [H, W] or [H, W, 1].

        Raises:
            UsageError: one image instead of several, an item that is none of these (named by its index, and before any
                is scored unless they come from a generator), or a Scorer that is closed (be it meanwhile) or another
                process's. What is wrong with an image itself is in its `status`.
            RunError: the engine failed.
        """
        self._check_usable()
        iterator = each_item(items)
        names: list[str | None] = []

        def chunks() -> Iterable[tuple[list[Item], Engine]]:
            while chunk := list(islice(iterator, self._engine.info.batch)):
                names.extend(map(path_of, chunk))
                # What is missing of a batch is computed all the same.
                engine = self._small if 2 * len(chunk) < self._engine.info.batch else self._engine
                size = engine.info.batch
                yield from ((chunk[start : start + size], engine) for start in range(0, len(chunk), size))

        def begin(work: tuple[list[Item], Engine]) -> Future[tuple[Decoded, Future[Scores]]]:
            self._check_usable()
            return self._pool.submit(self._begin, *work)

        scores = list[Score]()
        try:
            for decoded, future in bounded_map(begin, chunks(), lambda: 2 * self._decoder.threads):
                values = scores_of_good(decoded.outcomes, future.result(), len(self.info.members))
                for outcome, row in zip(decoded.outcomes, values, strict=True):
                    scores.append(self._score(names[len(scores)], outcome, row))
        except (CancelledError, RuntimeError) as exc:  # what a pool says that was shut down meanwhile
            self._check_usable()
            if str(exc).startswith("cannot schedule new futures"):  # pools end before other threads do
                raise UsageError("Python is ending: join the threads that score before") from exc
            raise
        return scores

    def pixels(self, item: Item) -> npt.NDArray[np.uint8]:
        """What the networks see of an image: uint8 RGB [224, 224, 3]. Raises ImageError if it cannot be decoded."""
        self._check_usable()
        check_item(item, "the image")
        decoded = self._decoded([item], 1)
        outcome = decoded.outcomes[0]
        if outcome.status is not Status.OK:
            raise ImageError(outcome.status, outcome.error or "", outcome.width, outcome.height)
        return np.asarray(decoded.pixels[0] if isinstance(decoded.pixels, np.ndarray) else decoded.pixels[0].cpu())

    def _begin(self, chunk: list[Item], engine: Engine) -> tuple[Decoded, Future[Scores]]:
        decoded = self._decoded(chunk, engine.info.batch)
        return decoded, engine.submit(decoded.pixels)

    def _decoded(self, chunk: list[Item], batch: int) -> Decoded:
        blobs = [_blob(item, self._shards) for item in chunk]
        decoded = decode_all(self._decoder, blobs, batch)
        outcomes, arrays = list(decoded.outcomes), dict[int, npt.NDArray[np.uint8]]()
        for row, item in enumerate(chunk):
            if isinstance(item, PIXELS):
                outcomes[row], arrays[row] = pixels_of(item, self._decoder.max_pixels)
        if arrays and isinstance(decoded.pixels, np.ndarray):
            decoded.pixels[list(arrays)] = list(arrays.values())
        elif arrays:
            import torch

            decoded.pixels[list(arrays)] = torch.from_numpy(np.stack(list(arrays.values()))).to(decoded.pixels.device)
            torch.cuda.current_stream(decoded.pixels.device).synchronize()  # the engine reads on another
        return Decoded(outcomes, decoded.pixels)

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise UsageError(
                "this Scorer was opened before a fork, which its engine does not survive: open one in this process, or "
                "start processes with multiprocessing's `spawn`"
            )
        if self._closed:
            raise UsageError("this Scorer is closed: open another")

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Scorer cannot be pickled: open one in each process (a pool has an `initializer`)")

    def _score(self, path: str | None, outcome: Outcome, values: npt.NDArray[np.float32]) -> Score:
        good = outcome.status is Status.OK
        members = dict(zip(self.info.members, map(float, values), strict=True)) if good else {}
        mean = float(values.mean(dtype=np.float32)) if good else None
        return Score(path, mean, members, outcome.width, outcome.height, outcome.status.value, outcome.error)

    def close(self) -> None:
        """Release the device; nothing happens where that is done, or is another process's to do."""
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self._pool.shutdown()
        self._shards.close()
        self._close_engines()

    def _close_engines(self) -> None:
        self._engine.close()
        if self._small is not self._engine:
            self._small.close()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _blob(item: Item, shards: ShardReader) -> Blob:
    if (path := path_of(item)) is not None:
        return read_recorded(path, shards)
    if isinstance(item, PIXELS):
        return ImageError(Status.OK, "")  # put into the batch afterwards
    return bytes(item) or ImageError(Status.EMPTY, "0 bytes")  # type: ignore[arg-type]
