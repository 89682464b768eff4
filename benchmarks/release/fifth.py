"""The fifth round: a few labelled crops, and many that the ensemble labels itself, with severities of causes.

`python -m benchmarks.release.fifth SET -o work --init FILE --to FILE`: SET is what `fiqa-trt synthesize` made; WORK is
that of `causes.py fit`, whose crops of the `train` faces take part with the scores of INIT, lower the more of a face
is covered. INIT has heads of causes, as `causes.py fit` makes them.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path

import cv2
import numpy as np
import torch

from benchmarks.release.causes import pooled
from benchmarks.release.pictures import SIZE, Floats, Pictures, kept
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.models.causes import CAUSES
from fiqa_trt.training.crops import SEVERE_COVER
from fiqa_trt.training.dataset import TRAIN, Dataset, Labels, read_labels
from fiqa_trt.training.recipe import read_recipe
from fiqa_trt.training.run import TrainingFolder, start, train
from fiqa_trt.training.synthesis import COVER

RECIPE = Path(__file__).parent / "fifth.toml"


def own_scores(checkpoint: Path, work: Path, crops: Pictures) -> Floats:
    """The ensemble's scores, float32 [N], times what is left of the score where something covers the face: what stands
    before a face is what it has not learned yet.
    """
    network = load_checkpoint(checkpoint)
    with torch.inference_mode():
        parts = zip(network.each(), pooled(network, work, "train", crops), strict=True)
        scores = torch.stack([member.score(torch.from_numpy(features)) for member, features in parts]).mean(dim=0)
    covered = np.nan_to_num(crops.causes[:, CAUSES.index("occlusion")]) / SEVERE_COVER
    return np.asarray(scores.numpy() * (1 - COVER * covered), np.float32)


def joined(labels: Labels, crops: Pictures, scores: Floats, cache: Path) -> Dataset:
    """Both, in one array on the disk; the crops are all of `train`."""
    count, rows = len(labels.paths), len(crops.rows)
    images = np.lib.format.open_memmap(cache, "w+", np.uint8, (count + rows, SIZE, SIZE, 3))
    for index, path in enumerate(labels.paths):
        image = cv2.imread(path)
        if image is None:
            raise OSError(f"cannot read {path}")
        images[index] = image[..., ::-1]
    for index in range(rows):
        images[count + index] = crops.pixels[index]
    both = Labels(
        [*labels.paths, *(f"{row['path']} {index}" for index, row in enumerate(crops.rows))],
        np.concatenate([labels.scores, scores]),
        np.concatenate([labels.weights, np.ones(rows, np.float32)]),
        np.concatenate([labels.split, np.full(rows, TRAIN)]),
        labels.notes,
        {name: np.concatenate([labels.causes[name], crops.causes[:, k]]) for k, name in enumerate(CAUSES)},
    )
    return Dataset(both, images, np.arange(count + rows), [], both.digest())


def main() -> None:
    """Train both members."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path)
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    options = parser.parse_args()
    with (options.set / "labels.csv").open(newline="") as file:
        print(f"{sum(1 for _ in csv.reader(file)) - 1} labelled crops")
    crops = kept(options.work, "train", 0, lambda: iter(()))
    labels = read_labels(options.set / "labels.csv")
    data = joined(labels, crops, own_scores(options.init, options.work, crops), options.work / "fifth.npy")
    folder = TrainingFolder(options.to)
    folder.prepare(resume=False, restart=True)
    done = train(data, read_recipe(RECIPE, {}), folder, start([options.init]), say=print)
    print(dataclasses.asdict(done.best))


if __name__ == "__main__":
    main()
