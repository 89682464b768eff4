"""What every CUDA engine shares: streams, buffers that stay where they are, CUDA graphs, and two batches in flight."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from fiqa_trt.decoding.base import Images
from fiqa_trt.engines.base import EngineInfo, Judged
from fiqa_trt.engines.cache import Slot
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.errors import EngineError, OutOfMemory, RunError, one_line
from fiqa_trt.libraries import has_torch
from fiqa_trt.progress import Say, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

SLOTS = 2
_WARM_UP = 3

Launch = Callable[[], None]
Bind = Callable[["Tensor", "Sequence[Tensor]", "torch.cuda.Stream"], Launch]
"""Takes uint8 [batch, 224, 224, 3] and, for each output of the network, float32 [batch, columns] on the GPU, and the
stream; returns what launches the network from the one to the others on that stream. Without torch they are
`cudart.Array` and `cudart.Stream`."""


class OwnGraph:
    """A launch that records a graph by itself, where that is needed."""

    def __init__(self, launch: Launch) -> None:
        self._launch = launch

    def __call__(self) -> None:
        """Launch."""
        self._launch()


def _number(device: str) -> int:
    # Not by torch.device, which keeps the number in eight bits: its cuda:256 is cuda:0.
    return int(device.partition(":")[2] or 0)


def lacking(what: str = "") -> str | None:
    """What is missing to use a GPU here, in a line; None if one can be used. `what` names one that is wanted."""
    if not has_torch() and importlib.util.find_spec("cuda") is None:
        return "needs torch or cuda-bindings: pip install 'fiqa-trt[gpu]'"
    if count_gpus():
        return None
    return f"needs a CUDA GPU{what and f' ({what})'}; {_access()} sees none"


def _access() -> str:
    """What the GPU is used through, and its version."""
    if has_torch():
        import torch

        return f"torch {torch.__version__}"
    from fiqa_trt.engines import cudart

    return f"cuda-bindings {cudart.version()}"


def check_cuda(device: str) -> None:
    """Raise EngineError unless this CUDA device can be used."""
    problem = lacking()
    if problem is not None:
        raise EngineError(f"--device {device} {problem}" + "; use --device cpu or auto" * ("sees" in problem))
    if _number(device) >= count_gpus():
        raise EngineError(f"--device {device}: this machine has {count_gpus()} CUDA GPU(s)")


def count_gpus() -> int:
    """GPUs that can be used; 0 without torch and without CUDA's bindings."""
    if has_torch():
        import torch

        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    from fiqa_trt.engines import cudart

    return cudart.count()


def gpu_target(device: str) -> tuple[str, tuple[str, ...]]:
    """Name and features (`sm_90`) of a GPU."""
    if not has_torch():
        from fiqa_trt.engines import cudart

        name, major, minor = cudart.describe(_number(device))
        return name, (f"sm_{major}{minor}",)
    import torch

    major, minor = torch.cuda.get_device_capability(torch.device(device))
    return torch.cuda.get_device_name(torch.device(device)), (f"sm_{major}{minor}",)


def on(device: str) -> contextlib.AbstractContextManager[Any]:
    """The block's calls of CUDA go to this device."""
    if not has_torch():
        from fiqa_trt.engines import cudart

        return cudart.on(_number(device))
    import torch

    return torch.cuda.device(torch.device(device))


def difference_from_here(manifest: Manifest, device: str = "cuda") -> str | None:
    """What keeps a CUDA engine from being used on this machine, in a line; None if nothing does."""
    if problem := lacking(manifest.target.name):
        return problem
    name, features = gpu_target(device)
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
    kind: type[BaseException]
    if has_torch():
        import torch

        kind = torch.OutOfMemoryError
    else:
        from fiqa_trt.engines.cudart import NoMemory

        kind = NoMemory
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Slot(Protocol):
    """Buffers of one batch, on a stream of its own, with the whole call recorded as a CUDA graph if it can be."""

    def run(self, images: Images) -> Judged:
        """Copy in, launch, copy out; returns when all outputs are there."""
        ...


class _TorchSlot:
    """See `_Slot`. What torch holds."""

    def __init__(self, bind: Bind, place: str, batch: int, size: int, widths: Sequence[int], say: Say) -> None:
        import torch

        device = torch.device(place)
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._host = torch.zeros((batch, size, size, 3), dtype=torch.uint8).pin_memory()
        self._found = [torch.zeros((batch, width)).pin_memory() for width in widths]
        self._done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        with torch.cuda.device(device), torch.cuda.stream(self._stream):
            self._images = torch.zeros_like(self._host, device=device)
            self._outputs = [torch.zeros_like(each, device=device) for each in self._found]
            # Kept for what it holds: the graph below uses the network's memory, but does not own it.
            self._bound = launch = bind(self._images, self._outputs, self._stream)
            for _ in range(_WARM_UP):  # libraries choose their kernels and allocate at the first calls
                launch()
            self._stream.synchronize()
            self._launch = launch if isinstance(launch, OwnGraph) else _recorded(launch, self._stream, say)

    def run(self, images: Images) -> Judged:
        """See `_Slot.run`."""
        import torch

        source = self._host
        if isinstance(images, np.ndarray):
            np.copyto(source.numpy(), images)
        else:
            source = images
        with torch.cuda.device(self._images.device), torch.cuda.stream(self._stream):
            self._images.copy_(source, non_blocking=True)
            self._launch()
            for found, output in zip(self._found, self._outputs, strict=True):
                found.copy_(output, non_blocking=True)
            self._done.record(self._stream)
        self._done.synchronize()
        return Judged.of([found.numpy() for found in self._found])


def _slot(bind: Bind, place: str, batch: int, size: int, widths: Sequence[int], say: Say) -> _Slot:
    if has_torch():
        return _TorchSlot(bind, place, batch, size, widths, say)
    from fiqa_trt.engines.cudart import CudartSlot

    return CudartSlot(bind, _number(place), (batch, size, size, 3), [(batch, width) for width in widths], say)


class CudaEngine:
    """An `Engine` on a CUDA device. While one batch is computed, another is copied."""

    slots = SLOTS
    kept: Slot | None = None

    def __init__(self, bind: Bind, device: str, info: EngineInfo, size: int, say: Say = silent) -> None:
        """Allocate, warm up and record.

        Args:
            bind: the network; called once for each slot.
            device: `cuda` or `cuda:i`.
            info: what it is.
            size: side of the input images.
            say: hears if the network cannot be recorded as a graph.

        Raises:
            EngineError: the GPU has no memory for the batch, or cannot run the network.
        """
        self.info = info
        self.place = device
        self._idle: SimpleQueue[_Slot] = SimpleQueue()
        try:
            for _ in range(self.slots):
                self._idle.put(_slot(bind, device, info.batch, size, info.widths, say))
        except RuntimeError as exc:
            if _no_memory(exc):
                raise OutOfMemory(f"{info.device} has no memory for batches of {info.batch}", info.batch) from exc
            raise EngineError(f"{info.device} cannot run this engine: {one_line(exc)}") from exc
        self._threads = ThreadPoolExecutor(self.slots, "cuda")

    def submit(self, images: Images) -> Future[Judged]:
        """See `Engine.submit`."""
        return self._threads.submit(self._run, images)

    def _run(self, images: Images) -> Judged:
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
