"""The ensemble through Torch-TensorRT to one serialized TensorRT engine. What its versions differ in is in this module.

Versions 2.11 to 2.14 are known to take every keyword of `KEYWORDS` (a test reads their sources). All of them type a
network strongly unless told otherwise: an engine computes in the types of the exported graph, so precision is decided
here, before the export, and never by an option of the compiler.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiqa_trt.building.quantize import LEVELS, Ranges, quantised_layers
from fiqa_trt.errors import EngineError, one_line
from fiqa_trt.models.spec import PreprocessSpec

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from fiqa_trt.models.networks import Ensemble

VERSIONS = ((2, 11), (2, 14))
PACKAGE = "torch-tensorrt"
_IMAGE = (PreprocessSpec().size, PreprocessSpec().size, 3)
SMALLEST = 2  # a batch of 1 would make the exporter specialise on it
# One engine or an error: never a silent fall-back to PyTorch for a part.
KEYWORDS: dict[str, Any] = {
    "require_full_compilation": True,
    "min_block_size": 1,
    "pass_through_build_failures": True,
    "disable_tf32": True,  # FP32 is to be FP32
}


def prepare(network: Ensemble, precision: str, ranges: Ranges | None = None) -> None:
    """Bring an ensemble into the form that is compiled, in place: shuffles folded, types lowered, INT8 inserted.

    Args:
        network: in evaluation mode, on the device that it is exported on.
        precision: fp32, fp16 or int8; what is not INT8 there is FP16.
        ranges: for int8.

    Raises:
        EngineError: modelopt is missing, or the ranges do not belong to this network.
    """
    import torch

    network.fold()
    if precision != "fp32":
        network.lower(torch.float16)
    if precision == "int8":
        assert ranges is not None
        _quantise(network, ranges)


def _quantise(network: Ensemble, ranges: Ranges) -> None:
    """Per-channel INT8 weights and per-tensor INT8 inputs, by modelopt, for every layer that has a range."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from modelopt.torch import quantization
    except ImportError as exc:
        raise EngineError(f"INT8 on a GPU needs {exc.name}: pip install 'nvidia-modelopt[hf]'") from exc
    layers = quantised_layers(network)
    if unknown := ranges.layers.keys() - layers.keys():
        raise EngineError(f"the INT8 ranges name layers that this network does not have, such as {min(unknown)}")
    rules: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in ranges.layers:
        for kind, axis in (("weight", 0), ("input", None)):
            rules.append({"quantizer_name": f"{name}.{kind}_quantizer", "cfg": {"num_bits": 8, "axis": axis}})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize(network, {"quant_cfg": rules, "algorithm": None})
    modules = dict(network.named_modules())
    for name, largest in ranges.layers.items():
        layer: Any = modules[name]
        weight = layer.weight.detach().abs().amax(dim=(1, 2, 3), keepdim=True).float().clamp(min=1e-12 * LEVELS)
        layer.weight_quantizer.amax = weight
        layer.input_quantizer.amax = torch.tensor(largest, device=weight.device)


def export_program(network: Ensemble, max_batch: int, device: str = "cuda") -> ExportedProgram:
    """Export a prepared ensemble with a dynamic batch of SMALLEST to `max_batch`.

    Raises:
        EngineError: torch cannot export it, or the graph is not in the types that it was prepared for.
    """
    import torch

    example = torch.zeros((SMALLEST + 1, *_IMAGE), dtype=torch.uint8, device=device)
    batch = torch.export.Dim("batch", min=SMALLEST, max=max(max_batch, SMALLEST + 2))
    try:
        with torch.inference_mode(), _quantised_export():
            program = torch.export.export(network, (example,), dynamic_shapes=({0: batch},), strict=False)
    except Exception as exc:  # torch raises whatever it stumbles over
        raise EngineError(f"torch {torch.__version__} cannot export the network: {one_line(exc)}") from exc
    # TensorRT keeps to the types of this graph, so it is here that FP16 is really FP16.
    found = {
        node.meta["val"].dtype for node in program.graph.nodes if "conv2d" in str(node.target) and "val" in node.meta
    }
    if found != {network.dtype}:
        raise EngineError(f"the exported network computes in {found}, not in {network.dtype}; please report this")
    return program


@contextlib.contextmanager
def _quantised_export() -> Iterator[None]:
    """Modelopt's own context if it is there and has quantised something; harmless otherwise."""
    try:
        from modelopt.torch.quantization.utils import export_torch_mode
    except ImportError:
        yield
        return
    with export_torch_mode():
        yield


def import_torch_tensorrt() -> Any:
    """The module. Raises EngineError with the way out: it fails in many ways where a library is missing."""
    if importlib.util.find_spec("torch_tensorrt") and _is_of_rtx():
        raise EngineError(
            "--backend tensorrt needs torch-tensorrt, whose place torch-tensorrt-rtx has taken: use --backend "
            "tensorrt-rtx, or uninstall that, then pip install --force-reinstall --no-deps torch-tensorrt"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torch_tensorrt
    except Exception as exc:
        from fiqa_trt.engines.tensorrt import INSTALL

        raise EngineError(
            f"Torch-TensorRT cannot be loaded ({one_line(exc, 120)}): {INSTALL}; or use --backend torch"
        ) from exc
    found = tuple(int(part) for part in torch_tensorrt.__version__.split(".")[:2])
    if not VERSIONS[0] <= found <= VERSIONS[1]:
        raise EngineError(
            f"torch-tensorrt {torch_tensorrt.__version__} is not supported: install 2.11 to 2.14 (pip install "
            "'torch-tensorrt>=2.11,<2.15')"
        )
    return torch_tensorrt


def _is_of_rtx() -> bool:
    """Whether the module is that of TensorRT for RTX; both packages have the same."""
    try:
        importlib.metadata.version("torch-tensorrt-rtx")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def input_shapes(best: int, max_batch: int) -> dict[str, tuple[int, ...]]:
    """Smallest, quickest and largest input of an engine, for `torch_tensorrt.Input`."""
    return {"min_shape": (SMALLEST, *_IMAGE), "opt_shape": (best, *_IMAGE), "max_shape": (max_batch, *_IMAGE)}


def compile_plan(
    program: ExportedProgram,
    best: int,
    max_batch: int,
    device: torch.device,
    timing_cache: Path,
    *,
    version_compatible: bool = False,
) -> bytes:
    """The serialized TensorRT engine of an exported program.

    Args:
        program: of `export_program`.
        best: batch to optimise for.
        max_batch: largest batch.
        device: a CUDA device.
        timing_cache: file that TensorRT keeps its measurements in, for the next build.
        version_compatible: for later versions, and the lean runtime, too.

    Raises:
        EngineError: Torch-TensorRT is missing or cannot convert the whole network.
    """
    import torch

    torch_tensorrt = import_torch_tensorrt()
    logging.getLogger("torch_tensorrt").setLevel(logging.ERROR)
    from torch_tensorrt.dynamo import Debugger, convert_exported_program_to_serialized_trt_engine

    with tempfile.TemporaryDirectory() as scratch:
        # Without it, the engine does not record its layers' types, which are inspected afterwards.
        detailed = Debugger(
            log_level="error", engine_builder_monitor=False, save_engine_profile=True, logging_dir=scratch
        )
        try:
            with torch.cuda.device(device), detailed:
                plan = convert_exported_program_to_serialized_trt_engine(
                    program,
                    arg_inputs=[torch_tensorrt.Input(**input_shapes(best, max_batch), dtype=torch.uint8)],
                    device=device,
                    timing_cache_path=str(timing_cache),
                    version_compatible=version_compatible,
                    **KEYWORDS,
                )
        except Exception as exc:  # it raises whatever went wrong inside
            raise EngineError(
                f"Torch-TensorRT {torch_tensorrt.__version__} could not compile the network: {one_line(exc)}"
            ) from exc
    return bytes(plan)
