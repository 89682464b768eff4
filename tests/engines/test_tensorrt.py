"""The TensorRT module without a GPU: a stand-in of the same shape for its library, and for what torch says of a GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.machinery
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fiqa_trt.engines import opening
from fiqa_trt.engines import tensorrt as ours
from fiqa_trt.engines.manifest import Manifest, Target
from fiqa_trt.engines.opening import RELEASED, open_engine
from fiqa_trt.errors import EngineError, OutOfMemory
from tests.helpers import manifest, put

HERE = Target("cuda", "H100", ("sm_90",))
PLAN = manifest(backend="tensorrt", target=HERE, versions={"tensorrt": "11.1.0"})


class Context:
    """An execution context that notes what it is told."""

    def __init__(self, log: list[Any]) -> None:
        self.log, self.shape_fits, self.launches = log, True, True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.log.append((name, shape))
        return self.shape_fits

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.log.append((name, address))
        return True

    def execute_async_v3(self, stream: int) -> bool:
        self.log.append(("launch", stream))
        return self.launches


class Plan:
    """A deserialised engine with the given tensors: name to whether it is an input. Outputs have two columns."""

    def __init__(self, tensors: dict[str, bool]) -> None:
        self.tensors, self.log = tensors, list[Any]()
        self.context: Context | None = Context(self.log)
        self.num_io_tensors = len(tensors)

    def create_execution_context(self) -> Context | None:
        return self.context

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if self.tensors[name] else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 2)

    def create_engine_inspector(self) -> Any:
        layers = {"Layers": [{"Weights": {"Type": "Half"}}, {"TacticName": "sm90_imma_i8i8_i32"}]}
        return SimpleNamespace(get_engine_information=lambda form: json.dumps(layers))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The stand-in for `tensorrt`; `loads` is what it makes of a plan."""
    fake = SimpleNamespace(
        __version__="11.1.0", loads=None,
        TensorIOMode=SimpleNamespace(INPUT="in"), LayerInformationFormat=SimpleNamespace(JSON=0),
    )  # fmt: skip
    fake.ILogger = type("ILogger", (), {"ERROR": 1})
    fake.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=lambda plan: fake.loads)
    fake.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    return fake


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIQA_TRT_ENGINES", str(tmp_path))
    return tmp_path


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(ours, "tensorrt_version", lambda: "11.1.0")


def test_an_engine_of_this_machine_can_be_used(gpu: None) -> None:
    assert ours.difference_from_here(PLAN) is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"target": Target("cuda", "A100", ("sm_80",))},
            "built on A100 sm_80, this is H100 sm_90; build it again here",
        ),
        ({"versions": {"tensorrt": "10.15.1"}}, "built with TensorRT 10.15.1, here is 11.1.0; build it again here"),
    ],
    ids=["GPU", "TensorRT"],
)
def test_an_engine_of_another_machine_is_told_apart(gpu: None, changes: dict[str, Any], problem: str) -> None:
    assert ours.difference_from_here(dataclasses.replace(PLAN, **changes)) == problem


def test_a_plan_that_does_not_load_is_an_error(library: SimpleNamespace) -> None:
    with pytest.raises(
        EngineError, match=r"mine: TensorRT 11\.1\.0 cannot load this engine \(it says nothing\); build"
    ):
        ours.load_plan(b"", "mine")

    def refuse(logger: object) -> None:
        raise RuntimeError("no driver\nmany lines")

    library.Runtime = refuse
    with pytest.raises(EngineError, match=r"cannot be used here: no driver many lines"):
        ours.load_plan(b"", "mine")


def test_binding_takes_names_as_they_come(library: SimpleNamespace) -> None:
    library.loads = plan = Plan({"arg0_1": True, "output0": False})
    images, scores = torch.zeros((4, 224, 224, 3), dtype=torch.uint8), torch.zeros((4, 2))
    stream: Any = SimpleNamespace(cuda_stream=7)
    launch = ours.bind_plan(ours.load_plan(b"", "mine"), images, [scores], stream)
    launch()
    assert plan.log == [
        ("arg0_1", (4, 224, 224, 3)),
        ("arg0_1", images.data_ptr()),
        ("output0", scores.data_ptr()),
        ("launch", 7),
    ]
    assert plan.context is not None
    plan.context.launches = False
    with pytest.raises(RuntimeError, match="could not launch"):
        launch()
    plan.context.shape_fits = False
    with pytest.raises(EngineError, match="does not take"):
        ours.bind_plan(plan, images, [scores], stream)
    plan.context = None
    with pytest.raises(EngineError, match="no memory"):
        ours.bind_plan(plan, images, [scores], stream)
    with pytest.raises(EngineError, match="not an engine of ours: its inputs and outputs are a, b, c"):
        ours.bind_plan(Plan({"a": True, "b": True, "c": False}), images, [scores], stream)


def test_binding_takes_outputs_in_their_order(library: SimpleNamespace) -> None:
    plan = Plan({"arg0_1": True, "output0": False, "output1": False})
    images, outputs = torch.zeros((4, 224, 224, 3), dtype=torch.uint8), [torch.zeros((4, 2)), torch.zeros((4, 2))]
    stream: Any = SimpleNamespace(cuda_stream=7)
    ours.bind_plan(plan, images, outputs, stream)
    assert plan.log[2:] == [("output0", outputs[0].data_ptr()), ("output1", outputs[1].data_ptr())]
    with pytest.raises(EngineError, match="not an engine of ours: output1 has 2 columns, not 10"):
        ours.bind_plan(plan, images, [outputs[0], torch.zeros((4, 10))], stream)
    with pytest.raises(EngineError, match="its inputs and outputs are arg0_1, output0, output1"):
        ours.bind_plan(plan, images, outputs[:1], stream)


@pytest.mark.parametrize("device", ["auto", "cuda", "cuda:0"])
def test_what_is_opened_for_a_device(
    gpu: None, device: str, store: Path, library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store / "mine", dataclasses.replace(PLAN, model=Manifest.read(RELEASED).model, batch=(2, 8, 32)))
    monkeypatch.setattr(opening, "_usable_gpu", lambda say: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    library.loads = object()
    opened = list[Any]()

    def engine(bind: object, where: str, info: Any, size: int, say: object) -> object:
        opened.append((where, info.batch))
        raise OutOfMemory("full", info.batch)

    monkeypatch.setattr(ours, "CudaEngine", engine)
    with pytest.raises(OutOfMemory):
        open_engine(device, engine="tensorrt")
    place = "cuda" if device == "auto" else device
    assert opened == [(place, 8), (place, 4), (place, 2), (place, 2)]
    opened.clear()
    with pytest.raises(OutOfMemory):
        open_engine(device, engine="tensorrt", batch=1)
    assert opened[0] == (place, 2)  # the engine takes no fewer
    with pytest.raises(EngineError, match=r"up to 32 images, not 64; build with --max-batch 64"):
        open_engine(device, engine="tensorrt", batch=64)


@pytest.mark.parametrize("device", ["cuda:1", "cuda:256"])
def test_a_gpu_that_is_not_there(gpu: None, device: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store / "mine", dataclasses.replace(PLAN, model=Manifest.read(RELEASED).model))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    for engine in ("auto", "tensorrt", "torch"):
        with pytest.raises(EngineError, match=f"--device {device}: this machine has 1 CUDA"):
            open_engine(device, engine=engine)
    with pytest.raises(EngineError, match="--device cuda:00: it is one of"):
        open_engine("cuda:00")


def test_types_are_read_from_the_inspector(library: SimpleNamespace) -> None:
    plan: Any = Plan({})
    assert ours.layer_types(plan) == {"fp16", "int8"}
    plan.create_engine_inspector = lambda: SimpleNamespace(get_engine_information=lambda form: '{"Layers": [')
    assert ours.layer_types(plan) == set()  # a plan that took minutes is not lost for it


@pytest.fixture
def versions(gpu: None, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Of TensorRT and of its lean runtime here."""
    found: dict[str, str | None] = {"tensorrt": None, "tensorrt_lean": None}
    monkeypatch.setattr(ours.Library, "version", lambda self: found[self.module])
    monkeypatch.setattr(ours, "tensorrt_version", lambda: found["tensorrt"])
    return found


@pytest.mark.parametrize(
    ("full", "lean", "compatible", "library"),
    [
        ("11.1.0.106", None, False, ours.FULL),
        ("11.1.0.106", "11.2.1.2", True, ours.FULL),
        ("11.2.1.2", "11.1.0.106", True, ours.LEAN),
        (None, "11.1.0.106", True, ours.LEAN),
        (None, "11.10.0.1", True, ours.LEAN),
        (None, "11.0.0.114", True, None),
        (None, "12.0.0.1", True, None),
        (None, "11.1.0.106", False, None),
        ("11.2.1.2", None, True, None),
    ],
)
def test_the_lean_runtime_takes_the_place_of_tensorrt(
    full: str | None, lean: str | None, compatible: bool, library: ours.Library | None, versions: dict[str, str | None]
) -> None:
    versions.update(tensorrt=full, tensorrt_lean=lean)
    plan = dataclasses.replace(PLAN, versions={"tensorrt": "11.1.0.106"}, version_compatible=compatible)
    assert ours.library_for(plan) is library
    problem = ours.difference_from_here(plan)
    assert (problem is None) == (library is not None)
    if problem is not None and compatible:
        assert problem.endswith("pip install tensorrt-lean-cu13==11.1.0.106")
    if problem is not None and not compatible:
        lean_only = "here is none but TensorRT's lean runtime, which needs --version-compatible; build it again here"
        assert problem == f"built with TensorRT 11.1.0.106, {lean_only}"


def test_a_plan_that_the_lean_runtime_has_no_code_for(
    library: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVIDIA/TensorRT#4790."""

    def runtime(log: Any) -> SimpleNamespace:
        def refuse(plan: bytes) -> None:
            log.log(1, "Error Code 1: Internal Error (Unexpected call to stub loadRunner for ReformatRunner.)")

        return SimpleNamespace(deserialize_cuda_engine=refuse)

    library.Runtime = runtime
    library.__spec__ = importlib.machinery.ModuleSpec("tensorrt_lean", None)
    monkeypatch.setitem(sys.modules, "tensorrt_lean", library)
    with pytest.raises(EngineError, match=r"mine was not built for TensorRT.s lean runtime 11\.1\.0: build"):
        ours.load_plan(b"", "mine", ours.LEAN)
