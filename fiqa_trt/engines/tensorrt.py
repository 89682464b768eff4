"""TensorRT's runtime on a serialized engine (plan), with torch for memory, streams and graphs.

NVIDIA has three libraries with this API under different names: TensorRT itself, its lean runtime, which only loads, and
TensorRT for RTX (`fiqa_trt.engines.rtx`).
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiqa_trt.engines import cuda
from fiqa_trt.engines.base import Wanted
from fiqa_trt.engines.cuda import CudaEngine, Launch, check_cuda
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.errors import EngineError, one_line
from fiqa_trt.progress import Say, silent
from fiqa_trt.shell import command_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

INSTALL = "pip install 'fiqa-trt[gpu]' where NVIDIA's package index can be reached"


@dataclasses.dataclass(frozen=True)
class Library:
    """One of the libraries.

    Attributes:
        title: as its makers write it.
        module: that it is in.
    """

    title: str
    module: str

    def __str__(self) -> str:
        """With its version."""
        return f"{self.title} {self.version() or ''}".strip()

    def version(self) -> str | None:
        """Its version if it can be loaded, else None."""
        if importlib.util.find_spec(self.module) is None:
            return None
        try:
            return str(importlib.import_module(self.module).__version__)
        except Exception:  # a missing library shows in many ways
            return None

    def load(self) -> Any:
        """Its module."""
        return importlib.import_module(self.module)

    def log(self) -> Any:
        """A logger of its that keeps what goes wrong; as text, all of that in a line."""
        library = self.load()

        class Log(library.ILogger):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.lines = list[str]()

            def log(self, severity: Any, message: str) -> None:
                if severity <= library.ILogger.ERROR:
                    self.lines.append(message)

            def __str__(self) -> str:
                return one_line(RuntimeError(" ".join(self.lines) or "it says nothing"))

        return Log()


FULL, LEAN = Library("TensorRT", "tensorrt"), Library("TensorRT's lean runtime", "tensorrt_lean")


def tensorrt_version() -> str | None:
    """Version of TensorRT if its libraries can be loaded, else None."""
    return FULL.version()


def difference_from_here(manifest: Manifest, device: str = "cuda") -> str | None:
    """What keeps a plan from being used on this machine, in a line; None if nothing does."""
    if problem := cuda.difference_from_here(manifest, device):
        return problem
    if library_for(manifest) is not None:
        return None
    built, here = manifest.versions.get("tensorrt"), tensorrt_version()
    problem = f"built with TensorRT {built}, here is {here or 'none'}"
    if manifest.version_compatible:
        way_out = command_line("pip", "install", f"tensorrt-lean-cu13=={built}")
        return f"{problem}, and {LEAN.title} {LEAN.version() or 'is not there'}: {way_out}"
    lean = here is None and LEAN.version() is not None
    return f"{problem}" + f" but {LEAN.title}, which needs --version-compatible" * lean + "; build it again here"


def library_for(manifest: Manifest) -> Library | None:
    """The library that can load a plan here: TensorRT of its version, or for a version-compatible one the lean runtime
    of that version or a later one; None if there is none.
    """
    built = manifest.versions.get("tensorrt")
    if tensorrt_version() == built:
        return FULL
    lean = LEAN.version() if manifest.version_compatible else None
    return LEAN if lean is not None and built is not None and _is_for(_numbers(lean), _numbers(built)) else None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _is_for(here: tuple[int, ...], built: tuple[int, ...]) -> bool:
    """Within a major version, compatible plans run with what is as new as they are, or newer."""
    return here[:1] == built[:1] and here >= built


def missing() -> str | None:
    """See `registry.Opener`."""
    return INSTALL if tensorrt_version() is None else None


def unfit(device: str) -> None:
    """See `registry.Opener`: it runs on all of them."""


def open_directory(folder: Path, wanted: Wanted) -> CudaEngine:
    """See `registry.Opener`."""
    return open_tensorrt(folder, wanted.device, wanted.batch, wanted.say)


def open_tensorrt(folder: Path, device: str = "cuda", batch: int | None = None, say: Say = silent) -> CudaEngine:
    """The engine of a directory whose payload is a plan.

    Args:
        folder: an engine directory.
        device: `cuda` or `cuda:i`.
        batch: images per call; the quickest by default. Fewer than the engine takes are filled up.
        say: hears of decisions that one should know of.

    Raises:
        EngineError: it is not one, it belongs to another GPU or TensorRT, or a batch that it was not built for.
    """
    manifest = Manifest.read(folder)
    check_cuda(device)
    if problem := difference_from_here(manifest, device):
        raise EngineError(f"{folder}: {problem}")
    batch = fitting(manifest, folder, batch)
    library = library_for(manifest) or FULL
    with cuda.on(device):
        engine = load_plan(manifest.read_payload(folder), str(folder), library)
    backend = f"tensorrt {library.version()}" + " (lean)" * (library is LEAN)
    info = manifest.info(backend, manifest.target.name, batch)

    def bind(images: Tensor, outputs: Sequence[Tensor], stream: torch.cuda.Stream) -> Launch:
        return bind_plan(engine, images, outputs, stream, library)

    return CudaEngine(bind, device, info, manifest.spec.preprocess.size, say)


def fitting(manifest: Manifest, folder: Path, batch: int | None) -> int:
    """The batch to open an engine with. Raises EngineError: it is too large."""
    low, best, high = manifest.batch
    batch = max(batch or best, low)
    if batch > high:
        raise EngineError(f"{folder} takes batches of up to {high} images, not {batch}; build with --max-batch {batch}")
    return batch


def load_plan(plan: bytes, what: str, library: Library = FULL) -> Any:
    """A `tensorrt.ICudaEngine` from its serialized form, on the current device. Raises EngineError, naming `what`."""
    try:
        log = library.log()
        engine = library.load().Runtime(log).deserialize_cuda_engine(plan)
    except Exception as exc:  # without a usable driver it is a plain Exception or a TypeError
        raise EngineError(f"{library} cannot be used here: {one_line(exc)}") from exc
    if engine is None:  # it does not raise
        if "loadRunner" in str(log):  # the lean runtime has a stub in the place of what the plan asks for
            raise EngineError(f"{what} was not built for {library}: build it with --version-compatible")
        raise EngineError(f"{what}: {library} cannot load this engine ({log}); build it again here")
    return engine


def bind_plan(
    engine: Any, images: Tensor, outputs: Sequence[Tensor], stream: torch.cuda.Stream, library: Library = FULL
) -> Launch:
    """See `fiqa_trt.engines.cuda.Bind`. The engine must have one input and these outputs, whatever their names."""
    return bind_context(engine, engine.create_execution_context(), images, outputs, stream, library)


def bind_context(
    engine: Any, context: Any, images: Tensor, outputs: Sequence[Tensor], stream: torch.cuda.Stream, library: Library
) -> Launch:
    """The same of a context that was made already, or could not be: then it is None."""
    if context is None:
        raise EngineError("the GPU has no memory for this engine; free some, or build with a smaller --max-batch")
    of_input = library.load().TensorIOMode.INPUT
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == of_input]
    given = [name for name in names if name not in inputs]  # in the order in which the network gives them
    if len(inputs) != 1 or len(given) != len(outputs):
        raise EngineError(f"this is not an engine of ours: its inputs and outputs are {', '.join(names)}")
    for name, output in zip(given, outputs, strict=True):
        if (columns := tuple(engine.get_tensor_shape(name))[-1]) != output.shape[-1]:
            raise EngineError(f"this is not an engine of ours: {name} has {columns} columns, not {output.shape[-1]}")
    if not context.set_input_shape(inputs[0], tuple(images.shape)):
        raise EngineError(f"the engine does not take {tuple(images.shape)}; build it again with another --max-batch")
    context.set_tensor_address(inputs[0], images.data_ptr())
    for name, output in zip(given, outputs, strict=True):
        context.set_tensor_address(name, output.data_ptr())

    def launch() -> None:
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"{library.title} could not launch the engine")

    return launch


def layer_types(engine: Any) -> set[str]:
    """What the layers of a loaded plan compute in: `fp32`, `fp16`, `int8`; see `types_of_layers`.

    Needs a plan that was built with detailed profiling verbosity.
    """
    import tensorrt

    text = engine.create_engine_inspector().get_engine_information(tensorrt.LayerInformationFormat.JSON)
    try:
        return types_of_layers(json.loads(text))
    except ValueError:  # not JSON: it tells of none, for which a plan that took minutes is not thrown away
        return set()


_TYPES = {
    "fp32": re.compile(r"\b(float|fp32)\b|f32f32|sgemm|_s1688", re.IGNORECASE),
    "fp16": re.compile(r"\b(half|fp16)\b|f16f16|h16816|h884|hmma", re.IGNORECASE),
    "int8": re.compile(r"\bint8\b|i8i8|i16832|i8816|imma", re.IGNORECASE),
}


def types_of_layers(information: dict[str, Any]) -> set[str]:
    """The types that an engine inspector's JSON tells of; empty if it tells of none.

    With a dynamic batch it writes `N/A due to dynamic shapes` for every tensor, so the types of the weights and the
    names of the kernels count as well.
    """
    found = set[str]()
    for layer in information.get("Layers", []):
        if not isinstance(layer, dict):  # without detailed verbosity it is just a name
            continue
        texts = [str(layer.get("TacticName", "")), str((layer.get("Weights") or {}).get("Type", ""))]
        for output in layer.get("Outputs") or []:
            texts += [str(output.get("Datatype", "")), str(output.get("Format/Datatype", ""))]
        found |= {name for name, pattern in _TYPES.items() if any(map(pattern.search, texts))}
    return found


def check_layer_types(found: set[str], precision: str) -> None:
    """Raise EngineError if an engine does not compute in what it was built for; nothing is known of an empty set."""
    if found and precision not in found:
        raise EngineError(
            f"TensorRT built an engine without {precision} layers (only {', '.join(sorted(found))}), so it was not "
            "written; please report this with the output of fiqa-trt doctor"
        )
