"""What TensorRT for RTX, which builds our engines for real in test_rtx.py, does not show of the way to TensorRT.

That INT8 is converted, and that every version takes what it is given: with the real Torch-TensorRT, but no GPU.
"""

from __future__ import annotations

import ast
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from fiqa_trt.building.compile import KEYWORDS, VERSIONS, export_program
from fiqa_trt.engines.opening import CHECKPOINT
from fiqa_trt.engines.tensorrt import check_layer_types, types_of_layers
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.errors import EngineError

ROOT = Path(__file__).parents[2]
FRONT_END = Path(sys.prefix) / "front-end"
WHEELS = Path(sys.prefix) / "wheels"

front_end = pytest.mark.skipif(
    not (FRONT_END / "torch_tensorrt").is_dir() or shutil.which("gcc") is None,
    reason="needs gcc and .venv/front-end, which `make test` installs",
)


def dry_run() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.building.dry_run"],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(FRONT_END)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@front_end
@pytest.mark.slow
def test_int8_becomes_one_engine_and_keeps_every_quantise_operator() -> None:
    found = dry_run()
    assert found["converted"] == found["operators"] > 500
    assert found["engines"] == 1
    assert found["exported"] == 2 * found["layers"] > 80
    assert found["quantise"] == found["exported"]
    assert found["types"] == ["float16"]  # what is not quantised, and what leaves a quantised convolution
    assert found["input"] == ["torch.uint8"]


def versions() -> list[str]:
    (low, high) = VERSIONS
    return [f"{low[0]}.{minor}" for minor in range(low[1], high[1] + 1)]


def signature(wheel: Path, module: str, function: str, owner: str | None = None) -> set[str]:
    """Names of a function's parameters in a wheel, by its source; `**kwargs`, which swallows typos, not counted."""
    with zipfile.ZipFile(wheel) as archive:
        tree = ast.parse(archive.read(module))
    scope: Any = tree
    if owner is not None:
        scope = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner)
    found = [node for node in scope.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return {argument.arg for node in found for argument in (*node.args.args, *node.args.kwonlyargs)}


@pytest.mark.parametrize("version", versions())
def test_every_supported_version_takes_what_we_pass(version: str) -> None:
    wheels = sorted(WHEELS.glob(f"torch_tensorrt-{version}.*.whl"))
    if not wheels:
        pytest.skip(f"no wheel of torch-tensorrt {version} in {WHEELS}, where `make test` puts it")
    source = (ROOT / "fiqa_trt" / "building" / "compile.py").read_text()
    passed = {
        getattr(call.func, "attr", getattr(call.func, "id", "")): {word.arg for word in call.keywords if word.arg}
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call)
    }
    convert = "convert_exported_program_to_serialized_trt_engine"
    known = signature(wheels[-1], "torch_tensorrt/dynamo/_compiler.py", convert)
    assert len(passed[convert]) == 4
    assert passed[convert] | KEYWORDS.keys() <= known
    assert passed["Debugger"] <= signature(
        wheels[-1], "torch_tensorrt/dynamo/debug/_Debugger.py", "__init__", "Debugger"
    )
    with zipfile.ZipFile(wheels[-1]) as archive:
        shapes = archive.read("torch_tensorrt/_Input.py").decode()
        exported = archive.read("torch_tensorrt/dynamo/__init__.py").decode()
    for name in ("min_shape", "opt_shape", "max_shape", "dtype"):
        assert f'"{name}"' in shapes, name
    assert convert in exported
    assert "Debugger" in exported


UNKNOWN = {"Outputs": [{"Format/Datatype": "N/A due to dynamic shapes"}]}


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        ({"Outputs": [{"Format/Datatype": "Row major linear FP32"}]}, {"fp32"}),
        ({"Outputs": [{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"}]}, {"fp16"}),
        ({"Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]}, {"int8"}),
        ({"Outputs": [{"Datatype": "Half"}]}, {"fp16"}),
        (UNKNOWN, set()),
        ({**UNKNOWN, "Weights": {"Type": "Half", "Count": 432}}, {"fp16"}),
        ({**UNKNOWN, "Weights": {"Type": "Float", "Count": 432}}, {"fp32"}),
        ({**UNKNOWN, "TacticName": "sm80_xmma_fprop_implicit_gemm_f16f16_f16f16_f16_nhwckrsc_nhwc"}, {"fp16"}),
        (
            {**UNKNOWN, "TacticName": "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_nchw_vect_c_32"},
            {"int8"},
        ),
        ({**UNKNOWN, "TacticName": "sm80_xmma_fprop_implicit_gemm_f32f32_f32f32_f32_nhwckrsc_nhwc"}, {"fp32"}),
        ("only a name", set()),
    ],
)
def test_types_of_layers(layer: object, found: set[str]) -> None:
    assert types_of_layers({"Layers": [layer]}) == found


def test_an_engine_of_the_wrong_type_is_an_error() -> None:
    check_layer_types({"fp16", "fp32"}, "fp16")
    check_layer_types({"int8", "fp16"}, "int8")
    with pytest.raises(EngineError, match="without fp16 layers"):
        check_layer_types({"fp32"}, "fp16")
    with pytest.raises(EngineError, match="without int8 layers"):
        check_layer_types({"fp16", "fp32"}, "int8")


@pytest.mark.slow
def test_a_graph_of_the_wrong_type_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The silent FP32 engine: `prepare` forgotten."""
    network = load_checkpoint(CHECKPOINT)
    network.fold()
    network.dtype = torch.float16
    for member in network.each():
        monkeypatch.setattr(member, "pool", lambda images, pool=member.pool: pool(images.float()))
    with pytest.raises(EngineError, match=r"computes in \{torch.float32\}, not in torch.float16"):
        export_program(network, 4, "cpu")


def test_a_machine_without_torch_tensorrt_is_told_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_tensorrt", None)
    from fiqa_trt.building.compile import import_torch_tensorrt

    with pytest.raises(EngineError, match=r"Torch-TensorRT cannot be loaded.*--backend torch"):
        import_torch_tensorrt()


def test_the_other_torch_tensorrt_is_not_taken_for_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both packages are the module `torch_tensorrt`."""
    from fiqa_trt.building.compile import import_torch_tensorrt
    from fiqa_trt.building.rtx_torch import installed

    there = {"torch": "2.14.1", "torch-tensorrt-rtx": "2.14.0"}

    def version(name: str) -> str:
        if name not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert installed() == "2.14.0"
    with pytest.raises(EngineError, match="needs torch-tensorrt, whose place torch-tensorrt-rtx has taken: use"):
        import_torch_tensorrt()
    there["torch-tensorrt"] = "2.14.0"  # one over the other: which files are whose, nobody knows
    assert installed() is None
