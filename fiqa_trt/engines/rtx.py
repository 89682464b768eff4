"""TensorRT for RTX: engines that are built on any machine, and finished by the GPU that runs them.

What that GPU compiles is kept beside the engine, so that the next start is quick. Which GPUs it knows, and whether one
can run an engine, the library itself is asked.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiqa_trt.engines import cuda, tensorrt
from fiqa_trt.engines.base import Wanted
from fiqa_trt.engines.cache import Slot, cache_folder
from fiqa_trt.engines.cuda import CudaEngine, Launch, OwnGraph, check_cuda
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.tensorrt import Library
from fiqa_trt.errors import EngineError, one_line
from fiqa_trt.progress import Say, silent

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LIBRARY = Library("TensorRT for RTX", "tensorrt_rtx")
INSTALL = "pip install 'fiqa-trt[rtx]'"


def missing() -> str | None:
    """See `registry.Opener`."""
    return INSTALL if LIBRARY.version() is None else None


def unfit(device: str) -> str | None:
    """See `registry.Opener`. The GPU may run engines all the same: an H100 did, and scored rightly."""
    name, features = cuda.gpu_target(device)
    number = int(features[0].removeprefix("sm_"))
    return None if knows(number) else f"{LIBRARY} does not support {name} (compute capability {_dotted(number)})"


def _dotted(number: int) -> str:
    return f"{number // 10}.{number % 10}"


def number_of_capability(capability: str) -> int:
    """`8.6` as NVIDIA numbers it: 86. Raises EngineError unless it is one."""
    major, _, minor = capability.partition(".")
    if not (major.isdecimal() and minor.isdecimal() and capability.isascii() and len(minor) == 1):
        raise EngineError(f"--compute-capability {capability}: it is given as in 8.6")
    return int(major) * 10 + int(minor)


@functools.cache
def knows(number: int) -> bool:
    """Whether the library builds for GPUs of a compute capability, given as 86. It asks the library, not a table."""
    library = LIBRARY.load()
    config = library.Builder(LIBRARY.log()).create_builder_config()
    config.num_compute_capabilities = 1
    return bool(config.set_compute_capability(library.ComputeCapability(number), 0))


def check_capability(capability: str) -> None:
    """Raise EngineError, with those that are, if the library does not build for a compute capability."""
    if knows(number_of_capability(capability)):
        return
    raise EngineError(
        f"{LIBRARY} does not build for compute capability {capability}; it does for {', '.join(capabilities())}, and "
        "by default for most of them at once"
    )


def capabilities() -> list[str]:
    """The compute capabilities that the library has names for."""
    numbers = [int(value) for value in LIBRARY.load().ComputeCapability.__members__.values()]
    return [_dotted(number) for number in numbers if number >= 10]


def difference_from_here(manifest: Manifest, device: str = "cuda") -> str | None:
    """What keeps an engine from being used on this machine, in a line; None if nothing does.

    On a GPU that the library does not name as one of its own it may run all the same, if it is asked for by name.
    """
    problem = _difference(manifest, device)
    return problem or ((unknown := unfit(device)) and f"{unknown}; --engine takes it all the same")


def _difference(manifest: Manifest, device: str) -> str | None:
    """The same, but for what the library says of the GPU."""
    if problem := cuda.lacking(manifest.target.name or " ".join(manifest.target.features)):
        return problem
    here, built = LIBRARY.version(), manifest.versions.get("tensorrt_rtx")
    if here is None:
        return f"needs {LIBRARY.title}: {INSTALL}"
    if here != built:
        return f"built with {LIBRARY.title} {built}, here is {here}; build it again with that"
    name, features = cuda.gpu_target(device)
    if manifest.target.features and manifest.target.features != features:
        return (
            f"built for {' '.join(manifest.target.features)}, this is {name} {' '.join(features)}; build it again here"
        )
    return None


def open_directory(folder: Path, wanted: Wanted) -> CudaEngine:
    """See `registry.Opener`."""
    return open_rtx(folder, wanted.device, wanted.batch, wanted.say)


def open_rtx(folder: Path, device: str = "cuda", batch: int | None = None, say: Say = silent) -> CudaEngine:
    """The engine of a directory whose payload is a plan of TensorRT for RTX; see `tensorrt.open_tensorrt`.

    Raises:
        EngineError: as that; the GPU cannot run it.
    """
    manifest = Manifest.read(folder)
    check_cuda(device)
    if problem := _difference(manifest, device):
        raise EngineError(f"{folder}: {problem}")
    batch = tensorrt.fitting(manifest, folder, batch)
    name, features = cuda.gpu_target(device)
    place = folder if os.access(folder, os.W_OK) else cache_folder()
    facts = {"payload": manifest.payload_sha256, "gpu": name, "features": features, "library": LIBRARY.version()}
    with cuda.on(device):
        kernels = Kernels(
            _loaded(manifest.read_payload(folder), str(folder), name, say),
            None if place is None else Slot(place, facts),  # of the driver, the library takes care
        )
    info = manifest.info(f"{manifest.backend} {manifest.versions['tensorrt_rtx']}", name, batch)
    engine = CudaEngine(kernels.bind, device, info, manifest.spec.preprocess.size, say)
    engine.kept = kernels.keep()
    return engine


def _loaded(plan: bytes, what: str, gpu: str, say: Say) -> Any:
    """A loaded engine on the current device. Raises EngineError, with the library's own words."""
    library, log = LIBRARY.load(), LIBRARY.log()
    runtime = library.Runtime(log)
    validity, reasons = runtime.get_engine_validity(plan)
    if validity == library.EngineValidity.INVALID:
        # Of this alone it is no judge: engines that it said it of ran, and scored rightly.
        if int(reasons) != int(library.EngineInvalidityDiagnostics.UNSUPPORTED_CC):
            raise EngineError(
                f"{what}: {LIBRARY} cannot run this engine on {gpu} ({_words(reasons) or log}); {_WAY_OUT}"
            )
        say(f"{LIBRARY} does not support {gpu} for this engine ({_words(reasons)}); it is tried all the same")
    if validity == library.EngineValidity.SUBOPTIMAL:
        say(f"{what} is not at its best on {gpu} ({_words(reasons)}): build one here with --backend tensorrt-rtx")
    try:
        engine = runtime.deserialize_cuda_engine(plan)
    except Exception as exc:
        raise EngineError(f"{what}: {LIBRARY} cannot be used here: {one_line(exc)}") from exc
    if engine is None:  # it does not raise
        raise EngineError(f"{what}: {LIBRARY} cannot load this engine on {gpu} ({log}); {_WAY_OUT}")
    return engine


_WAY_OUT = "build it again here (fiqa-trt build --backend tensorrt-rtx), or use --engine torch"


def _words(reasons: int) -> str:
    """What `get_engine_validity` gives as reasons: a sum of flags."""
    flags = LIBRARY.load().EngineInvalidityDiagnostics.__members__
    return ", ".join(name for name, flag in flags.items() if int(reasons) & int(flag))


class Kernels:
    """A loaded engine, and what the GPU compiles for it: its contexts share that, and the next start begins with it."""

    def __init__(self, engine: Any, slot: Slot | None) -> None:
        """Take what an earlier start has kept.

        Args:
            engine: of the library.
            slot: where it is kept; None for nowhere.
        """
        library = LIBRARY.load()
        self._engine, self._slot = engine, slot
        self._config, self._capturing = engine.create_runtime_config(), engine.create_runtime_config()
        self._cache = self._config.create_runtime_cache()
        try:
            blob = slot.read() if slot is not None else None
        except ValueError:  # damaged
            blob = None
        self._had = blob if blob is not None and self._cache.deserialize(blob) else None
        # At once, and not bit by bit between batches: a graph holds the kernels that it was recorded with.
        strategy = library.DynamicShapesKernelSpecializationStrategy.EAGER
        for config in (self._config, self._capturing):
            config.set_runtime_cache(self._cache)
            config.dynamic_shapes_kernel_specialization_strategy = strategy
        self._capturing.cuda_graph_strategy = library.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE

    def bind(self, images: Tensor, outputs: Sequence[Tensor], stream: torch.cuda.Stream) -> Launch:
        """See `cuda.Bind`. Where the library does not let us record a graph, it records its own."""
        context = self._engine.create_execution_context(self._config)
        launch = tensorrt.bind_context(self._engine, context, images, outputs, stream, LIBRARY)
        if context.is_stream_capturable(stream.cuda_stream):
            return functools.partial(self._launch, launch)
        context = self._engine.create_execution_context(self._capturing)
        launch = tensorrt.bind_context(self._engine, context, images, outputs, stream, LIBRARY)
        return OwnGraph(functools.partial(self._launch, launch))

    def _launch(self, launch: Launch) -> None:
        """Launch. By this, what the contexts share lives as long as they do."""
        launch()

    def keep(self) -> Slot | None:
        """Keep what was compiled, if that is new; returns where it was loaded from, or None."""
        if self._slot is None:
            return None
        blob = bytes(self._cache.serialize())
        if blob != self._had:
            self._slot.write(blob)
        return self._slot if self._had is not None else None
