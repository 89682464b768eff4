"""`fiqa-trt build`: from a checkpoint to an engine that was checked and timed on this machine."""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
import time
from pathlib import Path

from fiqa_trt.building.registry import BUILDERS
from fiqa_trt.building.request import Request
from fiqa_trt.engines.manifest import Manifest, new_engine
from fiqa_trt.engines.opening import choose_device
from fiqa_trt.engines.registry import BACKENDS
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
    kind_of = {name: BACKENDS[name].kind for name in BUILDERS}
    wanted = "cpu" if kind_of.get(request.backend) == "cpu" and request.device == "auto" else request.device
    device = choose_device(wanted, say)
    kind = device.partition(":")[0]
    backend = _choose(kind, say) if request.backend == "auto" else request.backend
    if kind_of.get(backend) != kind:
        raise EngineError(f"--backend {backend} does not run on --device {device}")
    output = request.output or store() / f"{backend}-{request.precision}"
    builder = BUILDERS[backend].load()
    began = time.monotonic()
    with new_engine(output) as draft, tempfile.TemporaryDirectory() as scratch:
        manifest, payload = builder(request, device, draft, Path(scratch), say)
        manifest = dataclasses.replace(manifest, seconds=round(time.monotonic() - began, 1))
        draft.write(manifest, payload)
    return Built(output, manifest)


def _choose(kind: str, say: Say) -> str:
    """The first backend whose engines for `cpu` or `cuda` can be built here."""
    able = [name for name in BUILDERS if BACKENDS[name].kind == kind]
    for name, other in itertools.pairwise(able):
        backend = BACKENDS[name]
        install = backend.load().missing()
        if install is None:
            return name
        title = backend.title
        say(f"{title} is not here, so this builds a {BACKENDS[other].title} engine; for {title}: {install}")
    return able[-1]
