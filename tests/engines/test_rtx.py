"""TensorRT for RTX without a GPU: what is kept between starts, by a stand-in for its engine, and the first start.

What the real library says without a GPU is in tests/building/test_rtx.py.
"""

from __future__ import annotations

import dataclasses
import shutil
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fiqa_trt.engines import cuda, rtx
from fiqa_trt.engines.cache import Slot
from fiqa_trt.engines.manifest import MANIFEST, Manifest, Target, this_processor
from fiqa_trt.engines.opening import RELEASED, open_engine
from fiqa_trt.engines.store import best_engine, list_engines
from fiqa_trt.errors import EngineError
from fiqa_trt.storage.writing import atomic
from tests.helpers import invoke, manifest, put

PLAN = manifest(
    backend="tensorrt-rtx", target=Target("cuda", "", ("sm_89",)), versions={"tensorrt_rtx": "1.6.1"}, verified=False
)


class Cache:
    """A runtime cache: what was loaded, and what was compiled since."""

    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, blob: bytes) -> bool:
        if blob == b"of another driver":
            return False
        self.content = blob
        return True

    def serialize(self) -> bytes:
        return self.content


class Context:
    def __init__(self, config: SimpleNamespace, capturable: bool) -> None:
        self.config, self.capturable, self.launches = config, capturable, 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self.capturable

    def execute_async_v3(self, stream: int) -> bool:
        self.launches += 1
        self.config.cache.content = b"kernels"
        return True


class Engine:
    """A loaded engine."""

    num_io_tensors = 2

    def __init__(self, *, capturable: bool = True) -> None:
        self.capturable, self.contexts = capturable, list[Context]()

    def create_runtime_config(self) -> SimpleNamespace:
        config = SimpleNamespace(cuda_graph_strategy="none", create_runtime_cache=Cache)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, config: SimpleNamespace) -> Context:
        self.contexts.append(Context(config, self.capturable))
        return self.contexts[-1]

    def get_tensor_name(self, index: int) -> str:
        return ("images", "member_scores")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 2)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    fake = SimpleNamespace(
        __version__="1.6.1", __spec__=ModuleSpec("tensorrt_rtx", None), TensorIOMode=SimpleNamespace(INPUT="in"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        ILogger=type("ILogger", (), {"ERROR": 1}), EngineValidity=SimpleNamespace(INVALID=2, SUBOPTIMAL=1),
        EngineInvalidityDiagnostics=SimpleNamespace(
            __members__={"VERSION_MISMATCH": 1, "UNSUPPORTED_CC": 2}, UNSUPPORTED_CC=2
        ),
        answer=(0, 0), loads=None,
    )  # fmt: skip
    fake.Runtime = lambda log: SimpleNamespace(
        get_engine_validity=lambda plan: fake.answer, deserialize_cuda_engine=lambda plan: fake.loads
    )
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake)
    return fake


def bound(kernels: rtx.Kernels) -> cuda.Launch:
    images, scores = torch.zeros((4, 224, 224, 3), dtype=torch.uint8), torch.zeros((4, 2))
    stream: Any = SimpleNamespace(cuda_stream=7)
    return kernels.bind(images, [scores], stream)


def test_what_was_compiled_is_there_at_the_next_start(library: SimpleNamespace, tmp_path: Path) -> None:
    slot = Slot(tmp_path, {"gpu": "L4"})
    first = rtx.Kernels(Engine(), slot)
    bound(first)()
    assert first.keep() is None  # nothing was loaded
    assert slot.read() == b"kernels"
    written = slot.path.stat().st_mtime_ns
    second = rtx.Kernels(Engine(), slot)
    bound(second)()
    kept = second.keep()
    assert kept is slot
    assert slot.path.stat().st_mtime_ns == written  # as nothing is new


@pytest.mark.parametrize("blob", [b"of another driver", None], ids=["another driver's", "damaged"])
def test_kernels_that_do_not_fit_are_compiled_anew(
    blob: bytes | None, library: SimpleNamespace, tmp_path: Path
) -> None:
    slot = Slot(tmp_path, {})
    slot.write(blob or b"x")
    if blob is None:
        slot.path.write_bytes(b"damaged")
    kernels = rtx.Kernels(Engine(), slot)
    bound(kernels)()
    assert kernels.keep() is None
    assert slot.read() == b"kernels"


def test_a_graph_is_recorded_by_whoever_can(library: SimpleNamespace) -> None:
    engine = Engine()
    launch = bound(rtx.Kernels(engine, None))
    launch()
    assert not isinstance(launch, cuda.OwnGraph)
    assert [(each.config.cuda_graph_strategy, each.launches) for each in engine.contexts] == [("none", 1)]
    engine = Engine(capturable=False)
    launch = bound(rtx.Kernels(engine, None))
    launch()
    assert isinstance(launch, cuda.OwnGraph)
    assert [(each.config.cuda_graph_strategy, each.launches) for each in engine.contexts] == [("none", 0), ("whole", 1)]
    for context in engine.contexts:
        assert context.config.dynamic_shapes_kernel_specialization_strategy == "eager"


def test_what_the_library_says_of_an_engine(library: SimpleNamespace) -> None:
    said = list[str]()
    library.answer = (2, 3)
    with pytest.raises(
        EngineError, match=r"cannot run this engine on H100 \(VERSION_MISMATCH, UNSUPPORTED_CC\); build"
    ):
        rtx._loaded(b"", "mine", "H100", said.append)
    library.answer = (0, 0)
    with pytest.raises(EngineError, match=r"mine: .* cannot load this engine on L4 \(it says nothing\); build it"):
        rtx._loaded(b"", "mine", "L4", said.append)
    assert not said
    library.loads = Engine()
    for answer, words in (
        ((2, 2), "1.6.1 does not support H100 for this engine (UNSUPPORTED_CC); it is tried all the same"),
        ((1, 1), "mine is not at its best on H100 (VERSION_MISMATCH): build one here with --backend tensorrt-rtx"),
    ):
        library.answer = answer
        assert rtx._loaded(b"", "mine", "H100", said.append) is library.loads
        assert said.pop().endswith(words)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, library: SimpleNamespace) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "L4")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    monkeypatch.setattr(rtx, "knows", lambda number: number == 89)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"target": Target("cuda")}, None),
        ({"target": Target("cuda", "", ("sm_86",))}, "built for sm_86, this is L4 sm_89; build it again here"),
        (
            {"versions": {"tensorrt_rtx": "1.7"}},
            "built with TensorRT for RTX 1.7, here is 1.6.1; build it again with that",
        ),
    ],
    ids=["this", "any", "another GPU", "another version"],
)
def test_which_engines_can_be_used(gpu: None, changes: dict[str, Any], problem: str | None) -> None:
    assert rtx.difference_from_here(dataclasses.replace(PLAN, **changes)) == problem


def test_auto_takes_none_on_a_gpu_that_the_library_does_not_support(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    problem = "TensorRT for RTX 1.6.1 does not support H100 (compute capability 9.0)"
    assert rtx.unfit("cuda") == problem
    listed = rtx.difference_from_here(dataclasses.replace(PLAN, target=Target("cuda")))
    assert listed == f"{problem}; --engine takes it all the same"


def test_of_engines_that_were_never_timed_auto_takes_fp16(gpu: None, tmp_path: Path) -> None:
    for precision in ("fp16", "fp32"):
        put(tmp_path / precision, dataclasses.replace(PLAN, precision=precision, throughput=0.0))
    best = best_engine(list_engines(tmp_path, PLAN.model), "cuda")
    assert best is not None
    assert best.folder.name == "fp16"
    put(tmp_path / "timed", dataclasses.replace(PLAN, precision="fp32", throughput=5.0))
    best = best_engine(list_engines(tmp_path, PLAN.model), "cuda")
    assert best is not None
    assert best.folder.name == "timed"


@pytest.fixture
def unverified(tmp_path: Path) -> Path:
    """An engine that runs here, as if it had been built elsewhere: the released one."""
    folder = tmp_path / "elsewhere"
    shutil.copytree(RELEASED, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    known = dataclasses.replace(Manifest.read(RELEASED), verified=False, agreement={})
    (folder / MANIFEST).write_text(known.dump())
    return folder


@pytest.mark.slow
def test_the_first_start_verifies(unverified: Path) -> None:
    said = list[str]()
    open_engine("cpu", "fp32", str(unverified), say=said.append).close()
    assert said == [line for line in said if line.startswith(f"verified on {this_processor()}, against FP32: max ")]
    assert len(said) == 1
    known = Manifest.read(unverified)
    assert (known.verified, known.verified_on, known.agreement["images"]) == (True, this_processor(), 64)
    assert known.reference == Manifest.read(RELEASED).reference
    open_engine("cpu", "fp32", str(unverified), say=said.append).close()
    assert len(said) == 1
    (unverified / MANIFEST).write_text(dataclasses.replace(known, verified_on="another").dump())
    open_engine("cpu", "fp32", str(unverified), say=said.append).close()
    assert len(said) == 2


@pytest.mark.slow
def test_an_engine_that_is_too_far_from_fp32_never_starts(unverified: Path) -> None:
    known = Manifest.read(unverified)
    # Not one of those that every start looks at.
    shifted = (*known.reference[:40], (known.reference[40][0] + 0.01, *known.reference[40][1:]), *known.reference[41:])
    (unverified / MANIFEST).write_text(dataclasses.replace(known, reference=shifted).dump())
    for _ in range(2):
        with pytest.raises(EngineError, match="not verified when it was built, is too far from FP32, so it cannot be"):
            open_engine("cpu", "fp32", str(unverified))
        assert not Manifest.read(unverified).verified
    done = invoke("engines", unverified.parent)
    assert done.exit_code == 0


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_verified_at_every_start(unverified: Path) -> None:
    said = list[str]()
    with atomic(unverified / MANIFEST):  # as another start that is at it does
        for _ in range(2):
            open_engine("cpu", "fp32", str(unverified), say=said.append).close()
    assert [line.partition(" on ")[0] for line in said] == ["verified", "verified"]
