"""What the knobs of the GPU path do, in one JSON: `python -m benchmarks.gpu_sweep [-o FILE] [--minutes M]`.

The CPU decoder by threads of one process, and as one process a core. DALI's decoder on the GPU by its share of the
hardware decoder, its upsampling of chroma, its threads, ours, and the batch: images/s, cores kept busy, and how far
pixels and scores are from the CPU decoder's. Whole runs with one, two and four processes on one GPU. Every figure is
written as soon as it is there. `--dry` is for the CPU, and means nothing.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import RESULTS, machine
from benchmarks.gpu_validation import gpu
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.decoding.dali import DaliDecoder
from fiqa_trt.engines.opening import CHECKPOINT
from fiqa_trt.engines.torch import open_torch
from fiqa_trt.errors import one_line
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.processes import Processes
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine.benchmark import decode_rate, generate
from fiqa_trt.runs.score import score_dataset

CORES = len(os.sched_getaffinity(0))
BASE: Mapping[str, Any] = {"batch": 256, "workers": CORES, "threads": 2, "fancy": True, "hardware": 0.65}
DISTINCT = 256
PROCESSES = (1, 2, 4)
ROUNDS = 3


def turns() -> Iterator[dict[str, Any]]:
    """What is tried: each knob by itself, and the two of the decoder together."""
    yield {}
    for fancy, hardware in itertools.product((True, False), (0.0, 0.65, 1.0)):
        yield {"fancy": fancy, "hardware": hardware}
    yield from ({"workers": count} for count in (2, 6))
    yield from ({"threads": count} for count in (1, 3, 4, 8))
    yield from ({"batch": size} for size in (64, 512))


def by_threads(blobs: Sequence[bytes], threads: int, count: int) -> dict[str, Any]:
    """Rate of the CPU decoder in threads of this process."""
    return {"images_per_s": round(decode_rate(CpuDecoder(threads=threads), blobs, BASE["batch"], count))}


def by_processes(blobs: Sequence[bytes], count: int) -> dict[str, Any]:
    """Rate of the CPU decoder in one process for each core, added up."""
    with multiprocessing.get_context("spawn").Pool(CORES) as pool:
        jobs = [(blobs, 1, count)] * CORES
        pool.starmap(by_threads, jobs, chunksize=1)
        return {"images_per_s": sum(found["images_per_s"] for found in pool.starmap(by_threads, jobs, chunksize=1))}


class Swept(DaliDecoder):
    """One with its knobs set."""

    def __init__(self, place: str, knobs: Mapping[str, Any]) -> None:
        """Raises EngineError as DaliDecoder does."""
        self.threads = knobs["threads"]
        self.options = {"jpeg_fancy_upsampling": knobs["fancy"], "hw_decoder_load": knobs["hardware"]}
        super().__init__(place, workers=knobs["workers"])


def on_host(pixels: Any) -> npt.NDArray[np.uint8]:
    """Those of any decoder."""
    return np.asarray(pixels.cpu() if hasattr(pixels, "cpu") else pixels)


def decoding(
    place: str,
    knobs: Mapping[str, Any],
    blobs: Sequence[bytes],
    count: int,
    scored: Callable[[Any], npt.NDArray[np.float32]],
) -> dict[str, Any]:
    """Rate and cores of one setting, and its distance from the CPU decoder."""
    decoder, cpu = Swept(place, knobs), CpuDecoder(threads=CORES)
    found, expected = (each.decode(blobs, len(blobs)) for each in (decoder, cpu))
    pixels = [on_host(each.pixels) for each in (found, expected)]
    difference = np.abs(pixels[0].astype(int) - pixels[1])
    scores = np.abs(scored(found.pixels) - scored(expected.pixels))
    decode_rate(decoder, blobs, knobs["batch"], 2 * knobs["threads"] * knobs["batch"])
    rates, cores = list[float](), list[float]()
    for _ in range(ROUNDS):
        began, busy = time.perf_counter(), time.process_time()
        rates.append(decode_rate(decoder, blobs, knobs["batch"], count))
        cores.append((time.process_time() - busy) / (time.perf_counter() - began))
    return {
        "images_per_s": round(statistics.median(rates)),
        "cores": round(statistics.median(cores), 2),
        "decoder": decoder.name,
        "failed_batches": decoder.failures,
        "pixels_mean": round(float(difference.mean()), 3),
        "pixels_worst_image": round(float(difference.mean(axis=(1, 2, 3)).max()), 3),
        "scores_max": round(float(scores.max()), 5),
        "scores_p99": round(float(np.quantile(scores, 0.99)), 5),
    }


def processes(places: list[str], engine: str, folder: Path, images: int) -> dict[str, Any]:
    """Rate of whole runs in as many processes as places, without their start."""
    executor = Processes(places, Setup(engine=engine, decoder="dali", threads=CORES))
    rates = list[float]()
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for number in range(ROUNDS + 1):
                lent = Lent(executor)
                began = time.perf_counter()
                score_dataset(Source((str(folder),)), Path(scratch) / f"{number}.parquet", lambda lent=lent: lent)  # type: ignore[misc]
                rates.append(images / (time.perf_counter() - began))
        finally:
            executor.close()
    return {"images_per_s": round(statistics.median(rates[1:])), "rounds": [round(rate) for rate in rates]}


class Lent:
    """An executor that stays open."""

    def __init__(self, executor: Processes) -> None:
        """Of what is lent."""
        self.info, self.decoder, self.setup = executor.info, executor.decoder, executor.setup
        self.work = executor.work

    def close(self) -> None:
        """Nothing to do."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what there is time for; 1 without a GPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "gpu_sweep.json")
    parser.add_argument("--minutes", type=float, default=4, help="after which nothing else is begun")
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 512], help="of the images in px")
    parser.add_argument("--images", type=int, default=100_000, help="of a whole run at 224 px")
    parser.add_argument("--decoded", type=int, default=8_000, help="by each setting")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args(arguments)
    import torch

    if not options.dry and not torch.cuda.is_available():
        print("no CUDA GPU here; nothing was run", file=sys.stderr)
        return 1
    place, began = "cpu" if options.dry else "cuda:0", time.monotonic()
    facts: dict[str, Any] = {"dry": options.dry, "machine": machine(), "gpu": gpu(), "base": dict(BASE)}
    reference = open_torch(CHECKPOINT, place, "fp32", DISTINCT)

    def scored(pixels: Any) -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = reference.submit(pixels).result().scores.mean(axis=1)
        return found

    def keep(name: str, key: str, measured: Callable[[], dict[str, Any]]) -> None:
        if time.monotonic() - began > 60 * options.minutes:
            return
        try:
            found = measured()
        except Exception as exc:  # the other settings are worth having
            found = {"skipped": f"{type(exc).__name__}: {one_line(exc, 300)}"}
        facts.setdefault(name, {})[key] = found
        options.output.write_text(json.dumps(facts, indent=1) + "\n")
        print(name, key, found, flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        for size in options.sizes:
            generate(root / str(size), DISTINCT, size)
            blobs = [path.read_bytes() for path in sorted((root / str(size)).rglob("*.jpg"))]
            name, count = f"CPU decoder, {size} px", options.decoded // 4
            for threads in (1, 4, 16):
                keep(name, f"{threads} threads", functools.partial(by_threads, blobs, threads, count))
            keep(name, f"{CORES} processes", functools.partial(by_processes, blobs, count))
            for turn in turns():
                knobs = {**BASE, **turn}
                measured = functools.partial(decoding, place, knobs, blobs, options.decoded, scored)
                keep(f"DALI, {size} px", json.dumps(turn), measured)
        generate(root / "run", options.images, 224)
        for count in PROCESSES:
            measured = functools.partial(processes, [place] * count, options.engine, root / "run", options.images)
            keep("processes on one GPU", str(count), measured)
    reference.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
