"""TensorRT's runtime on a serialized engine (plan), with torch for memory, streams and graphs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.engines.cuda import CudaEngine, Launch, check_cuda
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.errors import EngineError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INSTALL = (
    "pip install 'fiqa-trt[gpu]' --extra-index-url of NVIDIA's packages (its libraries are not on PyPI; see README)"
)


def tensorrt_version() -> str | None:
    """Version of TensorRT if its libraries can be loaded, else None."""
    if importlib.util.find_spec("tensorrt") is None:
        return None
    try:
        import tensorrt
    except Exception:  # a missing library shows in many ways
        return None
    return str(tensorrt.__version__)


def gpu_target(device: torch.device) -> tuple[str, tuple[str, ...]]:
    """Name and features (`sm_90`) of a GPU."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return torch.cuda.get_device_name(device), (f"sm_{major}{minor}",)


def difference_from_here(manifest: Manifest, device: str = "cuda") -> str | None:
    """What keeps a CUDA engine from being used on this machine, in a line; None if nothing does."""
    try:
        import torch
    except ImportError:
        return "needs torch: pip install 'fiqa-trt[gpu]'"
    if not torch.cuda.is_available():
        return f"needs a CUDA GPU ({manifest.target.name}); torch {torch.__version__} sees none"
    name, features = gpu_target(torch.device(device))
    if (name, features) != (manifest.target.name, manifest.target.features):
        built_on = f"{manifest.target.name} {' '.join(manifest.target.features)}"
        return f"built on {built_on}, this is {name} {' '.join(features)}; build it again here"
    if manifest.backend == "tensorrt" and (here := tensorrt_version()) != manifest.versions.get("tensorrt"):
        return f"built with TensorRT {manifest.versions.get('tensorrt')}, here is {here or 'none'}; build it again here"
    return None


def open_tensorrt(folder: Path, device: str = "cuda", batch: int | None = None) -> CudaEngine:
    """The engine of a directory whose payload is a plan.

    Args:
        folder: an engine directory.
        device: `cuda` or `cuda:i`.
        batch: images per call; the quickest by default.

    Raises:
        EngineError: it is not one, it belongs to another GPU or TensorRT, or a batch that it was not built for.
    """
    manifest = Manifest.read(folder)
    check_cuda(device)
    if problem := difference_from_here(manifest, device):
        raise EngineError(f"{folder}: {problem}")
    low, best, high = manifest.batch
    batch = batch or best
    if not low <= batch <= high:
        raise EngineError(
            f"{folder} takes batches of {low} to {high} images, not {batch}; build with --max-batch {batch}"
        )
    import torch

    where = torch.device(device)
    with torch.cuda.device(where):
        engine = load_plan(manifest.read_payload(folder), str(folder))
    info = EngineInfo(
        backend=f"tensorrt {manifest.versions['tensorrt']}",
        device=manifest.target.name,
        precision=manifest.precision,
        executed=manifest.executed,
        batch=batch,
        model=manifest.model,
        members=manifest.spec.members,
        payload=manifest.payload_sha256,
    )
    return CudaEngine(lambda *places: bind_plan(engine, *places), where, info, manifest.spec.preprocess.size)


def load_plan(plan: bytes, what: str) -> Any:
    """A `tensorrt.ICudaEngine` from its serialized form, on the current device. Raises EngineError, naming `what`."""
    import tensorrt

    runtime = tensorrt.Runtime(tensorrt.Logger(tensorrt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:  # it does not raise
        raise EngineError(f"{what}: TensorRT {tensorrt.__version__} cannot load this engine; build it again here")
    return engine


def bind_plan(engine: Any, images: Tensor, scores: Tensor, stream: torch.cuda.Stream) -> Launch:
    """See `fiqa_trt.engines.cuda.Bind`. The engine must have one input and one output, whatever their names."""
    import tensorrt

    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT]
    if len(inputs) != 1 or len(names) != 2:
        raise EngineError(f"this is not an engine of ours: its inputs and outputs are {', '.join(names)}")
    output = next(name for name in names if name not in inputs)
    if not context.set_input_shape(inputs[0], tuple(images.shape)):
        raise EngineError(f"the engine does not take {tuple(images.shape)}; build it again with another --max-batch")
    context.set_tensor_address(inputs[0], images.data_ptr())
    context.set_tensor_address(output, scores.data_ptr())

    def launch() -> None:
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not launch the engine")

    return launch


def layer_types(engine: Any) -> set[str]:
    """Arithmetic types that the layers of a loaded plan put out, as TensorRT writes them (`Half`, `Float`, `Int8`).

    Needs a plan that was built with detailed profiling verbosity; an empty set otherwise.
    """
    import tensorrt

    text = engine.create_engine_inspector().get_engine_information(tensorrt.LayerInformationFormat.JSON)
    return types_of_layers(json.loads(text))


def types_of_layers(information: dict[str, Any]) -> set[str]:
    """The types in an engine inspector's JSON: the last word of each output's `Format/Datatype` or `Datatype`."""
    found = set[str]()
    for layer in information.get("Layers", []):
        for output in layer.get("Outputs", []) if isinstance(layer, dict) else []:
            text = str(output.get("Datatype") or output.get("Format/Datatype") or "")
            found |= {name for name in ("Float", "Half", "BF16", "Int8", "FP8") if _mentions(text, name)}
    return found


def _mentions(text: str, name: str) -> bool:
    """Inspectors of different versions write `Half`, `FP16` or `Row major linear FP16 format`."""
    words = {"Float": ("float", "fp32"), "Half": ("half", "fp16"), "BF16": ("bf16", "bfloat16")}
    lowered = text.lower().replace("bfloat16", "bf16")
    return any(word in lowered.split() or lowered == word for word in words.get(name, (name.lower(),)))


def check_layer_types(found: set[str], precision: str) -> None:
    """Raise EngineError if an engine does not compute in what it was built for; nothing is known of an empty set."""
    wanted = {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[precision]
    if found and wanted not in found:
        raise EngineError(
            f"TensorRT built an engine without {wanted} layers (only {', '.join(sorted(found))}), so it is no "
            f"{precision} engine and was not written; please report this with the output of fiqa-trt doctor"
        )


def installed(package: str) -> str | None:
    """Version of an installed distribution, without importing it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
