"""Everything that needs a GPU, in one JSON: `python -m benchmarks.gpu_validation [-o FILE]`.

Agreement and images/s by batch of eager FP32, PyTorch FP16 and BF16 with CUDA graphs, through torch.compile, and of
TensorRT FP16 and INT8 where its libraries are; DALI's decoder on the GPU (pixels and scores against the CPU decoder's);
and whole runs with each decoder: every stage, the bound, GPU utilisation, power and memory. What could not be run is
listed with its reason; nothing is reported that was not run.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import RESULTS, machine
from fiqa_trt import building
from fiqa_trt.building.measuring import infer, throughput
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.base import Engine, Scores
from fiqa_trt.engines.opening import CHECKPOINT
from fiqa_trt.errors import EngineError, FiqaError, one_line
from fiqa_trt.executors.base import Setup
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine.benchmark import decode_rate, generate, run_benchmark
from fiqa_trt.models.verification import compare, verification_batch

BATCHES = (1, 8, 32, 128, 256, 512)
SECONDS = 1.0
THREADS = len(os.sched_getaffinity(0))


def gpu() -> dict[str, Any]:
    """Name, clocks, power and driver of the GPU, by NVML."""
    try:
        import pynvml
    except ImportError:
        return {"nvml": "nvidia-ml-py is not installed"}
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    try:
        return {
            "name": pynvml.nvmlDeviceGetName(handle),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "memory_gb": round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 1e9, 1),
            "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "max_sm_clock_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
            "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
            "power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000,
        }
    finally:
        pynvml.nvmlShutdown()


def eager(batch: int) -> float:
    """Images/s of plain eager FP32, one call after the other, images on the GPU: what a first script would do."""
    import torch

    from fiqa_trt.engines.torch import load_checkpoint

    network = load_checkpoint(CHECKPOINT).cuda()
    images = torch.from_numpy(verification_batch()).cuda().repeat(8, 1, 1, 1)[:batch].contiguous()
    with torch.inference_mode():
        for _ in range(3):
            network(images)
        torch.cuda.synchronize()
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            network(images).cpu()
            done += batch
        return done / (time.perf_counter() - began)


def decoders(files: Sequence[Path]) -> dict[str, Any]:
    """DALI on the GPU against the CPU decoder on the same files: pixels, scores, rates."""
    from fiqa_trt.decoding.dali import DaliDecoder
    from fiqa_trt.engines.torch import open_torch

    blobs = [path.read_bytes() for path in files]
    dali, cpu = DaliDecoder("cuda:0", workers=THREADS), CpuDecoder(threads=THREADS)
    engine = open_torch(CHECKPOINT, "cuda:0", "fp32", len(blobs))
    found = [decoder.decode(blobs, len(blobs)) for decoder in (dali, cpu)]
    pixels = [
        np.asarray(decoded.pixels.cpu() if hasattr(decoded.pixels, "cpu") else decoded.pixels) for decoded in found
    ]
    difference = np.abs(pixels[0].astype(int) - pixels[1])
    scores = [engine.submit(decoded.pixels).result().mean(axis=1) for decoded in found]
    engine.close()
    return {
        "files": len(files),
        "same_outcomes": found[0].outcomes == found[1].outcomes,
        "pixels": {
            "mean": round(float(difference.mean()), 3),
            "largest_mean_of_an_image": round(float(difference.mean(axis=(1, 2, 3)).max()), 3),
            "max": int(difference.max()),
        },
        "scores": {
            "99th_percentile": round(float(np.quantile(np.abs(scores[0] - scores[1]), 0.99)), 5),
            "max": round(float(np.abs(scores[0] - scores[1]).max()), 5),
        },
        "images_per_s": {
            decoder.name: {str(batch): round(decode_rate(decoder, blobs, batch, 20_000)) for batch in (64, 256)}
            for decoder in (dali, cpu)
        },
    }


def whole_run(folder: Path, decoder: str) -> dict[str, Any]:
    """Every stage and a whole run on a folder, with the engine that `auto` takes."""
    setup = Setup("cuda", decoder=decoder, threads=THREADS)
    result = run_benchmark(Source((str(folder),)), setup, f"generated JPEGs in {folder.name}")
    return {**dataclasses.asdict(result), "share_of_bound": round(result.share, 3), "advice": result.advice()}


def measure(open_with: Callable[[int], Engine], reference: Scores) -> dict[str, Any]:
    """Agreement with the reference, and images/s by batch, copies to and from the host included."""
    found: dict[str, Any] = {"images_per_s": {}}
    for batch in BATCHES:
        try:
            engine = open_with(batch)
        except FiqaError as exc:
            found.setdefault("skipped", {})[str(batch)] = str(exc)
            continue
        try:
            if "agreement" not in found:
                found["agreement"] = compare(infer(engine, verification_batch()), reference).rounded()
            found["images_per_s"][str(batch)] = round(throughput(engine, SECONDS), 1)
        finally:
            engine.close()
    return found


def main() -> int:
    """Run it all; 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "gpu_validation.json")
    options = parser.parse_args()
    import torch

    from fiqa_trt.engines.tensorrt import open_tensorrt, tensorrt_version
    from fiqa_trt.engines.torch import open_torch

    if not torch.cuda.is_available():
        print("no CUDA GPU here; nothing was run", file=sys.stderr)
        return 1
    engine = open_torch(CHECKPOINT, "cpu")
    reference = infer(engine, verification_batch())
    engine.close()
    facts: dict[str, Any] = {"machine": machine(), "gpu": gpu(), "skipped": {}}

    def section(name: str, measured: Callable[[], dict[str, Any]]) -> None:
        try:
            facts[name] = {**measured(), "gpu after": gpu()}
        except (FiqaError, RuntimeError) as exc:
            facts["skipped"][name] = one_line(exc)
        print(name, facts.get(name) or facts["skipped"][name], flush=True)
        options.output.write_text(json.dumps(facts, indent=1) + "\n")

    def by_torch(executed: str, compiled: bool) -> dict[str, Any]:
        precision = "fp32" if executed == "fp32" else "fp16"
        return measure(
            lambda batch: open_torch(CHECKPOINT, "cuda", precision, batch, executed, compiled=compiled), reference
        )

    def by_tensorrt(precision: str) -> dict[str, Any]:
        if tensorrt_version() is None:
            raise EngineError("TensorRT's libraries are not installed")
        with tempfile.TemporaryDirectory() as folder:
            request = building.Request(precision, device="cuda", backend="tensorrt", output=Path(folder) / "engine")
            built = building.build(request, print)
            found = measure(lambda batch: open_tensorrt(built.folder, "cuda", batch), reference)
        return {**found, "manifest": {**dataclasses.asdict(built.manifest), "reference": None}}

    section("eager fp32", lambda: {"images_per_s": {str(batch): round(eager(batch), 1) for batch in BATCHES}})
    for executed in ("fp32", "fp16", "bf16"):
        for compiled in (False, True):
            name = f"torch {executed}, CUDA graphs" + ", torch.compile" * compiled
            section(name, lambda executed=executed, compiled=compiled: by_torch(executed, compiled))  # type: ignore[misc]
    for precision in ("fp32", "fp16", "int8"):
        section(f"tensorrt {precision}", lambda precision=precision: by_tensorrt(precision))  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as scratch:
        for size, count in ((224, 100_000), (112, 100_000), (512, 20_000)):
            generate(Path(scratch) / f"{size} px", count, size)
        files = [
            path for size in (112, 224, 512) for path in sorted((Path(scratch) / f"{size} px").rglob("*.jpg"))[:256]
        ]
        section("decoders", lambda: decoders(files))
        for size in (224, 112, 512):
            for decoder in ("dali", "cpu"):
                section(
                    f"whole run, {size} px, decoder {decoder}",
                    lambda size=size, decoder=decoder: whole_run(Path(scratch) / f"{size} px", decoder),  # type: ignore[misc]
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
