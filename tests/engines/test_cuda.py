"""What can be shown of the CUDA engines without a GPU: when a network is launched as a graph."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fiqa_trt.engines import cuda


class Stream:
    """Stands in for a stream, and for the graph that is recorded on it."""

    def __init__(self) -> None:
        self.done = list[str]()

    def launch(self) -> None:
        self.done.append("launched")

    def replay(self) -> None:
        self.done.append("replayed")

    def synchronize(self) -> None:
        self.done.append("awaited")


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: stream)
    return stream


def recording(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> None:
    """`torch.cuda.graph` that records, or fails at its end."""

    @contextlib.contextmanager
    def graph(graph: Stream, *, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        assert capture_error_mode == "thread_local"
        try:
            yield
        finally:
            graph.done.append("recorded")
            if error is not None:
                raise error

    monkeypatch.setattr(torch.cuda, "graph", graph)


def test_a_network_is_replayed_as_a_graph(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recording(monkeypatch, None)
    said = list[str]()
    cuda._recorded(stream.launch, stream, said.append)()
    assert stream.done == ["launched", "recorded", "replayed"]
    assert not said


def test_one_that_cannot_be_recorded_is_launched(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recording(monkeypatch, RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore"))
    said = list[str]()
    cuda._recorded(stream.launch, stream, said.append)()
    assert stream.done == ["launched", "recorded", "launched", "awaited", "launched"]
    assert len(said) == 1
    assert "without a CUDA graph" in said[0]
    assert "not permitted" in said[0]


def test_no_memory_for_a_recording(stream: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a recording that has failed raises another error, on top of what it failed for."""
    recording(monkeypatch, RuntimeError("CUDA error: operation failed due to a previous error during capture"))

    def full() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="previous error") as caught:
        cuda._recorded(full, stream, print)
    assert cuda._no_memory(caught.value)
    assert not cuda._no_memory(RuntimeError("another"))
    assert stream.done == ["recorded"]
