"""Engines of TensorRT for RTX: through Torch-TensorRT where that is installed, else from the ONNX network."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from fiqa_trt.building import rtx_torch
from fiqa_trt.building.cuda import BATCHES, driver_version
from fiqa_trt.building.export import exported_network
from fiqa_trt.building.measuring import batch_sizes, measure_engine, with_figures
from fiqa_trt.building.request import Request
from fiqa_trt.building.rtx_plans import SMALLEST, Plan, check_plan, plan_of_onnx
from fiqa_trt.engines.cuda import gpu_target
from fiqa_trt.engines.manifest import Draft, Manifest, Target
from fiqa_trt.engines.rtx import INSTALL, LIBRARY, check_capability, knows, number_of_capability, open_rtx, unfit
from fiqa_trt.errors import EngineError
from fiqa_trt.progress import Say


def build_rtx(request: Request, device: str, draft: Draft, scratch: Path, say: Say) -> tuple[Manifest, bytes]:
    """One plan for batches up to the largest. On the device `cpu` it is for a GPU elsewhere, and not measured."""
    if request.precision == "int8":
        there = " on the machine with that GPU" if request.target == "cuda" else ""
        raise EngineError(
            f"{LIBRARY.title} promises INT8 for no convolution, and makes a larger engine of our INT8 network than of "
            f"the FP32 one; use --precision fp16, or --backend tensorrt{there}"
        )
    if LIBRARY.version() is None:
        raise EngineError(f"--backend tensorrt-rtx needs {LIBRARY.title}: {INSTALL}")
    elsewhere = device == "cpu"
    target = _target_of(request.capability) if elsewhere else Target("cuda", *gpu_target(device))
    if not elsewhere and (problem := unfit(device)):
        say(f"{problem}; it is tried all the same")
    source = exported_network(request.checkpoint, scratch)
    network = Manifest.read(source)
    largest = request.max_batch or BATCHES[-1]
    batches = [size for size in batch_sizes(BATCHES, largest) if size >= SMALLEST]
    plan, versions = _plan(request, source, network, target, (batches[-1], largest), scratch, say)
    check_plan(plan, request.precision, network.spec)
    manifest = dataclasses.replace(
        network,
        backend="tensorrt-rtx",
        precision=request.precision,
        executed=request.precision,
        target=target,
        batch=(SMALLEST, batches[-1], largest),
        payload="ensemble.plan",
        payload_sha256=hashlib.sha256(plan.payload).hexdigest(),
        agreement={},
        versions=versions,
        verified=False,
    )
    if elsewhere:
        say("how near it comes to FP32, and how quick it is, cannot be measured here: the first start on a GPU will")
        return manifest, plan.payload
    draft.write(manifest, plan.payload)
    found = measure_engine(
        lambda batch: open_rtx(draft.folder, device, batch),
        batches, network.known, request.precision, f"{LIBRARY.title} {request.precision}",
        say,
    )  # fmt: skip
    # Other GPUs that can run it compile it for themselves, and compare it with FP32 again.
    figures = with_figures(manifest, found)
    known = dataclasses.replace(figures, reference=network.reference, severities=network.severities)
    return dataclasses.replace(known, verified=True, verified_on=target.name), plan.payload


def _target_of(capability: str | None) -> Target:
    """GPUs elsewhere: of one compute capability, or all that an engine is for by default. Raises EngineError."""
    if capability is None:
        return Target("cuda")
    check_capability(capability)
    return Target("cuda", "", (f"sm_{number_of_capability(capability)}",))


def _plan(
    request: Request,
    source: Path,
    network: Manifest,
    target: Target,
    batches: tuple[int, int],
    scratch: Path,
    say: Say,
) -> tuple[Plan, dict[str, str]]:
    """The engine, and the versions of what made it."""
    number = int(target.features[0].removeprefix("sm_")) if target.features else 0
    # For a GPU that it does not know, as for all at once: an H100 ran that.
    capability = f"{number // 10}.{number % 10}" if number and knows(number) else None
    versions = {"tensorrt_rtx": str(LIBRARY.version()), "driver": driver_version()}
    if through := rtx_torch.installed():
        say(f"compiling with {LIBRARY} through Torch-TensorRT {through}")
        plan = rtx_torch.plan_of_checkpoint(request.checkpoint, request.precision, *batches, capability, scratch)
        return plan, {**versions, "torch_tensorrt_rtx": through, "torch": str(rtx_torch.version_of("torch"))}
    say(f"compiling with {LIBRARY} from the ONNX network ({rtx_torch.WHY_NOT})")
    model = network.read_payload(source)
    plan = plan_of_onnx(model, request.precision, *batches, capability)
    return plan, {**versions, "opset": network.versions.get("opset", "")}
