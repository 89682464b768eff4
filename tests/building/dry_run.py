"""Lower and partition our INT8 network, with causes, by the real Torch-TensorRT without a GPU or TensorRT's libraries.

`python -m tests.building.dry_run`, in a process of its own with `.venv/front-end` on the path (see `front_end.txt`);
prints JSON. No engine is built: this proves that every operator is converted, into one engine, with its Q/DQ, which
TensorRT for RTX does not take, and says nothing of numerics or speed.

TensorRT's Python bindings only need to find their libraries, which are replaced by stubs that return null;
torch_tensorrt is copied without its native libraries; the few calls that ask for a GPU are answered.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

STUBS = {  # by soname, the C functions that tensorrt.so resolves when it is loaded
    "libnvinfer.so.11": "createInferBuilder_INTERNAL createInferRefitter_INTERNAL createInferRuntime_INTERNAL "
    "getBuilderPluginRegistry getPluginRegistry getLogger getInferLibVersion",
    "libnvonnxparser.so.11": "createNvOnnxParserRefitter_INTERNAL createNvOnnxParser_INTERNAL getNvOnnxParserVersion",
    "libnvinfer_plugin.so.11": "initLibNvInferPlugins",
}
MAX_BATCH = 512


def load_front_end(folder: Path) -> ModuleType:
    """Import torch_tensorrt against stubs that are compiled into `folder`."""
    for soname, functions in STUBS.items():
        source, library = folder / "stub.c", folder / soname
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions.split()))
        subprocess.run(["gcc", "-shared", "-fPIC", f"-Wl,-soname,{soname}", "-o", library, source], check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # a soname that is loaded is not looked for any more
    spec = importlib.util.find_spec("torch_tensorrt")
    assert spec is not None
    assert spec.origin is not None
    package = Path(spec.origin).parent
    shutil.copytree(package, folder / "torch_tensorrt", ignore=shutil.ignore_patterns("*.so", "bin"))
    sys.path.insert(0, str(folder))
    import tensorrt_bindings

    sys.modules["tensorrt"] = tensorrt_bindings
    answers: dict[str, Any] = {
        "get_device_capability": (9, 0),
        "get_device_name": "none",
        "current_device": 0,
        "mem_get_info": (10**11, 10**11),
        **dict.fromkeys(("set_device", "synchronize", "empty_cache")),
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    import torch_tensorrt

    module: ModuleType = torch_tensorrt
    return module


def emit_quantize_operators_on_cpu() -> None:
    """Modelopt puts `torch.ops.tensorrt.quantize_op` into a graph for CUDA tensors only; here for CPU tensors too."""
    from modelopt.torch.quantization import tensor_quant

    def forward(
        ctx: object, inputs: Any, amax: Any, bias: Any = None, num_bits: int = 8, unsigned: bool = False,
        narrow_range: bool = True, *_: Any, **__: Any,
    ) -> Any:  # fmt: skip
        return torch.ops.tensorrt.quantize_op(inputs, amax, num_bits, 0, unsigned, narrow_range)

    tensor_quant.FakeTensorQuantFunction.forward = staticmethod(forward)
    tensor_quant.fake_quant_impl = tensor_quant._tensor_quant


def dry_run(front_end: ModuleType, program: torch.export.ExportedProgram) -> dict[str, Any]:
    """Compile without building: how many operators there are, how many are converted, into how many engines."""
    from torch_tensorrt.dynamo import _compiler

    from fiqa_trt.building.compile import KEYWORDS, input_shapes

    lowered = list[torch.fx.GraphModule]()
    original = _compiler.post_lowering

    def recording(*arguments: Any, **options: Any) -> torch.fx.GraphModule:
        lowered.append(original(*arguments, **options))
        return lowered[-1]

    _compiler.post_lowering = recording
    said = io.StringIO()
    logging.getLogger("torch_tensorrt").addHandler(logging.StreamHandler(said))
    inputs = [front_end.Input(**input_shapes(256, MAX_BATCH), dtype=torch.uint8)]
    with contextlib.redirect_stdout(said):
        # The full compilation that a build demands is what is to be seen here.
        keywords = {**KEYWORDS, "require_full_compilation": False}
        _compiler.compile(program, arg_inputs=inputs, dryrun=True, **keywords)
    counts = re.search(r"(\d+) Total Operators, of which (\d+) operators", said.getvalue())
    assert counts is not None, said.getvalue()
    nodes = [node for node in lowered[0].graph.nodes if node.op == "call_function"]
    convolutions = [node for node in nodes if "convolution" in str(node.target)]
    return {
        "operators": int(counts[1]),
        "converted": int(counts[2]),
        "engines": len(re.findall(r"TRT Engine #\d+", said.getvalue())),
        "quantise": sum("quantize_op" in str(node.target) for node in nodes),
        "types": sorted({str(node.meta["val"].dtype).removeprefix("torch.") for node in convolutions}),
        "convolutions": len(convolutions),
        "input": [str(node.meta["val"].dtype) for node in lowered[0].graph.nodes if node.op == "placeholder"],
    }


def main() -> None:
    """Print the result."""
    from fiqa_trt.building.calibration import read_ranges
    from fiqa_trt.building.compile import export_program, prepare
    from fiqa_trt.engines.opening import CHECKPOINT
    from fiqa_trt.engines.torch import load_checkpoint
    from fiqa_trt.models.causes import Causes

    with tempfile.TemporaryDirectory() as folder:
        front_end = load_front_end(Path(folder))
        emit_quantize_operators_on_cpu()
        network, ranges = load_checkpoint(CHECKPOINT), read_ranges(None)
        network.add_causes(Causes.untuned())
        prepare(network, "int8", ranges)
        program = export_program(network, MAX_BATCH, "cpu")
        exported = sum("quantize_op" in str(node.target) for node in program.graph.nodes)
        print(json.dumps({**dry_run(front_end, program), "exported": exported, "layers": len(ranges.layers)}))


if __name__ == "__main__":
    main()
