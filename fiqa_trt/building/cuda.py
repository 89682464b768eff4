"""CUDA engines: TensorRT through Torch-TensorRT, or PyTorch."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from fiqa_trt.building.calibration import int8_ranges
from fiqa_trt.building.measuring import Measured, Say, batch_sizes, infer, measure_engine, quickest, with_figures
from fiqa_trt.building.request import Request
from fiqa_trt.engines import RELEASED
from fiqa_trt.engines.base import Scores
from fiqa_trt.engines.manifest import Draft, Manifest, Target
from fiqa_trt.errors import EngineError
from fiqa_trt.verification import verification_batch

BATCHES = (8, 32, 64, 128, 256, 512)


def build_tensorrt(request: Request, device: str, draft: Draft, scratch: Path, say: Say) -> tuple[Manifest, bytes]:
    """One plan for batches up to the largest; TensorRT's measurements stay beside the engines for the next build."""
    import torch

    from fiqa_trt.engines import compile as compiler
    from fiqa_trt.engines import tensorrt
    from fiqa_trt.engines.torch import load_checkpoint

    where = torch.device(device)
    largest = request.max_batch or BATCHES[-1]
    batches = [size for size in batch_sizes(BATCHES, largest) if size >= compiler.SMALLEST] or [compiler.SMALLEST]
    torch_tensorrt = compiler.import_torch_tensorrt()
    reference = _reference(request.checkpoint, device)
    network = load_checkpoint(request.checkpoint).to(where)
    ranges = int8_ranges(request.checkpoint, request.calibration) if request.precision == "int8" else None
    compiler.prepare(network, request.precision, ranges)
    program = compiler.export_program(network, max(largest, compiler.SMALLEST), device)
    say("compiling with TensorRT, which tries many kernels and takes minutes")
    timing = draft.folder.parent / "timing.cache"
    payload = compiler.compile_plan(program, batches[-1], max(largest, compiler.SMALLEST), where, timing)
    types = tensorrt.layer_types(tensorrt.load_plan(payload, "the new engine"))
    tensorrt.check_layer_types(types, request.precision)
    versions = {"torch": torch.__version__, "torch_tensorrt": torch_tensorrt.__version__}
    versions["tensorrt"] = str(tensorrt.tensorrt_version())
    batch = (compiler.SMALLEST, batches[-1], largest)
    manifest = _cuda_manifest(request, where, payload, "tensorrt", "ensemble.plan", request.precision, batch, versions)
    draft.write(manifest, payload)
    found = measure_engine(
        lambda batch: tensorrt.open_tensorrt(draft.folder, device, batch),
        batches, reference, request.precision, f"the TensorRT {request.precision} engine", say,
    )  # fmt: skip
    return with_figures(manifest, found), payload


def build_torch(request: Request, device: str, draft: Draft, scratch: Path, say: Say) -> tuple[Manifest, bytes]:
    """PyTorch in FP16 or BF16, as it is or through torch.compile, with CUDA graphs: whichever is quickest here."""
    import torch

    from fiqa_trt.engines.torch import open_torch

    if request.precision == "int8":
        raise EngineError("PyTorch has no int8 here; use --precision fp16, or install TensorRT")
    where, reference = torch.device(device), _reference(request.checkpoint, device)
    largest = request.max_batch or BATCHES[-1]
    payload = request.checkpoint.read_bytes()

    def measured(way: tuple[str, bool]) -> Measured:
        executed, compiled = way
        return measure_engine(
            lambda batch: open_torch(
                request.checkpoint, device, request.precision, batch, executed, compiled=compiled
            ),
            batch_sizes(BATCHES, largest), reference, request.precision, executed + ", compiled" * compiled, say,
        )  # fmt: skip

    types = ["fp32"] if request.precision == "fp32" else ["fp16", "bf16"]
    best = quickest(measured, [(executed, compiled) for executed in types for compiled in (False, True)], say)
    manifest = _cuda_manifest(
        request, where, payload, "torch", "ensemble.safetensors", best.info.executed, (1, best.info.batch, largest),
        {"torch": torch.__version__},
    )  # fmt: skip
    return with_figures(manifest, best), payload


def _reference(checkpoint: Path, device: str) -> Scores:
    from fiqa_trt.engines.torch import open_torch

    engine = open_torch(checkpoint, device, "fp32", 32)
    try:
        return infer(engine, verification_batch())
    finally:
        engine.close()


def _cuda_manifest(
    request: Request,
    device: Any,
    payload: bytes,
    backend: str,
    name: str,
    executed: str,
    batch: tuple[int, int, int],
    versions: dict[str, str],
) -> Manifest:
    from fiqa_trt.engines.tensorrt import gpu_target

    return Manifest(
        model=hashlib.sha256(request.checkpoint.read_bytes()).hexdigest(),
        backend=backend,
        precision=request.precision,
        executed=executed,
        target=Target("cuda", *gpu_target(device)),
        batch=batch,
        payload=name,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        agreement={},
        throughput=0.0,
        seconds=0.0,
        versions=versions,
        spec=Manifest.read(RELEASED).spec,
    )
