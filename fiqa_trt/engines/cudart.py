"""A GPU through CUDA's own bindings (`cuda-bindings`), where torch, a hundred times as large, is not installed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.base import Images
from fiqa_trt.engines.base import Judged
from fiqa_trt.errors import one_line
from fiqa_trt.progress import Say

if TYPE_CHECKING:
    from fiqa_trt.engines.cuda import Bind, Launch

_WARM_UP = 3


class NoMemory(RuntimeError):
    """The GPU, or the memory that it copies from, has no room."""


def version() -> str:
    """Of the bindings."""
    import cuda.bindings

    return str(cuda.bindings.__version__)


def _do(name: str, *arguments: Any) -> Any:
    """What a function of CUDA's runtime gives. Raises RuntimeError with its reason."""
    from cuda.bindings import runtime

    code, *values = getattr(runtime, name)(*arguments)
    if code != runtime.cudaError_t.cudaSuccess:
        _, text = runtime.cudaGetErrorString(code)
        kind = NoMemory if code == runtime.cudaError_t.cudaErrorMemoryAllocation else RuntimeError
        raise kind(f"CUDA error in {name}: {text.decode()}")
    return values[0] if values else None


def count() -> int:
    """GPUs that can be used; 0 without a driver or the bindings."""
    try:
        return int(_do("cudaGetDeviceCount"))
    except (ImportError, RuntimeError):
        return 0


def describe(index: int) -> tuple[str, int, int]:
    """Name and compute capability of a GPU."""
    found = _do("cudaGetDeviceProperties", index)
    return found.name.decode().rstrip("\0"), found.major, found.minor


@contextlib.contextmanager
def on(index: int) -> Iterator[None]:
    """The block's calls of CUDA in this thread go to this GPU."""
    before = _do("cudaGetDevice")
    _do("cudaSetDevice", index)
    try:
        yield
    finally:
        _do("cudaSetDevice", before)


class Stream:
    """A stream of the current GPU, under torch's name for its handle."""

    def __init__(self) -> None:
        from cuda.bindings import runtime

        self.cuda_stream = int(_do("cudaStreamCreateWithFlags", runtime.cudaStreamNonBlocking))
        weakref.finalize(self, _quietly, "cudaStreamDestroy", self.cuda_stream)

    def synchronize(self) -> None:
        """Wait for what was put into it."""
        _do("cudaStreamSynchronize", self.cuda_stream)


class Array:
    """Memory of the current GPU, under torch's names for its shape and address; of zeros at first."""

    def __init__(self, shape: tuple[int, ...], kind: npt.DTypeLike) -> None:
        self.shape = shape
        size = math.prod(shape) * np.dtype(kind).itemsize
        self._address = int(_do("cudaMalloc", size))
        weakref.finalize(self, _quietly, "cudaFree", self._address)
        _do("cudaMemset", self._address, 0, size)

    def data_ptr(self) -> int:
        """Its address."""
        return self._address


def pinned(shape: tuple[int, ...], kind: npt.DTypeLike) -> tuple[npt.NDArray[Any], int]:
    """An array in memory that the GPU copies from and to by itself, and its address; freed with the array."""
    from cuda.bindings import runtime

    size = math.prod(shape) * np.dtype(kind).itemsize
    address = int(_do("cudaHostAlloc", size, runtime.cudaHostAllocDefault))
    buffer: Any = (ctypes.c_byte * size).from_address(address)
    weakref.finalize(buffer, _quietly, "cudaFreeHost", address)
    array = np.frombuffer(buffer, kind).reshape(shape)
    array[...] = 0
    return array, address


def _quietly(name: str, handle: Any) -> None:
    """Release something; what a driver that shuts down says of it is of no use."""
    with contextlib.suppress(Exception):
        _do(name, handle)


class CudartSlot:
    """See `cuda._Slot`."""

    def __init__(
        self, bind: Bind, index: int, images: tuple[int, ...], outputs: Sequence[tuple[int, ...]], say: Say
    ) -> None:
        from cuda.bindings import runtime

        from fiqa_trt.engines.cuda import OwnGraph

        self._index = index
        with on(index):
            self._stream = Stream()
            self._done = _do("cudaEventCreateWithFlags", runtime.cudaEventBlockingSync | runtime.cudaEventDisableTiming)
            weakref.finalize(self, _quietly, "cudaEventDestroy", self._done)
            self._host, self._host_address = pinned(images, np.uint8)
            self._found = [pinned(shape, np.float32) for shape in outputs]
            self._images, self._outputs = Array(images, np.uint8), [Array(shape, np.float32) for shape in outputs]
            _do("cudaDeviceSynchronize")  # the zeros were written on another stream
            bound: Any = bind  # these have what it asks of torch's
            self._bound = launch = bound(self._images, self._outputs, self._stream)
            for _ in range(_WARM_UP):
                launch()
            self._stream.synchronize()
            self._launch = launch if isinstance(launch, OwnGraph) else self._recorded(launch, say)

    def _recorded(self, launch: Launch, say: Say) -> Callable[[], None]:
        """See `cuda._recorded`."""
        from cuda.bindings import runtime

        stream = self._stream.cuda_stream
        gc.collect()  # memory that a collector gives back meanwhile would end the recording
        try:
            # Other threads go on using the GPU, which a global recording would not survive.
            _do("cudaStreamBeginCapture", stream, runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal)
            try:
                launch()
            finally:
                graph = _do("cudaStreamEndCapture", stream)
            ready = _do("cudaGraphInstantiate", graph, 0)
            weakref.finalize(self, _quietly, "cudaGraphExecDestroy", ready)
            _do("cudaGraphDestroy", graph)
        except NoMemory:
            raise
        except RuntimeError as exc:
            launch()
            self._stream.synchronize()
            say(f"launched without a CUDA graph, which is slower for small batches: {one_line(exc)}")
            return launch
        return lambda: _do("cudaGraphLaunch", ready, stream)

    def run(self, images: Images) -> Judged:
        """See `cuda._Slot.run`."""
        from cuda.bindings import runtime

        stream, kinds = self._stream.cuda_stream, runtime.cudaMemcpyKind
        np.copyto(self._host, np.asarray(images))
        with on(self._index):
            size, to_gpu = self._host.nbytes, kinds.cudaMemcpyHostToDevice
            _do("cudaMemcpyAsync", self._images.data_ptr(), self._host_address, size, to_gpu, stream)
            self._launch()
            from_gpu = kinds.cudaMemcpyDeviceToHost
            for (found, address), output in zip(self._found, self._outputs, strict=True):
                _do("cudaMemcpyAsync", address, output.data_ptr(), found.nbytes, from_gpu, stream)
            _do("cudaEventRecord", self._done, stream)
        _do("cudaEventSynchronize", self._done)
        return Judged.of([found for found, _ in self._found])
