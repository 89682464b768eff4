"""CPU engines against PyTorch and ONNX Runtime, each at its own best batch size. `python -m benchmarks.engines`.

All sides run in turn, in one process, on the same images from memory; medians of the rounds, and ratios of those.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.common import machine, median, record
from fiqa_trt.building import Request, build
from fiqa_trt.building.measuring import throughput
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED, open_engine
from fiqa_trt.errors import FiqaError
from fiqa_trt.models.verification import verification_batch

BATCHES = (1, 4, 8, 16, 32)
ROUNDS, SECONDS = 5, 1.0
Pixels = npt.NDArray[np.uint8]
Rate = Callable[[], float]


def of_calls(function: Callable[[Pixels], Any], batch: int) -> Rate:
    """Images/s of a function that takes a batch, called again and again."""
    images = np.ascontiguousarray(np.resize(verification_batch(), (batch, 224, 224, 3)))

    def rate() -> float:
        function(images)
        done, began = 0, time.perf_counter()
        while time.perf_counter() - began < SECONDS:
            function(images)
            done += batch
        return done / (time.perf_counter() - began)

    return rate


def torch_sides() -> dict[str, Callable[[int], Rate]]:
    """Eager FP32 as it comes, and channels-last."""
    import torch

    from fiqa_trt.engines.torch import load_checkpoint

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    def side(network: torch.nn.Module) -> Callable[[int], Rate]:
        def call(images: Pixels) -> None:
            with torch.inference_mode():
                network(torch.from_numpy(images))

        return lambda batch: of_calls(call, batch)

    last = load_checkpoint(CHECKPOINT).to(memory_format=torch.channels_last)
    return {"torch eager fp32": side(load_checkpoint(CHECKPOINT)), "torch eager fp32, channels last": side(last)}


def onnxruntime_side() -> Callable[[int], Rate]:
    """The shipped network in ONNX Runtime, all cores."""
    import onnxruntime

    session = onnxruntime.InferenceSession(RELEASED / "ensemble.onnx", providers=["CPUExecutionProvider"])
    return lambda batch: of_calls(lambda images: session.run(None, {"images": images}), batch)


def openvino_side(folder: Path) -> Callable[[int], Rate]:
    """An engine directory; its engines stay open until the end of the process."""

    def side(batch: int) -> Rate:
        engine = open_engine("cpu", engine=str(folder), batch=batch)
        return lambda: throughput(engine, SECONDS)

    return side


def main() -> None:
    """Build the engines, find each side's best batch, then measure all in turn."""
    facts: dict[str, Any] = {"machine": machine(), "skipped": {}, "engines": {}}
    with tempfile.TemporaryDirectory() as scratch:
        sides = {**torch_sides(), "onnxruntime fp32": onnxruntime_side()}
        for precision in ("fp32", "fp16", "int8"):
            try:
                built = build(Request(precision, device="cpu", output=Path(scratch) / precision))
            except FiqaError as exc:
                facts["skipped"][precision] = str(exc)
                continue
            manifest = built.manifest
            facts["engines"][precision] = {"executed": manifest.executed, "agreement": manifest.agreement}
            sides[f"openvino {precision}"] = openvino_side(built.folder)
        best: dict[str, tuple[int, Rate]] = {}
        for name, side in sides.items():
            rates = {batch: side(batch) for batch in BATCHES}
            found = {batch: statistics.median(rate() for _ in range(3)) for batch, rate in rates.items()}
            batch = max(found, key=lambda size: found[size])
            best[name] = batch, rates[batch]
        rounds = [{name: rate() for name, (_, rate) in best.items()} for _ in range(ROUNDS)]
    medians = {name: median([one[name] for one in rounds]) for name in best}
    facts["best batch"] = {name: batch for name, (batch, _) in best.items()}
    facts["images_per_s"] = medians
    facts["ratios"] = {
        f"{ours} / {theirs}": round(statistics.median(one[ours] / one[theirs] for one in rounds), 2)
        for ours in medians
        if ours.startswith("openvino")
        for theirs in medians
        if theirs != ours
    }
    record("engines", facts)


if __name__ == "__main__":
    main()
