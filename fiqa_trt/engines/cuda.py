"""What every CUDA engine shares: streams, buffers that stay where they are, CUDA graphs, and two batches in flight."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from fiqa_trt.decoding.base import Images
from fiqa_trt.engines.base import EngineInfo, Scores
from fiqa_trt.engines.cache import Slot
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.errors import EngineError, OutOfMemory, RunError, one_line
from fiqa_trt.progress import Say, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SLOTS = 2
_WARM_UP = 3

Launch = Callable[[], None]
Bind = Callable[["Tensor", "Tensor", "torch.cuda.Stream"], Launch]
"""Takes uint8 [batch, 224, 224, 3] and float32 [batch, members] on the GPU, and the stream; returns what launches the
network from the one to the other on that stream."""


def check_cuda(device: str) -> None:
    """Raise EngineError unless torch is there and can use this CUDA device."""
    try:
        import torch
    except ImportError as exc:
        raise EngineError(f"--device {device} needs torch: pip install 'fiqa-trt[gpu]'") from exc
    if not torch.cuda.is_available():
        raise EngineError(f"--device {device}: torch {torch.__version__} sees no CUDA GPU; use --device cpu or auto")
    # Not by torch.device, which keeps the number in eight bits: its cuda:256 is cuda:0.
    if int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise EngineError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA GPU(s)")


def count_gpus() -> int:
    """GPUs that torch can use; 0 without torch."""
    try:
        import torch
    except ImportError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_target(device: torch.device) -> tuple[str, tuple[str, ...]]:
    """Name and features (`sm_90`) of a GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), (f"sm_{major}{minor}",)


def difference_from_here(manifest: Manifest, device: str = "cuda") -> str | None:
    """What keeps a CUDA engine from being used on this machine, in a line; None if nothing does."""
    try:
        import torch
    except ImportError:
        return "needs torch: pip install 'fiqa-trt[gpu]'"
    if not torch.cuda.is_available():
        return f"needs a CUDA GPU ({manifest.target.name}); torch {torch.__version__} sees none"
    name, features = gpu_target(torch.device(device))
    if (name, features) != (manifest.target.name, manifest.target.features):
        built_on = f"{manifest.target.name} {' '.join(manifest.target.features)}"
        return f"built on {built_on}, this is {name} {' '.join(features)}; build it again here"
    return None


def _recorded(launch: Launch, stream: torch.cuda.Stream, say: Say) -> Launch:
    """`launch` as one CUDA graph; as it is where it cannot be recorded, of which `say` hears.

    Raises:
        RuntimeError: CUDA's, for want of memory, or if it cannot be launched either way.
    """
    import torch

    gc.collect()  # memory of CUDA's that a collector gives back meanwhile would end the recording
    graph = torch.cuda.CUDAGraph()
    try:
        # Other threads, a decoder's for one, go on using the GPU, which a `global` recording would not survive.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            launch()
    except RuntimeError as exc:
        if _no_memory(exc):
            raise
        launch()
        stream.synchronize()
        say(f"launched without a CUDA graph, which is slower for small batches: {one_line(exc)}")
        return launch
    return graph.replay


def _no_memory(error: BaseException | None) -> bool:
    """Whether an error goes back to a want of memory: a recording that ends early raises another on top of it."""
    import torch

    while error is not None:
        if isinstance(error, torch.OutOfMemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Slot:
    """Buffers of one batch, on a stream of its own, with the whole call recorded as a CUDA graph if it can be."""

    def __init__(self, bind: Bind, device: torch.device, batch: int, size: int, members: int, say: Say) -> None:
        import torch

        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._host = torch.zeros((batch, size, size, 3), dtype=torch.uint8).pin_memory()
        self._out = torch.zeros((batch, members)).pin_memory()
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device), torch.cuda.stream(self._stream):
            self._images = torch.zeros_like(self._host, device=device)
            self._scores = torch.zeros_like(self._out, device=device)
            # Kept for what it holds: the graph below uses the network's memory, but does not own it.
            self._bound = launch = bind(self._images, self._scores, self._stream)
            for _ in range(_WARM_UP):  # libraries choose their kernels and allocate at the first calls
                launch()
            self._stream.synchronize()
            self._launch = _recorded(launch, self._stream, say)

    def run(self, images: Images) -> Scores:
        """Copy in, launch, copy out; returns when the scores are there."""
        import torch

        source = self._host
        if isinstance(images, np.ndarray):
            np.copyto(source.numpy(), images)
        else:
            source = images
        with torch.cuda.device(self._images.device), torch.cuda.stream(self._stream):
            self._images.copy_(source, non_blocking=True)
            self._launch()
            self._out.copy_(self._scores, non_blocking=True)
            self._done.record(self._stream)
        self._done.synchronize()
        return np.array(self._out.numpy(), np.float32)


class CudaEngine:
    """An `Engine` on a CUDA device. While one batch is computed, another is copied."""

    slots = SLOTS
    kept: Slot | None = None

    def __init__(self, bind: Bind, device: torch.device, info: EngineInfo, size: int, say: Say = silent) -> None:
        """Allocate, warm up and record.

        Args:
            bind: the network; called once for each slot.
            device: where.
            info: what it is.
            size: side of the input images.
            say: hears if the network cannot be recorded as a graph.

        Raises:
            EngineError: the GPU has no memory for the batch, or cannot run the network.
        """
        self.info = info
        self.place = str(device)
        self._idle: SimpleQueue[_Slot] = SimpleQueue()
        try:
            for _ in range(self.slots):
                self._idle.put(_Slot(bind, device, info.batch, size, len(info.members), say))
        except RuntimeError as exc:
            if _no_memory(exc):
                raise OutOfMemory(f"{info.device} has no memory for batches of {info.batch}", info.batch) from exc
            raise EngineError(f"{info.device} cannot run this engine: {one_line(exc)}") from exc
        self._threads = ThreadPoolExecutor(self.slots, "cuda")

    def submit(self, images: Images) -> Future[Scores]:
        """See `Engine.submit`."""
        return self._threads.submit(self._run, images)

    def _run(self, images: Images) -> Scores:
        slot = self._idle.get()
        try:
            return slot.run(images)
        except RuntimeError as exc:
            raise RunError(f"CUDA could not score a batch: {one_line(exc)}") from exc
        finally:
            self._idle.put(slot)

    def close(self) -> None:
        """See `Engine.close`."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get()
