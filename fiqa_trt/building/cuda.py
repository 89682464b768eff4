"""CUDA engines: TensorRT through Torch-TensorRT, or PyTorch."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from fiqa_trt.building.calibration import int8_ranges
from fiqa_trt.building.measuring import Measured, batch_sizes, measure_engine, quickest, with_figures
from fiqa_trt.building.request import Request
from fiqa_trt.engines.base import Judged
from fiqa_trt.engines.cuda import gpu_target
from fiqa_trt.engines.known import judge
from fiqa_trt.engines.manifest import Draft, Manifest, Target, digest_of
from fiqa_trt.errors import EngineError, FiqaError, one_line
from fiqa_trt.models.spec import ModelSpec
from fiqa_trt.models.verification import verification_batch
from fiqa_trt.progress import Say
from fiqa_trt.storage.writing import atomic

BATCHES = (8, 32, 64, 128, 256, 512)


def build_tensorrt(request: Request, device: str, draft: Draft, scratch: Path, say: Say) -> tuple[Manifest, bytes]:
    """One plan for batches up to the largest; TensorRT's measurements stay beside the engines for the next build."""
    import torch

    from fiqa_trt.building import compile as compiler
    from fiqa_trt.engines import tensorrt
    from fiqa_trt.engines.torch import load_checkpoint

    where = torch.device("cuda", torch.device(device).index or 0)
    largest = request.max_batch or BATCHES[-1]
    batches = [size for size in batch_sizes(BATCHES, largest) if size >= compiler.SMALLEST]
    torch_tensorrt = compiler.import_torch_tensorrt()
    versions = {"torch": torch.__version__, "torch_tensorrt": torch_tensorrt.__version__}
    versions |= {"tensorrt": str(tensorrt.tensorrt_version()), "driver": driver_version()}
    model, reference = digest_of(request.checkpoint), _reference(request.checkpoint)
    ranges = int8_ranges(request.checkpoint, request.calibration, say) if request.precision == "int8" else None
    try:
        network = load_checkpoint(request.checkpoint).to(where)
        compiler.prepare(network, request.precision, ranges)
    except RuntimeError as exc:
        raise EngineError(f"--device {device} cannot take the network: {one_line(exc)}") from exc
    program = compiler.export_program(network, largest, device)
    say("compiling with TensorRT, which tries many kernels and takes minutes")
    target = Target("cuda", *gpu_target(device))
    with _timing_cache(draft.folder.parent, target, versions["tensorrt"], scratch) as timing:
        payload = compiler.compile_plan(
            program, batches[-1], largest, where, timing, version_compatible=request.version_compatible
        )
    with torch.cuda.device(where):
        types = tensorrt.layer_types(tensorrt.load_plan(payload, "the new engine"))
    tensorrt.check_layer_types(types, request.precision)
    say(f"layers in {', '.join(sorted(types))}" if types else "TensorRT does not tell in what types its layers compute")
    batch = (compiler.SMALLEST, batches[-1], largest)
    manifest = _manifest(request, model, target, payload, "tensorrt", "ensemble.plan", batch, versions, network.spec)
    manifest = dataclasses.replace(manifest, version_compatible=request.version_compatible)
    draft.write(manifest, payload)
    found = measure_engine(
        lambda batch: tensorrt.open_tensorrt(draft.folder, device, batch),
        batches, reference, request.precision, f"TensorRT {request.precision}", say,
    )  # fmt: skip
    return with_figures(manifest, found), payload


@contextlib.contextmanager
def _timing_cache(folder: Path, target: Target, version: str, scratch: Path) -> Iterator[Path]:
    """A file for TensorRT to keep its measurements in: one for each GPU and version, replaced whole after a build."""
    name = "-".join(("timing", version, *target.features, target.name)).replace(" ", "_").replace("/", "_")
    kept, used = folder / f"{name}.cache", scratch / "timing.cache"
    with contextlib.suppress(OSError):
        shutil.copyfile(kept, used)
    yield used
    # The next build is quicker with it, but does not need it.
    with contextlib.suppress(OSError, FiqaError), atomic(kept) as temporary:
        shutil.copyfile(used, temporary)


def driver_version() -> str:
    """Of NVIDIA's driver, by NVML; empty if that cannot be asked."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlSystemGetDriverVersion())
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # it is recorded for information only
        return ""


def build_torch(request: Request, device: str, draft: Draft, scratch: Path, say: Say) -> tuple[Manifest, bytes]:
    """PyTorch in FP16 or BF16, as it is or through torch.compile, with CUDA graphs: whichever is quickest here."""
    import torch

    from fiqa_trt.engines.torch import open_torch

    if request.precision == "int8":
        raise EngineError("PyTorch has no int8 here; use --precision fp16, or install TensorRT")
    model, reference = digest_of(request.checkpoint), _reference(request.checkpoint)
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
    _, best = quickest(measured, [(executed, compiled) for executed in types for compiled in (False, True)], say)
    target = Target("cuda", *gpu_target(device))
    versions = {"torch": torch.__version__, "driver": driver_version()}
    batch = (1, best.info.batch, largest)
    spec = ModelSpec(members=best.info.members, causes=best.info.causes)
    manifest = _manifest(request, model, target, payload, "torch", "ensemble.safetensors", batch, versions, spec)
    return with_figures(manifest, best), payload


def _reference(checkpoint: Path) -> Judged:
    """Of the verification batch, in FP32 on the CPU: a GPU would be compared with itself."""
    from fiqa_trt.engines.torch import open_torch

    engine = open_torch(checkpoint, "cpu")
    try:
        return judge(engine, verification_batch())
    finally:
        engine.close()


def _manifest(
    request: Request,
    model: str,
    target: Target,
    payload: bytes,
    backend: str,
    name: str,
    batch: tuple[int, int, int],
    versions: dict[str, str],
    spec: ModelSpec,
) -> Manifest:
    return Manifest(
        model=model,
        backend=backend,
        precision=request.precision,
        executed=request.precision,
        target=target,
        batch=batch,
        payload=name,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        agreement={},
        throughput=0.0,
        seconds=0.0,
        versions=versions,
        spec=spec,
    )
