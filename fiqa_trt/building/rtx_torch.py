"""The ensemble through Torch-TensorRT to TensorRT for RTX, with or without a GPU: `python -m`, a process of its own.

Torch-TensorRT asks for a GPU when it is loaded, when it converts, and to load what it has just built. None of that is
needed to build: its own native libraries are left out, the questions are answered, and the engine is taken as it comes.
So this is the same on a machine with a GPU, which it does not touch.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fiqa_trt.building import compile as compiler
from fiqa_trt.building.rtx_plans import INPUT, Plan, configure, describe
from fiqa_trt.errors import EngineError, FiqaError, one_line

PACKAGE = "torch-tensorrt-rtx"
WHY_NOT = (
    "Torch-TensorRT for it is not installed by itself: pip install torch-tensorrt-rtx, in an environment without "
    "torch-tensorrt, whose place it takes"
)


def version_of(package: str) -> str | None:
    """Of an installed package; None if it is not."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed() -> str | None:
    """Version of the Torch-TensorRT that compiles to TensorRT for RTX; None if it, or torch, is not there by itself."""
    found = {name: version_of(name) for name in ("torch", compiler.PACKAGE, PACKAGE)}
    return found[PACKAGE] if found["torch"] and not found[compiler.PACKAGE] else None


def plan_of_checkpoint(
    checkpoint: Path, precision: str, best: int, largest: int, capability: str | None, scratch: Path
) -> Plan:
    """The engine of a checkpoint; see `rtx_plans.plan_of_onnx`. Raises EngineError."""
    wanted = {"checkpoint": str(checkpoint), "precision": precision, "best": best, "largest": largest}
    output = scratch / "torch.plan"
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-m", __name__, json.dumps({**wanted, "capability": capability, "output": str(output)})],
        # Of one that is interrupted, and so killed, we remove what it leaves.
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(scratch)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
        raise EngineError(f"{PACKAGE} {installed()} could not compile the network: {last}")
    found = json.loads(lines[-1])
    for each in ("inputs", "outputs"):
        found[each] = {name: (kind, tuple(shape)) for name, (kind, shape) in found[each].items()}
    return Plan(output.read_bytes(), **{**found, "types": tuple(found["types"])})


class _Captured:
    """Stands for the loaded engine."""

    num_io_tensors = 0

    def __init__(self, plan: Any) -> None:
        self.plan = plan

    def serialize(self) -> Any:
        return self.plan

    def get_aliased_input_tensor(self, name: str) -> None:
        return None


def _load(folder: Path) -> Any:
    """Torch-TensorRT from a copy without its native libraries in `folder`."""
    import torch

    gpu = SimpleNamespace(major=8, minor=9, name="none", total_memory=10**11, multi_processor_count=100)
    answers: dict[str, Any] = {
        "get_device_capability": (8, 9), "get_device_name": "none", "current_device": 0, "device_count": 1,
        "mem_get_info": (10**11, 10**11), "get_device_properties": gpu,
        **dict.fromkeys(("set_device", "synchronize", "empty_cache")),
    }  # fmt: skip
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer, **__: answer)
    origin = importlib.metadata.distribution(PACKAGE).locate_file("torch_tensorrt")
    shutil.copytree(str(origin), folder / "torch_tensorrt", ignore=shutil.ignore_patterns("*.so", "bin"))
    sys.path.insert(0, str(folder))
    import torch_tensorrt
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter

    _TRTInterpreter.trt.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=_Captured)
    return torch_tensorrt


def _compile(wanted: dict[str, Any], folder: Path) -> Plan:
    import torch

    from fiqa_trt.engines.torch import load_checkpoint

    torch_tensorrt = _load(folder)
    logging.getLogger("torch_tensorrt").setLevel(logging.ERROR)
    from torch_tensorrt.dynamo import convert_exported_program_to_serialized_trt_engine as convert
    from torch_tensorrt.dynamo.conversion._TRTInterpreter import TRTInterpreter

    network = load_checkpoint(Path(wanted["checkpoint"]))
    compiler.prepare(network, wanted["precision"])
    program = compiler.export_program(network, wanted["largest"], "cpu")
    configured, networks = TRTInterpreter._populate_trt_builder_config, list[dict[str, Any]]()

    def ours(self: Any, *arguments: Any, **options: Any) -> Any:
        config = configured(self, *arguments, **options)
        configure(config, wanted["capability"])
        networks.append(describe(self.ctx.net))
        return config

    TRTInterpreter._populate_trt_builder_config = ours
    shapes = compiler.input_shapes(wanted["best"], wanted["largest"])
    payload = convert(
        program, arg_inputs=[torch_tensorrt.Input(**shapes, dtype=torch.uint8)], device="cuda:0",
        arg_input_binding_names=(INPUT,), output_binding_names=tuple(network.spec.outputs),
        **compiler.KEYWORDS,
    )  # fmt: skip
    (described,) = networks  # one engine: nothing was left to PyTorch
    return Plan(bytes(payload), **described)


def main(wanted: dict[str, Any]) -> None:
    """Write the engine, and print what it is."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = _compile(wanted, Path(folder))
    Path(wanted["output"]).write_bytes(plan.payload)
    print(json.dumps({name: value for name, value in vars(plan).items() if name != "payload"}))


if __name__ == "__main__":
    try:
        main(json.loads(sys.argv[1]))
    except FiqaError as exc:
        sys.exit(str(exc))
    except Exception as exc:  # Torch-TensorRT raises whatever went wrong inside
        sys.exit(one_line(exc))
