"""Everything that needs a GPU, in one JSON: `python -m benchmarks.gpu_validation [-o FILE] [--only SECTION]...`.

DALI's decoder on the GPU (pixels and scores against the CPU decoder's); whole runs with each decoder, with PyTorch and
with the TensorRT engines that are built on the way into the store of engines: every stage, the bound, GPU utilisation,
power and memory; agreement with the reference and images/s by batch of TensorRT, of PyTorch with CUDA graphs, of one
batch size through torch.compile, and of plain eager FP32. What could not be run is listed with its reason; nothing is
reported that was not run.

Each section is written as it ends, and passed over by the next call, so what a call has no time for (`--minutes`) the
same command does when it is given again. `--dry` runs every section on the CPU with stand-ins and in little time: its
figures mean nothing, but it shows that the script works before a GPU is at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
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
from fiqa_trt.building.measuring import throughput
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.decoding.dali import DaliDecoder
from fiqa_trt.engines.base import Engine, Scores
from fiqa_trt.engines.known import infer
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED, open_engine
from fiqa_trt.engines.registry import BACKENDS
from fiqa_trt.engines.store import store
from fiqa_trt.errors import EngineError, one_line
from fiqa_trt.executors.base import Setup
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine.benchmark import decode_rate, generate, run_benchmark
from fiqa_trt.models.verification import compare, verification_batch

THREADS = len(os.sched_getaffinity(0))
SIZES = (224, 512, 112)
UNFINISHED = "did not end: it took the process with it, or was stopped"


@dataclasses.dataclass(frozen=True)
class Bench:
    """What is measured, and with how much.

    Attributes:
        place: where the engines run.
        batches: of an engine, from small to large.
        seconds: that an engine is kept busy for each.
        images: of a whole run by their size in px.
        decoded: by each decoder with each batch size.
    """

    place: str = "cuda"
    batches: tuple[int, ...] = (1, 8, 32, 128, 256, 512)
    seconds: float = 1.0
    images: tuple[int, ...] = (30_000, 10_000, 30_000)
    decoded: int = 10_000

    def torch(self, executed: str, batch: int, *, compiled: bool = False) -> Engine:
        """PyTorch's engine that computes in `executed`."""
        from fiqa_trt.engines.torch import open_torch

        precision = "fp32" if executed == "fp32" else "fp16"
        return open_torch(CHECKPOINT, self.place, precision, batch, executed, compiled=compiled)

    def plan(self, precision: str, backend: str = "tensorrt") -> Path:
        """The directory of a TensorRT engine, which is built unless it is in the store."""
        opener = BACKENDS[backend].load()
        if install := opener.missing():
            raise EngineError(f"{BACKENDS[backend].title} is not here: {install}")
        folder = store() / f"{backend}-{precision}"
        with contextlib.suppress(EngineError):
            if opener.difference_from_here(Manifest.read(folder), self.place) is None:
                return folder
        return building.build(building.Request(precision, device=self.place, backend=backend), print).folder


@dataclasses.dataclass(frozen=True)
class Dry(Bench):
    """Stand-ins on the CPU."""

    place: str = "cpu"
    batches: tuple[int, ...] = (1, 2)
    seconds: float = 0.01
    images: tuple[int, ...] = (8, 8, 8)
    decoded: int = 8

    def torch(self, executed: str, batch: int, *, compiled: bool = False) -> Engine:
        """PyTorch in FP32."""
        return super().torch("fp32", batch)

    def plan(self, precision: str, backend: str = "tensorrt") -> Path:
        """What is released, for OpenVINO."""
        return RELEASED


def gpu() -> dict[str, Any]:
    """Name, clocks, power and driver of the GPU, by NVML; of what it does not tell, why."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except Exception as exc:  # no library, no driver, no GPU
        return {"nvml": one_line(exc)}

    def asked(query: Callable[[], Any]) -> Any:
        try:
            return query()
        except Exception as exc:  # there are GPUs that do not tell everything
            return one_line(exc)

    return {
        "name": asked(lambda: pynvml.nvmlDeviceGetName(handle)),
        "driver": asked(pynvml.nvmlSystemGetDriverVersion),
        "memory_gb": asked(lambda: round(pynvml.nvmlDeviceGetMemoryInfo(handle).total / 1e9, 1)),
        "sm_clock_mhz": asked(lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        "max_sm_clock_mhz": asked(lambda: pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)),
        "power_w": asked(lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000),
        "power_limit_w": asked(lambda: pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000),
    }


def eager(bench: Bench, *, tf32: bool) -> dict[str, Any]:
    """Images/s of plain eager FP32, one call after the other, images on the GPU: what a first script would do.

    TF32 is what such a script's convolutions compute in unless it says otherwise.
    """
    import torch

    from fiqa_trt.engines.torch import load_checkpoint

    network = load_checkpoint(CHECKPOINT).to(bench.place)
    found = dict[str, float]()
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        for batch in bench.batches:
            images = torch.from_numpy(np.resize(verification_batch(), (batch, 224, 224, 3))).to(bench.place)
            with torch.inference_mode():
                for _ in range(3):
                    network(images)[0].cpu()
                done, began = 0, time.perf_counter()
                while time.perf_counter() - began < bench.seconds:
                    network(images)[0].cpu()
                    done += batch
            found[str(batch)] = round(done / (time.perf_counter() - began), 1)
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return {"images_per_s": found}


def decoders(bench: Bench, files: Sequence[Path]) -> dict[str, Any]:
    """DALI on the GPU against the CPU decoder on the same files: pixels, scores, rates."""
    blobs = [path.read_bytes() for path in files]
    dali, cpu = DaliDecoder(bench.place, workers=THREADS), CpuDecoder(threads=THREADS)
    engine = bench.torch("fp32", len(blobs))
    try:
        found = [decoder.decode(blobs, len(blobs)) for decoder in (dali, cpu)]
        scores = [engine.submit(decoded.pixels).result().scores.mean(axis=1) for decoded in found]
    finally:
        engine.close()
    pixels = [
        np.asarray(decoded.pixels.cpu() if hasattr(decoded.pixels, "cpu") else decoded.pixels) for decoded in found
    ]
    difference = np.abs(pixels[0].astype(int) - pixels[1])
    return {
        "files": len(files),
        "same_outcomes": found[0].outcomes == found[1].outcomes,
        "batches_that_dali_failed_on": dali.failures,
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
            decoder.name: {str(batch): round(decode_rate(decoder, blobs, batch, bench.decoded)) for batch in (64, 256)}
            for decoder in (dali, cpu)
        },
    }


def whole_run(bench: Bench, folder: Path, decoder: str, engine: str) -> dict[str, Any]:
    """Every stage and a whole run on a folder."""
    setup = Setup(bench.place, engine=engine, decoder=decoder, threads=THREADS)
    result = run_benchmark(Source((str(folder),)), setup, f"generated JPEGs in {folder.name}")
    return {**dataclasses.asdict(result), "share_of_bound": round(result.share, 3), "advice": result.advice()}


def measure(bench: Bench, open_with: Callable[[int], Engine], reference: Scores, *batches: int) -> dict[str, Any]:
    """Agreement with the reference, and images/s by the batch that was run, copies to and from the host included."""
    found: dict[str, Any] = {"images_per_s": {}}
    for batch in batches or bench.batches:
        try:
            engine = open_with(batch)
        except Exception as exc:  # no memory for one batch size is no reason not to try the others
            found.setdefault("skipped", {})[str(batch)] = one_line(exc)
            continue
        try:
            if "agreement" not in found:
                found["engine"] = dataclasses.asdict(engine.info)
                found["agreement"] = compare(infer(engine, verification_batch()), reference).rounded()
            found["images_per_s"][str(engine.info.batch)] = round(throughput(engine, bench.seconds), 1)
        finally:
            engine.close()
    if not found["images_per_s"]:
        raise EngineError(f"it ran with no batch size: {found['skipped']}")
    return found


Sections = dict[str, Callable[[], dict[str, Any]]]


def sections_of(bench: Bench, root: Path) -> Sections:
    """What there is to measure, by name, with what matters most first."""

    @functools.cache
    def reference() -> Scores:
        from fiqa_trt.engines.torch import open_torch

        engine = open_torch(CHECKPOINT, "cpu")
        try:
            return infer(engine, verification_batch())
        finally:
            engine.close()

    @functools.cache
    def crops(size: int) -> Path:
        folder = root / f"{size} px"
        generate(folder, bench.images[SIZES.index(size)], size)
        return folder

    def decoding() -> dict[str, Any]:
        return decoders(bench, [path for size in SIZES for path in sorted(crops(size).rglob("*.jpg"))[:256]])

    def run(size: int, decoder: str, plan: str | None = None) -> dict[str, Any]:
        engine = ("torch" if bench.place == "cuda" else "auto") if plan is None else str(bench.plan(plan))
        return whole_run(bench, crops(size), decoder, engine)

    def tensorrt(precision: str, backend: str = "tensorrt") -> dict[str, Any]:
        folder = bench.plan(precision, backend)
        found = measure(bench, lambda batch: open_engine(bench.place, engine=str(folder), batch=batch), reference())
        return {**found, "manifest": {**dataclasses.asdict(Manifest.read(folder)), "reference": None}}

    def torch(executed: str, *batches: int, compiled: bool = False) -> dict[str, Any]:
        return measure(bench, lambda batch: bench.torch(executed, batch, compiled=compiled), reference(), *batches)

    return {
        "decoders": decoding,
        "whole run, 224 px, dali, torch": lambda: run(224, "dali"),
        "whole run, 224 px, cpu, torch": lambda: run(224, "cpu"),
        "tensorrt fp16": lambda: tensorrt("fp16"),
        "whole run, 224 px, dali, tensorrt fp16": lambda: run(224, "dali", "fp16"),
        "whole run, 512 px, dali, tensorrt fp16": lambda: run(512, "dali", "fp16"),
        "whole run, 112 px, dali, tensorrt fp16": lambda: run(112, "dali", "fp16"),
        "torch fp16, CUDA graphs": lambda: torch("fp16"),
        "tensorrt-rtx fp16": lambda: tensorrt("fp16", "tensorrt-rtx"),
        "torch bf16, CUDA graphs": lambda: torch("bf16"),
        "torch fp32, CUDA graphs": lambda: torch("fp32"),
        "eager fp32, TF32 convolutions": lambda: eager(bench, tf32=True),
        "eager fp32": lambda: eager(bench, tf32=False),
        "torch fp16, CUDA graphs, torch.compile": lambda: torch("fp16", bench.batches[-2], compiled=True),
        "tensorrt int8": lambda: tensorrt("int8"),
        "tensorrt fp32": lambda: tensorrt("fp32"),
        "tensorrt-rtx fp32": lambda: tensorrt("fp32", "tensorrt-rtx"),
        "whole run, 512 px, cpu, torch": lambda: run(512, "cpu"),
    }


class Record:
    """The JSON of what was found, which grows by a section at a time."""

    def __init__(self, path: Path, dry: bool) -> None:
        self.path = path
        found: dict[str, Any] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(path.read_text())
        if found.get("dry", dry) is not dry:
            found = {}
        self.facts = {"dry": dry, "machine": machine(), "gpu": gpu(), "sections": {}, "skipped": {}, **found}

    def holds(self, name: str) -> bool:
        """Whether a section was measured, or tried."""
        return name in self.facts["sections"] or name in self.facts["skipped"]

    def measure(self, name: str, section: Callable[[], dict[str, Any]]) -> None:
        """Measure a section, or write down why that failed."""
        sections, skipped = self.facts["sections"], self.facts["skipped"]
        skipped[name] = UNFINISHED
        self._write()
        began = time.perf_counter()
        try:
            found = section()
        except Exception as exc:  # whatever a library raises: the others are worth having
            skipped[name] = f"{type(exc).__name__}: {one_line(exc, 500)}"
        else:
            del skipped[name]
            sections[name] = {"seconds": round(time.perf_counter() - began, 1), **found, "gpu_after": gpu()}
        self._write()
        print(f"{name}: {skipped.get(name) or sections[name]['seconds']}", flush=True)

    def _write(self) -> None:
        temporary = self.path.with_suffix(".part")
        # What JSON does not know is written as text: nothing that was measured may be lost for it.
        temporary.write_text(json.dumps(self.facts, indent=1, default=str) + "\n")
        temporary.replace(self.path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what there is time for; 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, help="where the JSON is, and what it has is not done again")
    parser.add_argument("--only", action="append", metavar="SECTION", help="or the beginning of some; done again")
    parser.add_argument("--minutes", type=float, default=8, help="after which no other section is begun")
    parser.add_argument("--dry", action="store_true", help="on the CPU, with stand-ins")
    options = parser.parse_args(arguments)
    import torch

    if not options.dry and not torch.cuda.is_available():
        print("no CUDA GPU here; nothing was run", file=sys.stderr)
        return 1
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        sections = sections_of(Dry() if options.dry else Bench(), root)
        only = tuple(options.only or ())
        if unknown := [each for each in only if not any(name.startswith(each) for name in sections)]:
            parser.error(f"--only {unknown[0]}: there are {'; '.join(sections)}")
        output = options.output or (root if options.dry else RESULTS) / "gpu_validation.json"
        record = Record(output, options.dry)
        for name, section in sections.items():
            wanted = name.startswith(only) if only else not record.holds(name)
            if wanted and time.monotonic() - began < 60 * options.minutes:
                record.measure(name, section)
    for name, reason in record.facts["skipped"].items():
        print(f"skipped: {name}: {reason}")
    print(f"left: {'; '.join(name for name in sections if not record.holds(name)) or 'nothing'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
