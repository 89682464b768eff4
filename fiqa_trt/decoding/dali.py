"""NVIDIA DALI's decoders: on a GPU, or through DALI's CPU backend, which is what tests run.

The dynamic mode is used, because a bad image costs its batch an exception and nothing more. What DALI cannot be trusted
with never gets there: the structure of every file is looked at first. What DALI fails on goes to the CPU decoder with
its whole batch (bisecting would cost several more attempts), so a status never depends on the decoder.

The pixels are Pillow's to within a level or so: DALI's antialiased filter is the same but for the outermost pixels,
where it repeats the edge of the image while Pillow takes the filter's inner part alone; `_as_pillow` corrects that.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fiqa_trt.decoding import cpu
from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS, Decoded
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.decoding.structure import dimensions
from fiqa_trt.errors import EngineError, RunError, one_line
from fiqa_trt.libraries import has_torch
from fiqa_trt.models.spec import PreprocessSpec
from fiqa_trt.outcomes import ImageError, Outcome, Status
from fiqa_trt.progress import Say, silent

PATIENCE = 16
"""Batches in a row that DALI may fail on before it is no longer asked."""

_NO_MEMORY = re.compile("out of memory|alloc", re.IGNORECASE)


class _Own(threading.local):
    """What a thread of the decoder has for itself: its stream, and the arrays that DALI may still be reading."""

    def __init__(self) -> None:
        self.stream: Any = None
        self.seen = list[Any]()


class DaliDecoder:
    """See `Decoder`. On a GPU its pixels are PyTorch's, on the same GPU; without torch they come to memory.

    Attributes:
        failures: batches in a row that DALI failed on.
        options: of DALI's decoder of images.
    """

    threads = 2
    # Chroma as libjpeg-turbo interpolates it, and so Pillow. Where a GPU has decoders in hardware they take all, which
    # is quicker than the share that DALI gives them and leaves the cores alone (benchmarks/results/gpu_h100.json).
    options: Mapping[str, Any] = MappingProxyType({"jpeg_fancy_upsampling": True, "hw_decoder_load": 1.0})

    def __init__(
        self,
        device: str = "cpu",
        max_pixels: int = DEFAULT_MAX_PIXELS,
        workers: int = 2,
        say: Say = silent,
    ) -> None:
        """Start DALI.

        It writes complaints about damaged images to stderr unless DALI_NVIMGCODEC_LOG_LEVEL is 0, which is for the
        program to set: the command line does.

        Args:
            device: `cpu`, `cuda` or `cuda:i`.
            max_pixels: larger images are refused.
            workers: DALI's own threads, and those that decode what it leaves.
            say: hears what the user should know of.

        Raises:
            EngineError: DALI is not there, or cannot start.
        """
        try:
            import nvidia.dali.experimental.dynamic as ndd
        except ImportError as exc:
            raise EngineError(
                f"--decoder dali: {one_line(exc)}; pip install 'fiqa-trt[gpu]', or --decoder cpu"
            ) from exc
        except Exception as exc:  # whatever a library that does not fit the driver raises
            raise EngineError(f"--decoder dali: {one_line(exc)}; use --decoder cpu") from exc
        self._ndd: Any = ndd
        self._gpu = device if device != "cpu" else None
        self._torch = self._gpu if has_torch() else None  # where torch holds the pixels
        self._index = int(device.partition(":")[2] or 0)
        self.name = "dali (gpu)" if self._gpu else "dali (cpu)"
        if self._gpu and (reason := no_gpu_decoder(self._index)):
            self.name = "dali (gpu, JPEGs on the cpu)"
            say(f"no decoder for JPEGs on the GPU ({reason}), so the CPU decodes them: pip install nvidia-nvjpeg")
        self._size = PreprocessSpec().size
        self.max_pixels = max_pixels
        self._cpu = CpuDecoder(max_pixels)
        self._pool = ThreadPoolExecutor(workers, "decode-cpu")
        self._say = say
        self._lock, self._own = threading.Lock(), _Own()
        # The same for every call: DALI keeps what it has built, decoders with their buffers above all, by thread.
        self._threads = ThreadPoolExecutor(self.threads, "dali")
        self.failures = 0
        self._ndd.set_num_threads(workers)

    def decode(self, blobs: Sequence[bytes | ImageError], batch: int) -> Decoded:
        """See `Decoder.decode`."""
        return self._threads.submit(self._decode, blobs, batch).result()

    def _decode(self, blobs: Sequence[bytes | ImageError], batch: int) -> Decoded:
        with self._on_device():
            pixels = self._empty(batch)
            rows = [row for row, blob in enumerate(blobs) if isinstance(blob, bytes) and self._suits(blob)]
            outcomes = self._by_dali(rows, blobs, pixels, alike(batch) if self._gpu else 0) if rows else {}
            others = [row for row in range(len(blobs)) if row not in outcomes]
            if others:
                crops = np.zeros((len(others), *pixels.shape[1:]), np.uint8)
                found = self._pool.map(self._cpu.decode_into, crops, [blobs[row] for row in others])
                outcomes |= dict(zip(others, found, strict=True))
                pixels[others] = self._moved(crops)
            self._finish()
        return Decoded([outcomes[row] for row in range(len(blobs))], pixels)

    def _suits(self, blob: bytes) -> bool:
        size = dimensions(blob)
        return size is not None and size[0] * size[1] <= self.max_pixels

    def _by_dali(
        self, rows: list[int], blobs: Sequence[bytes | ImageError], pixels: Any, least: int = 0
    ) -> dict[int, Outcome]:
        """Decode some of `blobs` into their rows of `pixels`; nothing of them if DALI fails on one.

        The last is decoded again and again until there are at least `least`.
        """
        if self.failures >= PATIENCE:
            return {}
        chosen = [blobs[row] for row in rows]
        chosen += chosen[-1:] * (least - len(chosen))
        try:
            shapes, crops = self._crops(chosen)
        except Exception as exc:  # DALI's, CUDA's and PyTorch's, of all kinds
            reason = one_line(_root(exc))
        else:
            self.failures = 0
            pixels[rows] = crops[: len(rows)]
            return {row: Outcome(Status.OK, int(w), int(h)) for row, (h, w) in zip(rows, shapes, strict=False)}
        # Only here, where the exception has let go of the images that did not fit.
        if _NO_MEMORY.search(reason) and len(chosen) > 1:
            self._say(f"no memory to decode {len(chosen)} images at once ({reason}): halving")
            halves = (rows[: len(rows) // 2], rows[len(rows) // 2 :])
            parts = [self._by_dali(half, blobs, pixels) for half in halves if half]
            return {row: outcome for part in parts for row, outcome in part.items()}
        with self._lock:
            self.failures += 1
            if self.failures == PATIENCE:
                self._say(f"DALI failed on {PATIENCE} batches in a row ({reason}); the CPU decoder takes over")
        return {}

    def _crops(self, blobs: Sequence[Any]) -> tuple[npt.NDArray[np.int64], Any]:
        """Height and width of each upright image, [N, 2], and uint8 [N, size, size, 3]."""
        ndd = self._ndd
        # One buffer that may be written to: of read-only ones, as bytes are, DALI makes Python objects one by one.
        joined = np.frombuffer(bytearray().join(blobs), np.uint8)
        encoded = self._batch(np.split(joined, np.cumsum([len(blob) for blob in blobs])[:-1]))
        device = "gpu" if self._gpu else "cpu"
        images = ndd.decoders.image(encoded, device=device, **self.options)
        shapes = np.array(images.shape)[:, :2]
        if (shapes == self._size).all():
            return shapes, self._array(images)
        side = shapes.min(axis=1, keepdims=True)
        start = (shapes - side) / 2
        crops = self._resized(images, start, start + side, (self._size, self._size))
        beyond = np.array(
            [[share_beyond(float(s), float(room)) for room in (y, x)] for s, y, x in np.hstack([side, start])]
        )
        if beyond.any():
            self._as_pillow(crops, images, shapes, start, side, beyond)
        return shapes, crops

    def _batch(self, arrays: Sequence[Any] | npt.NDArray[Any]) -> Any:
        """A batch of DALI's that looks at arrays as they are, without a copy."""
        self._own.seen.append(arrays)
        return self._ndd.as_batch(arrays)

    def _resized(self, images: Any, start: Any, end: Any, size: tuple[int, int]) -> Any:
        rois = [self._batch(corner.astype(np.float32)) for corner in (start, end)]
        return self._array(self._ndd.resize(images, size=size, roi_start=rois[0], roi_end=rois[1], antialias=True))

    def _as_pillow(self, crops: Any, images: Any, shapes: Any, start: Any, side: Any, beyond: Any) -> None:
        """Take what lies beyond the edge of the images out of the outermost rows and columns of the crops, in place.

        DALI gives (1 - w) * inside + w * edge, where w is the share `beyond` and `edge` the image's own outermost row,
        resized along it; Pillow gives `inside`.
        """
        ndd = self._ndd
        for axis in (0, 1):
            share = self._moved(beyond[:, axis].astype(np.float32)[:, None, None])
            for last in (False, True):
                first = ((shapes[:, axis] - 1) * last).astype(np.int32)
                edge = ndd.slice(images, self._batch(first[:, None]), [1], axes=[axis])
                low, high = start.copy(), start + side
                low[:, axis], high[:, axis] = 0, 1
                size = (1, self._size) if axis == 0 else (self._size, 1)
                line = self._resized(edge, low, high, size).squeeze(1 + axis)
                there = (slice(None),) * (1 + axis) + (-1 if last else 0,)
                crops[there] = ((crops[there] - share * line) / (1 - share)).round().clip(0, 255)

    @contextlib.contextmanager
    def _on_device(self) -> Iterator[None]:
        """On the GPU, DALI and PyTorch, if it is there, work on one stream, each thread on its own.

        What one of them releases is then used again only after the other is done with it.
        """
        if self._gpu is None:
            yield
            return
        try:
            with self._on_stream_of_torch() if self._torch is not None else self._on_stream_of_dali():
                yield
        except RuntimeError as exc:
            raise RunError(f"the GPU could not decode a batch: {one_line(exc)}; try a smaller --batch-size") from exc

    @contextlib.contextmanager
    def _on_stream_of_torch(self) -> Iterator[None]:
        import torch

        with torch.cuda.device(self._torch):
            if self._own.stream is None:
                self._own.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
                self._ndd.set_current_stream(self._own.stream)
            with torch.cuda.stream(self._own.stream):
                yield

    @contextlib.contextmanager
    def _on_stream_of_dali(self) -> Iterator[None]:
        with self._ndd.device("gpu", self._index):
            if self._own.stream is None:
                self._own.stream = self._ndd.stream(device_id=self._index)
                self._ndd.set_current_stream(self._own.stream)
            yield

    def _empty(self, batch: int) -> Any:
        shape = (batch, self._size, self._size, 3)
        if self._torch is None:
            return np.zeros(shape, np.uint8)
        import torch

        return torch.zeros(shape, dtype=torch.uint8, device=self._torch)

    def _moved(self, array: npt.NDArray[Any]) -> Any:
        """To where the pixels are."""
        if self._torch is None:
            return array
        import torch

        return torch.from_numpy(array).to(self._torch)

    def _array(self, images: Any) -> Any:
        """A uniform batch of DALI's as one array that may be written to: where it is, or in memory without torch."""
        tensor = self._ndd.as_tensor(images)
        if self._torch is not None:
            return tensor.torch()
        if self._gpu is not None:
            tensor = tensor.cpu().evaluate()
            self._own.stream.synchronize()  # the copy is on it
        return np.array(tensor)

    def _finish(self) -> None:
        """Another stream will read the pixels, so they have to be there."""
        if self._torch is not None:
            import torch

            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
            done.synchronize()  # a stream's would keep a core busy
        self._own.seen.clear()


def no_gpu_decoder(device: int) -> str | None:
    """Why nvImageCodec, which DALI decodes with, cannot decode a JPEG on a GPU; None if it can.

    DALI says nothing of it: without nvJPEG's library, its decoder for GPUs decodes on the CPU.
    """
    try:
        nvimgcodec = import_module("nvidia.nvimgcodec")
        kinds = nvimgcodec.BackendKind
        on_gpu = [nvimgcodec.Backend(kind) for kind in (kinds.HW_GPU_ONLY, kinds.HYBRID_CPU_GPU, kinds.GPU_ONLY)]
        buffer = io.BytesIO()
        Image.new("RGB", (64, 64)).save(buffer, "JPEG")
        decoded = nvimgcodec.Decoder(device_id=device, backends=on_gpu).decode(buffer.getvalue())
        return None if decoded is not None else "nvImageCodec has none"
    except Exception as exc:  # whatever a library without a driver, or of another version, raises
        return one_line(exc)


def alike(batch: int) -> int:
    """The least images with which DALI takes the operators that it takes for `batch`.

    It builds them anew for each power of two, on a GPU with buffers of 32 MB a thread.
    """
    return (1 << (batch - 1).bit_length()) // 2 + 1 if batch > 1 else 1


def _root(error: BaseException) -> BaseException:
    """What an exception goes back to; DALI's own only says that there was one."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__ or error
    return error


@functools.lru_cache(4096)
def share_beyond(side: float, room: float, size: int = PreprocessSpec().size) -> float:
    """Share of the outermost output pixel's filter that lies beyond the image, when a square is shrunk to `size`.

    Args:
        side: of the square in pixels.
        room: pixels of the image beside it.
        size: side of the output.
    """
    scale = side / size
    if scale <= 1 or room >= scale / 2:
        return 0.0
    taps = np.arange(np.floor(-room - scale), np.ceil(2 * scale) + 1) + 0.5 - room % 1
    weights = np.clip(1 - np.abs(taps - scale / 2) / scale, 0, None)
    return float(weights[taps < -room].sum() / weights.sum())


def opened(place: str, max_pixels: int, threads: int, say: Say) -> DaliDecoder:
    """See `registry.DECODERS`. Raises EngineError."""
    return DaliDecoder(place, max_pixels, threads, say)


def libraries() -> str:
    """See `registry.DECODERS`: those of the CPU decoder, which decodes what DALI leaves, and DALI's."""
    dali = [f"DALI {d.version}" for d in importlib.metadata.distributions() if d.name.startswith("nvidia-dali-cuda")]
    return ", ".join([cpu.libraries(), *dali])
