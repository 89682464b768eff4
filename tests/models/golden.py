"""The released checkpoint's scores of fixed inputs. `python -m tests.models.golden` writes them anew to `golden.json`.

To be run when a new checkpoint is released, and for no other reason.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from fiqa_trt.decoding.cpu import decode_image, fit
from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.engines.openvino import OpenVinoEngine
from fiqa_trt.machine import samples
from fiqa_trt.models.verification import verification_batch

GOLDEN = Path(__file__).with_suffix(".json")

Members = list[list[float]]


def of_tensors(engine: Engine) -> Members:
    """Member scores of one seeded batch, which no decoder has touched."""
    images = verification_batch()[:: 64 // engine.info.batch][: engine.info.batch].copy()
    return [[float(score) for score in row] for row in engine.submit(images).result().scores]


def of_files(engine: Engine) -> dict[str, list[float]]:
    """Member scores of the demo's samples by name, decoded as `fiqa-trt score` does."""
    with tempfile.TemporaryDirectory() as folder:
        samples.make(Path(folder))
        files = {name: (Path(folder) / f"{name}.jpg").read_bytes() for name in (*samples.crops(), "jpeg_8")}
    images = verification_batch()[:: 64 // engine.info.batch][: engine.info.batch].copy()
    scores = {}
    for name, data in files.items():
        images[0] = fit(decode_image(data), images.shape[1])
        scores[name] = [float(score) for score in engine.submit(images).result().scores[0]]
    return scores


def main() -> None:
    """Write `golden.json`."""
    engine = OpenVinoEngine(RELEASED, "fp32", 8)
    golden = {"model": engine.info.model, "tensors": of_tensors(engine), "files": of_files(engine)}
    engine.close()
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
