"""`fiqa-trt build`: from a checkpoint to an engine that was checked and timed on this machine."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path

from fiqa_trt.building.cpu import build_openvino
from fiqa_trt.building.cuda import build_tensorrt, build_torch
from fiqa_trt.building.request import Request
from fiqa_trt.engines.manifest import Manifest, new_engine
from fiqa_trt.engines.opening import choose_device
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
    wanted = "cpu" if request.backend == "openvino" and request.device == "auto" else request.device
    device = choose_device(wanted, say)
    backend = request.backend
    if backend == "auto":
        backend = _backend(device, say)
    if (device == "cpu") != (backend == "openvino"):
        raise EngineError(f"--backend {backend} does not run on --device {device}")
    output = request.output or store() / f"{backend}-{request.precision}"
    builder = {"openvino": build_openvino, "tensorrt": build_tensorrt, "torch": build_torch}[backend]
    began = time.monotonic()
    with new_engine(output) as draft, tempfile.TemporaryDirectory() as scratch:
        manifest, payload = builder(request, device, draft, Path(scratch), say)
        manifest = dataclasses.replace(manifest, seconds=round(time.monotonic() - began, 1))
        draft.write(manifest, payload)
    return Built(output, manifest)


def _backend(device: str, say: Say) -> str:
    if device == "cpu":
        return "openvino"
    from fiqa_trt.engines.tensorrt import INSTALL, tensorrt_version

    if tensorrt_version() is None:
        say(f"TensorRT is not here, so this builds a PyTorch engine; for TensorRT: {INSTALL}")
        return "torch"
    return "tensorrt"
