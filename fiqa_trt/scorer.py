"""Scores images at hand."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from itertools import islice
from types import TracebackType
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS
from fiqa_trt.decoding.items import PIXELS, Item, check_item, each_item, path_of
from fiqa_trt.decoding.registry import open_decoder
from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.engines.opening import open_sizes
from fiqa_trt.errors import EngineError, UsageError
from fiqa_trt.executors.base import Setup
from fiqa_trt.inputs.address import Address
from fiqa_trt.outcomes import ImageError, Outcome, Status
from fiqa_trt.pipeline import Chunk, Given, Pipeline
from fiqa_trt.progress import Say, silent
from fiqa_trt.scores.score import Score


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
        say: Say = silent,
    ) -> None:
        """Open the engine and the decoder.

        Args:
            device: auto, cpu, cuda or cuda:i.
            precision: auto, fp32, fp16 or int8.
            engine: auto, openvino, tensorrt, tensorrt-rtx, torch, or an engine directory.
            batch: images per engine call, where there are enough; fewer than half of it are scored one at a time.
            decoder: auto, cpu or dali.
            threads: that decode; by default one for each core.
            max_pixels: larger images are refused (`too_large`).
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
        self._pipeline = Pipeline(self._decoder)
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

        def chunks() -> Iterator[Chunk]:
            while items := list(islice(iterator, self._engine.info.batch)):
                self._check_usable()
                names.extend(map(path_of, items))
                given = list(map(_given, items))
                # What is missing of a batch is computed all the same.
                engine = self._small if 2 * len(given) < self._engine.info.batch else self._engine
                size = engine.info.batch
                yield from (Chunk(given[start : start + size], engine) for start in range(0, len(given), size))

        scores = list[Score]()
        try:
            for done in self._pipeline.run(chunks()):
                for outcome, row, causes in zip(done.outcomes, *done.judged, strict=True):
                    scores.append(self._score(names[len(scores)], outcome, row, causes))
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
        given = _given(item)
        read = self._pipeline.reader.submit([given]).result()[0].blob if isinstance(given, Address) else given
        decoded = self._pipeline.decode([read], 1)
        outcome = decoded.outcomes[0]
        if outcome.status is not Status.OK:
            raise ImageError(outcome.status, outcome.error or "", outcome.width, outcome.height)
        return np.asarray(decoded.pixels[0] if isinstance(decoded.pixels, np.ndarray) else decoded.pixels[0].cpu())

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

    def _score(
        self, path: str | None, outcome: Outcome, values: npt.NDArray[np.float32], severities: npt.NDArray[np.float32]
    ) -> Score:
        good = outcome.status is Status.OK
        members = dict(zip(self.info.members, map(float, values), strict=True)) if good else {}
        mean = float(values.mean(dtype=np.float32)) if good else None
        told, status = self.info.causes, outcome.status.value
        causes = dict(zip(told.names, map(float, severities), strict=True)) if good else {}
        cause = told.worst(severities[None])[0] if causes else None
        return Score(path, mean, members, outcome.width, outcome.height, status, outcome.error, causes, cause)

    def close(self) -> None:
        """Release the device; nothing happens where that is done, or is another process's to do."""
        if self._closed or self._process != os.getpid():
            return
        self._closed = True
        self._pipeline.close()
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


def _given(item: Item) -> Given:
    if (path := path_of(item)) is not None:
        return Address.parse(path)
    if isinstance(item, PIXELS):
        return item
    return bytes(item) or ImageError(Status.EMPTY, "0 bytes")  # type: ignore[arg-type]
