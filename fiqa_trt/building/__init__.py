"""`fiqa-trt build`: from a checkpoint to an engine that was checked and timed on this machine."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from fiqa_trt.building.registry import BUILDERS
from fiqa_trt.building.request import Request
from fiqa_trt.engines.manifest import Manifest, new_engine
from fiqa_trt.engines.opening import choose_device
from fiqa_trt.engines.registry import BACKENDS, obstacle
from fiqa_trt.engines.store import store
from fiqa_trt.errors import EngineError
from fiqa_trt.progress import Say, silent

__all__ = ["Built", "Request", "build"]


@dataclasses.dataclass(frozen=True)
class Built:
    """What was built, and where."""

    folder: Path
    manifest: Manifest


def build(request: Request, say: Say = silent) -> Built:
    """Build an engine, verify it against FP32, time it, and only then put it in place.

    Raises:
        EngineError: something is missing, does not fit or cannot be had here, or the engine is out of tolerance.
        InputError: the calibration crops cannot be used.
        RunError: the disk is full or fails.
    """
    if request.calibration is not None and request.precision != "int8":
        raise EngineError("--calibration is for --precision int8; leave it out")
    backend, device = _place(request, say)
    if request.version_compatible and backend != "tensorrt":
        raise EngineError(f"--version-compatible is for --backend tensorrt, not for {backend}")
    output = request.output or store() / "-".join(filter(None, (backend, request.precision, request.capability)))
    builder = BUILDERS[backend].load()
    began = time.monotonic()
    with new_engine(output) as draft, tempfile.TemporaryDirectory() as scratch:
        manifest, payload = builder(request, device, draft, Path(scratch), say)
        manifest = dataclasses.replace(manifest, seconds=round(time.monotonic() - began, 1))
        draft.write(manifest, payload)
    return Built(output, manifest)


def _place(request: Request, say: Say) -> tuple[str, str]:
    """The backend, and the device to build on. Raises EngineError."""
    if request.target == "cuda":
        able = [name for name, builder in BUILDERS.items() if builder.elsewhere]
        backend = able[0] if request.backend == "auto" else request.backend
        if backend not in able:
            raise EngineError(f"--backend {backend} builds for this machine alone; --target cuda is for {able[0]}")
        if request.device not in ("auto", "cpu"):
            raise EngineError(f"--device {request.device} is of this machine; leave it out with --target cuda")
        return backend, "cpu"
    if request.capability is not None:
        raise EngineError("--compute-capability is for --target cuda; an engine for this machine takes its GPU's")
    kind_of = {name: BACKENDS[name].kind for name in BUILDERS}
    wanted = "cpu" if kind_of.get(request.backend) == "cpu" and request.device == "auto" else request.device
    device = choose_device(wanted, say)
    kind = device.partition(":")[0]
    backend = _choose(device, say) if request.backend == "auto" else request.backend
    if kind_of.get(backend) != kind:
        way_out = "; --target cuda builds for a GPU elsewhere" * (
            kind == "cpu" and backend in BUILDERS and BUILDERS[backend].elsewhere
        )
        raise EngineError(f"--backend {backend} does not run on --device {device}{way_out}")
    return backend, device


def _choose(device: str, say: Say) -> str:
    """The first backend whose engines for a device can be built here; `say` hears why it is not one before that."""
    able = [name for name in BUILDERS if BACKENDS[name].kind == device.partition(":")[0]]
    reasons = list[str]()
    for name in able:
        reason = obstacle(name, device) if name != able[-1] else None
        if reason is None:
            break
        reasons.append(reason)
    if reasons:
        say(f"{', '.join(reasons)}, so this builds a {BACKENDS[name].title} engine")
    return name
