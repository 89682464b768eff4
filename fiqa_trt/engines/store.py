"""The engines that were built on this machine: what is there, what can be used, and which is best."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from fiqa_trt.engines.base import PRECISIONS
from fiqa_trt.engines.manifest import MANIFEST, Manifest, this_processor
from fiqa_trt.errors import EngineError


@dataclasses.dataclass(frozen=True)
class Found:
    """A directory that says it is an engine.

    Attributes:
        folder: where.
        manifest: None if it cannot be read.
        problem: why it cannot be used here, in a line; None if it can.
    """

    folder: Path
    manifest: Manifest | None
    problem: str | None


def store() -> Path:
    """Where `build` puts engines and `score --engine auto` looks for them: $FIQA_TRT_ENGINES, else `engines`."""
    return Path(os.environ.get("FIQA_TRT_ENGINES") or "engines")


def list_engines(folder: Path, model: str, device: str | None = "cuda") -> list[Found]:
    """Every engine directory in `folder`, by name.

    Args:
        folder: the store; none there is no error.
        model: digest of the checkpoint that an engine must be of to be usable.
        device: the CUDA device that engines for GPUs are to be usable on; None leaves them out.
    """
    found = []
    for path in sorted(folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []:
        if path.parent.name.startswith("."):
            continue  # a draft
        try:
            manifest = Manifest.read(path.parent)
        except EngineError as exc:
            found.append(Found(path.parent, None, str(exc)))
            continue
        if manifest.target.kind == "cpu" or device is not None:
            found.append(Found(path.parent, manifest, _difference(manifest, model, device or "")))
    return found


def _difference(manifest: Manifest, model: str, device: str) -> str | None:
    """What keeps an engine from being used here, or None."""
    if manifest.model != model:
        return f"of another checkpoint ({manifest.model[:12]}, not {model[:12]})"
    if manifest.backend == "onnx":
        return "an export, not built for a machine (name it with --engine DIR)"
    if manifest.target.kind == "cpu":
        here = this_processor()
        # It would run, but neither its speed nor its agreement were measured here.
        return None if manifest.target.name == here else f"built on {manifest.target.name}, this is {here}"
    from fiqa_trt.engines.tensorrt import difference_from_here

    return difference_from_here(manifest, device)


def best_engine(found: Sequence[Found], kind: str, precision: str = "auto") -> Found | None:
    """The usable engine with the highest recorded throughput; of equals the more precise one.

    INT8 is only chosen by name, or where it outruns an FP16 engine that stands beside it (FP32, on a processor without
    16-bit arithmetic).

    Args:
        found: of `list_engines`.
        kind: `cpu` or `cuda`.
        precision: fp32, fp16 or int8; auto for any.
    """
    usable = [
        (entry, entry.manifest)
        for entry in found
        if entry.problem is None and entry.manifest is not None and entry.manifest.target.kind == kind
    ]
    if precision != "auto":
        usable = [(entry, manifest) for entry, manifest in usable if manifest.precision == precision]
    else:
        precisions = {manifest.precision for _, manifest in usable}
        features = {feature for _, manifest in usable for feature in manifest.target.features}
        rival = "fp16" if kind == "cuda" or features & {"BF16", "FP16"} else "fp32"
        if rival not in precisions:
            usable = [(entry, manifest) for entry, manifest in usable if manifest.precision != "int8"]
    ranked = max(usable, key=lambda e: (e[1].throughput, -PRECISIONS.index(e[1].precision)), default=None)
    return ranked[0] if ranked else None
