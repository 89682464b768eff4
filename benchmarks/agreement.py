"""The shipped checkpoint against the labels of a pool's `val` split. `python -m benchmarks.agreement POOL`.

POOL is made by `python -m fiqa_trt.training synthesize` (see the README).
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine, record
from fiqa_trt.engines import open_engine
from fiqa_trt.training.dataset import load_pool
from fiqa_trt.training.loop import agreement


def main() -> None:
    """Record SRCC and PLCC of each member and of their mean, for every engine and precision of a CPU."""
    pool = load_pool(Path(sys.argv[1]))
    val = np.flatnonzero(pool.splits == "val")
    images, labels = pool.images[val], pool.labels[val]
    results: dict[str, Any] = {}
    for backend, precision in (("torch", "fp32"), ("openvino", "fp32"), ("openvino", "auto")):
        engine = open_engine("cpu", precision, backend)
        batch, parts = engine.info.batch, []
        for start in range(0, len(images), batch):
            padded = np.zeros((batch, *images.shape[1:]), np.uint8)
            count = len(chunk := images[start : start + batch])
            padded[:count] = chunk
            parts.append(engine.submit(padded).result()[:count])
        results[f"{backend} {engine.info.executed}"] = dataclasses.asdict(agreement(np.concatenate(parts), labels))
        engine.close()
    what = f"shipped checkpoint on {len(val)} degraded portraits of the val split (no person in train), against labels"
    record("agreement", {"what": what, "machine": machine(), "model": engine.info.model, "results": results})


if __name__ == "__main__":
    main()
