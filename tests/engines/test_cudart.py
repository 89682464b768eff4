"""A GPU through CUDA's own bindings: the real ones without a driver, and a stand-in for its memory and streams."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest
import torch

from fiqa_trt.engines import cuda, cudart
from fiqa_trt.engines.base import EngineInfo, Judged
from fiqa_trt.errors import EngineError, OutOfMemory, RunError
from fiqa_trt.models.causes import Causes

pytest.importorskip("cuda.bindings")
INFO = EngineInfo("x", "L4", "fp16", "fp16", 4, "0" * 64, ("a", "b"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "has_torch", lambda: False)
    assert cuda.count_gpus() == 0
    with pytest.raises(RuntimeError, match=r"^CUDA error in cudaSetDevice: .*driver"):
        cudart._do("cudaSetDevice", 0)
    with pytest.raises(EngineError, match=r"--device cuda:1 needs a CUDA GPU; cuda-bindings \S+ sees none; use"):
        cuda.check_cuda("cuda:1")
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"^--device cuda needs torch or cuda-bindings: pip"):
        cuda.check_cuda("cuda")


class Gpu:
    """Memory of this machine for that of a GPU; what is put into a stream is done at once, or recorded."""

    def __init__(self) -> None:
        self.held = dict[int, Any]()
        self.recording: list[Callable[[], None]] | None = None
        self.graphs = dict[int, list[Callable[[], None]]]()
        self.fails = dict[str, Exception]()
        self.done = list[str]()

    def do(self, name: str, *arguments: Any) -> Any:
        self.done.append(name)
        if name in self.fails:
            raise self.fails[name]
        return getattr(self, name, lambda *_: None)(*arguments)

    def enqueue(self, work: Callable[[], None]) -> None:
        if self.recording is None:
            work()
        else:
            self.recording.append(work)

    def _allocate(self, size: int) -> int:
        buffer = ctypes.create_string_buffer(size)
        self.held[ctypes.addressof(buffer)] = buffer
        return ctypes.addressof(buffer)

    def cudaMalloc(self, size: int) -> int:  # noqa: N802
        return self._allocate(size)

    def cudaHostAlloc(self, size: int, flags: int) -> int:  # noqa: N802
        return self._allocate(size)

    def cudaFree(self, address: int) -> None:  # noqa: N802
        del self.held[address]

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemset(self, address: int, value: int, size: int) -> None:  # noqa: N802
        ctypes.memset(address, value, size)

    def cudaMemcpyAsync(self, to: int, of: int, size: int, kind: Any, stream: int) -> None:  # noqa: N802
        ctypes.memmove(to, of, size)

    def cudaStreamCreateWithFlags(self, flags: int) -> int:  # noqa: N802
        return 7

    def cudaGetDevice(self) -> int:  # noqa: N802
        return 0

    def cudaStreamBeginCapture(self, stream: int, mode: Any) -> None:  # noqa: N802
        self.recording = []

    def cudaStreamEndCapture(self, stream: int) -> int:  # noqa: N802
        self.graphs[len(self.graphs)], self.recording = self.recording or [], None
        return len(self.graphs) - 1

    def cudaGraphInstantiate(self, graph: int, flags: int) -> int:  # noqa: N802
        return graph

    def cudaGraphLaunch(self, graph: int, stream: int) -> None:  # noqa: N802
        for work in self.graphs[graph]:
            work()

    def bind(self, images: Any, outputs: Any, stream: Any) -> cuda.Launch:
        """A network that gives the mean of red and of green, and of a cause, if it is to, that of red."""
        assert stream.cuda_stream == 7

        def compute() -> None:
            pixels = np.frombuffer(self.held[images.data_ptr()], np.uint8).reshape(images.shape)
            for output in outputs:
                out = np.frombuffer(self.held[output.data_ptr()], np.float32).reshape(output.shape)
                out[...] = pixels[..., : output.shape[1]].mean(axis=(1, 2)) / 255

        return lambda: self.enqueue(compute)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    gpu = Gpu()
    monkeypatch.setattr(cudart, "_do", gpu.do)
    monkeypatch.setattr(cuda, "has_torch", lambda: False)
    yield gpu
    gpu.graphs.clear()
    gpu.fails.clear()  # an exception holds what it passed through
    gc.collect()
    assert not gpu.held  # all of it was released


def score(gpu: Gpu, said: Callable[[str], None] = print) -> None:
    """Batches in flight give each its own scores."""
    engine = cuda.CudaEngine(gpu.bind, "cuda:1", INFO, 6, said)
    assert engine.place == "cuda:1"
    batches = [np.full((4, 6, 6, 3), value, np.uint8) for value in range(0, 250, 10)]
    futures: list[Future[Judged]] = [engine.submit(batch) for batch in batches]
    for batch, future in zip(batches, futures, strict=True):
        assert np.allclose(future.result().scores, batch[0, 0, 0, 0] / 255)
    engine.close()


def test_batches_are_scored_through_a_graph(gpu: Gpu) -> None:
    said = list[str]()
    score(gpu, said.append)
    assert not said
    assert gpu.done.count("cudaGraphLaunch") == 25


def test_causes_are_a_second_output(gpu: Gpu) -> None:
    info = dataclasses.replace(INFO, causes=Causes(("blur",), (0.5,)))
    engine = cuda.CudaEngine(gpu.bind, "cuda", info, 6)
    images = np.zeros((4, 6, 6, 3), np.uint8)
    images[..., 0] = 51
    judged = engine.submit(images).result()
    engine.close()
    assert np.allclose(judged.scores, [[0.2, 0]] * 4)
    assert np.allclose(judged.causes, [[0.2]] * 4)


def test_what_cannot_be_recorded_is_launched(gpu: Gpu) -> None:
    gpu.fails["cudaGraphInstantiate"] = RuntimeError("CUDA error in cudaGraphInstantiate: not permitted")
    said = list[str]()
    score(gpu, said.append)
    assert "cudaGraphLaunch" not in gpu.done
    assert len(said) == cuda.SLOTS
    assert "without a CUDA graph, which is slower for small batches: CUDA error in cudaGraphInstantiate" in said[0]


def test_a_launch_with_a_graph_of_its_own_is_not_recorded(gpu: Gpu) -> None:
    engine = cuda.CudaEngine(lambda *places: cuda.OwnGraph(gpu.bind(*places)), "cuda", INFO, 6)
    assert np.allclose(engine.submit(np.full((4, 6, 6, 3), 51, np.uint8)).result().scores, 0.2)
    engine.close()
    assert "cudaStreamBeginCapture" not in gpu.done


def test_errors_are_ours(gpu: Gpu) -> None:
    gpu.fails["cudaMalloc"] = cudart.NoMemory("CUDA error in cudaMalloc: out of memory")
    with pytest.raises(OutOfMemory, match="L4 has no memory for batches of 4"):
        cuda.CudaEngine(gpu.bind, "cuda", INFO, 6)
    gpu.fails = {"cudaStreamSynchronize": RuntimeError("CUDA error in cudaStreamSynchronize: illegal address")}
    with pytest.raises(EngineError, match="L4 cannot run this engine: CUDA error in cudaStreamSynchronize: illegal"):
        cuda.CudaEngine(gpu.bind, "cuda", INFO, 6)
    gpu.fails.clear()
    engine = cuda.CudaEngine(gpu.bind, "cuda", INFO, 6)
    gpu.fails["cudaEventSynchronize"] = RuntimeError("CUDA error in cudaEventSynchronize: lost")
    with pytest.raises(RunError, match="CUDA could not score a batch: CUDA error in cudaEventSynchronize: lost"):
        engine.submit(np.zeros((4, 6, 6, 3), np.uint8)).result()
    engine.close()
