"""Training speed: members together or apart, FP32 or BF16 autocast. `python -m benchmarks.training`.

Rates are of whole training steps (reading, augmentation, forward, backward, AdamW, moving average), batch 32.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from typing import Any

from benchmarks.common import machine, median, record
from fiqa_trt.models.spec import MEMBERS

STEPS, ROUNDS = 24, 3
BOTH = ",".join(MEMBERS)


def measure(members: str, precision: str, threads: int) -> float:
    """Images a second of one process; called in a process of its own."""
    import numpy as np
    import torch

    from fiqa_trt.models.networks import Ensemble
    from fiqa_trt.training.dataset import Dataset, Labels
    from fiqa_trt.training.loop import Trainer
    from fiqa_trt.training.recipe import Recipe

    torch.set_num_threads(threads)
    count = STEPS * 32
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count + 32, 224, 224, 3), np.uint8)
    scores = rng.random(count + 32).astype(np.float32)
    labels = Labels([""] * len(scores), scores, np.ones_like(scores), np.repeat(["train", "val"], [count, 32]))
    dataset = Dataset(labels, images, np.arange(len(scores)), [])
    recipe = Recipe(members=tuple(members.split(",")), epochs=1, precision=precision)
    trainer = Trainer(dataset, recipe, Ensemble(), torch.device("cpu"))
    began = []
    trainer.epoch(1, lambda done: began.append(time.perf_counter()))
    # The first steps allocate and choose kernels.
    return (len(began) - 5) * 32 / (began[-1] - began[4])


def run(jobs: list[tuple[str, str, int]]) -> list[float]:
    """Rates of some trainings, each in a process of its own, all at once."""
    command = [sys.executable, "-m", "benchmarks.training"]
    processes = [
        subprocess.Popen([*command, *map(str, job)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for job in jobs
    ]
    return [float(json.loads(process.communicate()[0])) for process in processes]


def main() -> None:
    """Record the median rates of all arrangements, measured in turn."""
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
        return
    rates: dict[str, list[list[float]]] = {}
    for _, precision in itertools.product(range(ROUNDS), ("fp32", "bf16")):
        arrangements = {
            "together, 2 threads": [(BOTH, precision, 2)],
            f"{MEMBERS[0]} alone, 2 threads": [(MEMBERS[0], precision, 2)],
            f"{MEMBERS[1]} alone, 2 threads": [(MEMBERS[1], precision, 2)],
            "two processes at once, 1 thread each": [(name, precision, 1) for name in MEMBERS],
        }
        for name, jobs in arrangements.items():
            rates.setdefault(f"{name}, {precision}", []).append(run(jobs))
    results: dict[str, Any] = {
        name: [median(values) for values in zip(*found, strict=True)] for name, found in rates.items()
    }
    record("training", {"what": "images/s, in the order of the members", "machine": machine(), "results": results})


if __name__ == "__main__":
    main()
