"""Whole commands on the same files, in turn: what people use today, and this tool. `python -m benchmarks.compare`.

Peers that are installed here: PyTorch's DataLoader with torchvision's networks (on a GPU too, where there is one), and
OpenCV with ONNX Runtime. Every side starts from nothing and ends with a score for each file in one output.
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from benchmarks.common import COMMAND, link_many, machine, make_crops, median, record, timed

IMAGES, ROUNDS = 3000, 3


def commands(folder: Path, output: Path) -> dict[str, list[str | Path]]:
    """The sides by name."""
    plain: list[str | Path] = [sys.executable, "-m", "benchmarks.plain", folder, output.with_suffix(".csv")]
    ours: list[str | Path] = [*COMMAND, "score", folder, "-o", output, "-q", "--restart"]
    sides: dict[str, list[str | Path]] = {
        "DataLoader + torchvision + eager FP32, CPU": [*plain],
        "OpenCV + ONNX Runtime FP32, CPU": [
            sys.executable, "-m", "benchmarks.plain_onnx", folder, output.with_suffix(".csv"),
        ],
        "fiqa-trt, CPU": [*ours, "--device", "cpu"],
        "fiqa-trt --decoder dali, CPU": [*ours, "--device", "cpu", "--decoder", "dali"],
    }  # fmt: skip
    if torch.cuda.is_available():
        for name, more in (("FP32", ()), ("FP16", ("--half",))):
            sides[f"DataLoader + torchvision + eager {name}, CUDA"] = [
                *plain, "--device", "cuda", "--workers", "16", *more,
            ]  # fmt: skip
        sides["fiqa-trt, CUDA"] = [*ours, "--device", "cuda"]
    return sides


def scores(output: Path, name: str) -> np.ndarray:
    """What a side wrote, in the order of the paths."""
    if name.startswith("fiqa-trt"):
        rows = [(row["path"], row["score"]) for row in pq.read_table(output).to_pylist()]
    else:
        with output.with_suffix(".csv").open(newline="") as file:
            rows = [(path, float(score)) for path, score in csv.reader(file)]
    return np.array([score for _, score in sorted(rows)])


def compare(size: int, images: int) -> dict[str, object]:
    """Images/s of every side on JPEGs of one size, and how far their scores are from the plain script's."""
    rates: dict[str, list[float]] = {}
    differences: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        link_many(make_crops(root / "distinct", size=size), root / "many", images)
        sides = commands(root / "many", root / "s.parquet")
        for number in range(ROUNDS + 1):
            reference = None
            for name, arguments in sides.items():
                seconds, _ = timed(arguments)
                found = scores(root / "s.parquet", name)
                reference = found if reference is None else reference
                differences[name] = float(np.abs(found - reference).mean())
                if number:  # the first round fills caches
                    rates.setdefault(name, []).append(images / seconds)
            print(size, {name: round(values[-1]) for name, values in rates.items()}, file=sys.stderr, flush=True)
    ours = rates["fiqa-trt, CPU"]
    return {
        "images": images,
        "images_per_s": {name: median(values) for name, values in rates.items()},
        "fiqa_trt_cpu_over": {
            name: median([a / b for a, b in zip(ours, values, strict=True)]) for name, values in rates.items()
        },
        "mean_difference_of_scores": {name: round(value, 5) for name, value in differences.items()},
    }


def main() -> None:
    """Crops of the network's own size, and larger ones."""
    facts = machine()
    record(
        "compare",
        {
            "what": f"images/s of whole commands, medians of {ROUNDS} rounds (also of the ratios)",
            "machine": facts,
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "224 px": compare(224, IMAGES),
            "1000 px": compare(1000, IMAGES // 4),
        },
    )


if __name__ == "__main__":
    main()
