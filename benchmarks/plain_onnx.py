"""The other script one writes: OpenCV and ONNX Runtime in a loop. `python -m benchmarks.plain_onnx FOLDER OUT.csv`."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime

from fiqa_trt.engines.opening import RELEASED

BATCH = 16


def crop(path: Path) -> np.ndarray:
    """An image, resized and cropped to 224 px, RGB."""
    image = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    scale = 224 / min(image.shape[:2])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
    return image[top : top + 224, left : left + 224]


def main() -> None:
    """Score a folder and write a CSV."""
    paths = sorted(Path(sys.argv[1]).rglob("*.jpg"))
    session = onnxruntime.InferenceSession(RELEASED / "ensemble.onnx")
    scores = list[float]()
    for start in range(0, len(paths), BATCH):
        images = np.stack([crop(path) for path in paths[start : start + BATCH]])
        (found,) = session.run(None, {"images": images})
        scores += found.mean(axis=1).tolist()
    with Path(sys.argv[2]).open("w", newline="") as file:
        csv.writer(file).writerows(zip(paths, scores, strict=True))


if __name__ == "__main__":
    main()
