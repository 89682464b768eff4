"""The registry of backends: what each module must have, and one that is added as another file would add it."""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from click.testing import CliRunner

from fiqa_trt.building import Request, _choose, build
from fiqa_trt.building.measuring import rounded
from fiqa_trt.building.registry import BUILDERS, Builder
from fiqa_trt.cli import group
from fiqa_trt.engines.base import Engine, Wanted
from fiqa_trt.engines.known import infer
from fiqa_trt.engines.manifest import Draft, Manifest
from fiqa_trt.engines.opening import RELEASED, open_engine
from fiqa_trt.engines.registry import BACKENDS, Backend, names
from fiqa_trt.engines.store import list_engines
from fiqa_trt.engines.tensorrt import Library
from fiqa_trt.errors import EngineError
from fiqa_trt.models.verification import verification_batch
from tests.helpers import PAYLOAD, MeanEngine, manifest


@pytest.mark.parametrize("name", BACKENDS)
def test_the_module_of_a_backend_has_what_it_must(name: str) -> None:
    backend = BACKENDS[name]
    needed = ["open_directory", "difference_from_here", "missing", "unfit", *["open_unbuilt"] * bool(backend.unbuilt)]
    assert all(callable(getattr(backend.load(), each, None)) for each in needed)
    assert backend.kinds <= {"cpu", "cuda"}


def test_what_can_be_asked_for_can_be_built() -> None:
    assert set(BUILDERS) == set(names())
    assert all(callable(builder.load()) for builder in BUILDERS.values())


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store, and a backend `mine` for the CPU that is a module and a line in both registries."""

    def open_directory(folder: Path, wanted: Wanted) -> Engine:
        assert wanted.device == "cpu"
        assert Manifest.read(folder).read_payload(folder) == PAYLOAD
        return MeanEngine(wanted.batch or 8)

    def build_mine(
        request: Request, device: str, draft: Draft, scratch: Path, say: Callable[[str], None]
    ) -> tuple[Manifest, bytes]:
        reference = rounded(infer(MeanEngine(), verification_batch()))
        model = Manifest.read(RELEASED).model
        return manifest(request.precision, backend="mine", model=model, reference=reference), PAYLOAD

    contents = {
        "open_directory": open_directory,
        "build": build_mine,
        "missing": lambda: None,
        "unfit": lambda device: None,
    }
    contents |= {"difference_from_here": lambda manifest, device: None}
    for folder in ("engines", "building"):
        module = ModuleType(f"fiqa_trt.{folder}.mine")
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(BACKENDS, "mine", Backend("Mine", "mine", "cpu"))
    monkeypatch.setitem(BUILDERS, "mine", Builder("mine", "build"))
    monkeypatch.setenv("FIQA_TRT_ENGINES", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.mark.slow
def test_a_backend_is_a_module_and_a_line(mine: Path) -> None:
    with pytest.raises(EngineError, match="there is no Mine engine that can be used here; make one with: fiqa-trt b"):
        open_engine("cpu", engine="mine")
    with pytest.raises(EngineError, match="--engine mine runs on the CPU; with --device cuda:1 use --engine auto or t"):
        open_engine("cuda:1", engine="mine")
    with pytest.raises(
        EngineError, match="it is auto, openvino, tensorrt, tensorrt-rtx, torch, mine or an engine directory"
    ):
        open_engine(engine="mime")
    built = build(Request("fp16", backend="mine"))
    assert built.folder == mine / "mine-fp16"
    assert built.manifest.payload_sha256 == hashlib.sha256(PAYLOAD).hexdigest()
    said = list[str]()
    for engine in ("mine", "auto", str(built.folder)):
        opened = open_engine("cpu", engine=engine, batch=2, say=said.append)
        assert (opened.info.backend, opened.info.batch) == ("mean 1", 2)
    assert said == [f"using {built.folder}"] * 2
    with pytest.raises(EngineError, match="is an fp16 engine; build one for --precision int8"):
        open_engine(precision="int8", engine=str(built.folder))
    assert [entry.problem for entry in list_engines(mine, built.manifest.model)] == [None]
    assert f"{built.folder}: mine fp16" in CliRunner().invoke(group, ["engines"]).output


@pytest.mark.slow
def test_a_backend_that_cannot_be_built_is_passed_over(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("fiqa_trt.engines.tensorrt.tensorrt_version", lambda: None)
    monkeypatch.setitem(BUILDERS, "torch", BUILDERS["mine"])
    said = list[str]()
    assert build(Request("fp16", device="cuda"), said.append).folder == mine / "torch-fp16"
    install = "pip install 'fiqa-trt[gpu]' where NVIDIA's package index can be reached"
    rtx = "TensorRT for RTX is not here (pip install 'fiqa-trt[rtx]')"
    assert said == [f"TensorRT is not here ({install}), {rtx}, so this builds a PyTorch engine"]
    for backend, device in (("mine", "cuda"), ("torch", "cpu"), ("none", "cpu"), ("onnx", "cpu")):
        with pytest.raises(EngineError, match=f"^--backend {backend} does not run on --device {device}$"):
            build(Request("fp16", device=device, backend=backend))


def test_auto_says_why_it_does_not_build_for_a_gpu_that_a_library_does_not_support(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(Library, "version", lambda self: "1.6" if self.module == "tensorrt_rtx" else None)
    monkeypatch.setattr("fiqa_trt.engines.rtx.knows", lambda number: number != 90)
    said = list[str]()
    assert _choose("cuda:0", said.append) == "torch"
    reason = "TensorRT for RTX 1.6 does not support H100 (compute capability 9.0), so this builds a PyTorch engine"
    assert said.pop().endswith(f", {reason}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert _choose("cuda:0", said.append) == "tensorrt-rtx"
    assert said.pop().endswith("so this builds a TensorRT for RTX engine")
    monkeypatch.setattr(Library, "version", lambda self: "11.1")
    assert _choose("cuda:0", said.append) == "tensorrt"
    assert not said


@pytest.mark.parametrize("version", [None, "11.1.0"])
def test_where_no_engine_was_built_pytorch_runs_on_a_gpu(
    version: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIQA_TRT_ENGINES", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr("fiqa_trt.engines.tensorrt.tensorrt_version", lambda: version)
    opened = list[tuple[str, str, int | None]]()

    def open_unbuilt(released: Path, wanted: Wanted) -> Engine:
        opened.append((wanted.device, wanted.precision, wanted.batch))
        return MeanEngine()

    there = SimpleNamespace(open_unbuilt=open_unbuilt, missing=lambda: None, unfit=lambda device: None)
    monkeypatch.setitem(sys.modules, "fiqa_trt.engines.torch", there)
    monkeypatch.setattr("fiqa_trt.engines.known.difference", lambda engine, manifest: None)
    said = list[str]()
    open_engine("cuda:0", batch=3, say=said.append)
    assert opened == [("cuda:0", "auto", 3)]
    why = "no engine has been built here (fiqa-trt build makes one)"
    if version is None:
        why = "TensorRT is not here (pip install 'fiqa-trt[gpu]' where NVIDIA's package index can be reached), "
        why += "TensorRT for RTX is not here (pip install 'fiqa-trt[rtx]')"
    assert said == [f"{why}, so PyTorch runs the network"]
