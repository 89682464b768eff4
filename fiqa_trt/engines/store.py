"""The engines that were built on this machine: what is there, what can be used, and which is best."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from fiqa_trt.engines.base import PRECISIONS, EngineInfo
from fiqa_trt.engines.manifest import MANIFEST, Manifest
from fiqa_trt.engines.registry import BACKENDS
from fiqa_trt.errors import EngineError
from fiqa_trt.shell import command_line

NOISE = 1.05
"""Two engines whose speeds differ by less than this factor count as equally quick."""


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
    backend = BACKENDS[manifest.backend]
    if not backend.built:
        return "an export, not built for a machine (name it with --engine DIR)"
    return backend.load().difference_from_here(manifest, device)


def best_engine(found: Sequence[Found], kind: str, precision: str = "auto") -> Found | None:
    """The quickest usable engine; of those that are as quick, but for noise, the most precise one.

    What is compared is the gain over what runs without any engine, as engines are timed on different days; where one
    does not record it, the throughput. Only by name is one chosen that is slower than none, or an INT8 one without an
    FP16 one beside it that it outruns (FP32, on a processor without 16-bit arithmetic).

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
        usable = [
            (entry, manifest)
            for entry, manifest in usable
            if not is_slower(manifest) and (manifest.precision != "int8" or rival in precisions)
        ]
    if usable and kind == "cuda" and not any(manifest.throughput for _, manifest in usable):
        # Nobody knows which is quickest; on a GPU FP16 is.
        usable = [pair for pair in usable if pair[1].precision == "fp16"] or usable
    known = all(manifest.gain for _, manifest in usable)
    speeds = [(manifest.gain if known else manifest.throughput) for _, manifest in usable]
    near = [
        (PRECISIONS.index(manifest.precision), -speed, entry)
        for speed, (entry, manifest) in zip(speeds, usable, strict=True)
        if speed * NOISE >= max(speeds)
    ]
    return min(near, key=lambda each: each[:2])[2] if near else None


def how_to_speed_up(info: EngineInfo, kind: str, wanted: Sequence[str]) -> str:
    """What would make an engine quicker here, in words: one that is there, one to be built, or another machine.

    Args:
        info: of the engine.
        kind: `cpu` or `cuda`.
        wanted: precisions that are worth building here.
    """
    found = [e for e in list_engines(store(), info.model, "cuda" if kind == "cuda" else None) if e.problem is None]
    built = [entry.manifest for entry in found if entry.manifest is not None and entry.manifest.target.kind == kind]
    gain = next((manifest.gain for manifest in built if manifest.payload_sha256 == info.payload), 1.0)
    best = best_engine(found, kind)
    if best is not None and best.manifest is not None and best.manifest.gain > NOISE * gain:
        return f"take the engine {best.folder} ({best.manifest.gain:.2f} times the speed without it)"
    device = ["--device", "cpu"] if kind == "cpu" else []
    missing = [name for name in wanted if name not in {manifest.precision for manifest in built}]
    if missing:
        commands = [command_line("fiqa-trt", "build", "--precision", name, *device) for name in missing]
        return f"build what may be quicker ({'; '.join(commands)})"
    more = "GPUs (--devices all)" if kind == "cuda" else "cores, or a GPU"
    return f"use more {more}: the engines that can be built here are there"


def is_slower(manifest: Manifest) -> bool:
    """Whether an engine was slower, when it was built, than what runs without it."""
    return 0 < manifest.gain * NOISE < 1
