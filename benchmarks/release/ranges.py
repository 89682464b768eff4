"""The shipped INT8 ranges: `calibration/int8_ranges.json`. `python -m benchmarks.release.ranges SET`.

SET is made by `fiqa-trt synthesize`: 512 crops of its `train` rows, spread evenly, so undamaged to severe.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np

from benchmarks.release.model_card import read_image
from fiqa_trt.building.calibration import MAX_CROPS, measure
from fiqa_trt.engines.opening import CHECKPOINT

OUTPUT = Path(__file__).parents[2] / "calibration" / "int8_ranges.json"


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path)
    options = parser.parse_args()
    with (options.set / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "train"]
    chosen = [rows[index] for index in np.linspace(0, len(rows) - 1, MAX_CROPS).astype(int)]
    crops = np.stack([read_image(options.set / row["path"]) for row in chosen])
    ranges = measure(
        CHECKPOINT, crops, "crops of the synthesized training set, undamaged to severe (see the model card)"
    )
    ranges.write(OUTPUT)
    print(f"{len(ranges.layers)} layers")


if __name__ == "__main__":
    main()
