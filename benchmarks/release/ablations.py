"""What the choices of the released checkpoint are worth: small trainings that differ in one thing.

`python -m benchmarks.release.ablations STUDY SET -o WORK [--backbone FILE]`, STUDY one of `loss`, `weight`,
`wild`, `families`, `width`, `size`. SET is made by `fiqa-trt synthesize`. Everything is kept in WORK, so that a study
that was killed goes on; results are added to `results/ablations.json`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.common import RESULTS, machine
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.training.dataset import Dataset, decode_images, read_labels
from fiqa_trt.training.degradations import FAMILIES
from fiqa_trt.training.loop import agreement
from fiqa_trt.training.recipe import Recipe
from fiqa_trt.training.run import Start, TrainingFolder, start, train

# Of each kind of damage some, chosen before anything was trained.
HELD_OUT = ("occlusion", "haze", "colour_cast", "motion_blur", "sensor_noise", "over_smooth", "pixelate", "webp")
MOBILENET, SHUFFLENET = MEMBERS

Row = dict[str, str]
Keep = Callable[[Row], bool]


@dataclasses.dataclass(frozen=True)
class Study:
    """Where a study takes its data from and keeps its state."""

    set: Path
    work: Path
    backbone: Path | None
    rows: int
    recipe: Recipe

    def dataset(self, name: str, keep: Keep, size: int = 224) -> Dataset:
        """All `val` rows and `rows` of the `train` rows that `keep` accepts, spread evenly over the set."""
        with (self.set / "labels.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        wanted = [row for row in rows if row["split"] == "train" and keep(row)]
        chosen = [wanted[i] for i in np.linspace(0, len(wanted) - 1, min(self.rows, len(wanted))).astype(int)]
        chosen += [row for row in rows if row["split"] == "val"]
        table = self.work / f"{name}.csv"
        with table.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["path", "score", "group", "split"], extrasaction="ignore")
            writer.writeheader()
            writer.writerows(chosen)
        return decode_images(read_labels(table, self.set), self.work / "images", size=size)

    def train(self, name: str, data: Dataset, recipe: Recipe, begun: Start | None = None) -> dict[str, Any]:
        """Figures of the last epoch of a training; those of an earlier call if it finished then.

        Args:
            name: of the data or the start. Together with the recipe's loss and seed it tells trainings apart, so that
                studies share those that they have in common.
            data: to train and validate on.
            recipe: of the training.
            begun: its weights; those of `begin` by default.
        """
        name = f"{name}-{recipe.mse:g}-{recipe.correlation:g}-{recipe.seed}"
        result = self.work / f"{name}.json"
        if not result.exists():
            folder = TrainingFolder(self.work / f"{name}.safetensors")
            resume = folder.state.exists()
            folder.prepare(resume=resume, restart=not resume)
            begun = begun or self.begin(recipe.seed)
            done = train(data, recipe, folder, begun, resume=resume, say=lambda line: print(name, line, flush=True))
            result.write_text(json.dumps(dataclasses.asdict(done.history[-1])))
        return dict(json.loads(result.read_text()))

    def begin(self, seed: int) -> Start:
        """ShuffleNetV2 from the backbone, if there is one; the rest from scratch."""
        return start([self.backbone] if self.backbone else [], seed)


def _everything(row: Row) -> bool:
    return True


def losses(study: Study) -> dict[str, Any]:
    """MSECorrLoss, MSE alone and correlation alone, three seeds each."""
    data = study.dataset("all", _everything)
    kinds = {"MSE + 0.5 (1 - r)": (1.0, 0.5), "MSE": (1.0, 0.0), "1 - r": (0.0, 1.0)}
    results = {}
    for kind, (mse, correlation) in kinds.items():
        runs = []
        for seed in range(3):
            recipe = dataclasses.replace(study.recipe, mse=mse, correlation=correlation, seed=seed)
            runs.append(study.train("all", data, recipe))
        measures = {m: [run[m][SHUFFLENET] for run in runs] for m in ("srcc", "plcc", "rmse")}
        results[kind] = {m: {"mean": float(np.mean(v)), "seeds": v} for m, v in measures.items()}
    return results


def weights(study: Study) -> dict[str, Any]:
    """Lambda."""
    data = study.dataset("all", _everything)
    return {
        f"{weight:g}": study.train("all", data, dataclasses.replace(study.recipe, correlation=weight))
        for weight in (0.1, 0.5, 2.0)
    }


def wild(study: Study) -> dict[str, Any]:
    """Portraits alone against portraits and the wild pool, the same number of crops."""
    portraits = study.dataset("portraits", lambda row: "portraits" in row["source"])
    return {
        "portraits": study.train("portraits", portraits, study.recipe),
        "portraits and wild": study.train("all", study.dataset("all", _everything), study.recipe),
    }


def families(study: Study) -> dict[str, Any]:
    """Trained without HELD_OUT, both members; tested on `val` crops damaged by those alone."""

    def known(row: Row) -> bool:
        return all(float(row[family]) == 0 for family in HELD_OUT)

    data = study.dataset("families", known)
    recipe = dataclasses.replace(study.recipe, members=MEMBERS)
    figures = study.train("families", data, recipe)
    trained = start([next(study.work.glob("families-*.safetensors"))]).model.eval()
    with (study.set / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    others = [family for family in FAMILIES if family not in HELD_OUT] + ["bad_crop"]
    unseen = np.array([not known(row) and all(float(row[o]) == 0 for o in others) for row in rows])
    slots = np.flatnonzero(~data.labels.train)[unseen]
    labels = data.labels.scores[slots]
    torch.set_num_threads(2)
    with torch.inference_mode():
        parts = [trained(torch.from_numpy(data.pixels(slots[i : i + 64]))) for i in range(0, len(slots), 64)]
    scores = torch.cat(parts).numpy()
    columns = {"ensemble": scores.mean(axis=1), **dict(zip(MEMBERS, scores.T, strict=True))}
    held_out = {
        name: dict(zip(("srcc", "plcc", "rmse"), agreement(v, labels), strict=True)) for name, v in columns.items()
    }
    return {"held out": HELD_OUT, "images": len(slots), "unseen families": held_out, "all of val": figures}


def widths(study: Study) -> dict[str, Any]:
    """ShuffleNetV2 x0.5 against x1.0, both from scratch."""
    from torch import nn
    from torchvision.models import shufflenet_v2_x0_5

    data, results = study.dataset("all", _everything), {}
    for width in ("x1.0", "x0.5"):
        begun = start([], 0)
        if width == "x0.5":
            features = shufflenet_v2_x0_5(weights=None)
            features.fc = nn.Linear(1024, 1)
            begun.model.members[SHUFFLENET].features = features
        results[width] = study.train(f"width-{width}", data, study.recipe, begun)
    return results


def sizes(study: Study) -> dict[str, Any]:
    """The same 352 px crops seen at 224 px and at 352 px (0.2 and 0.49 G multiply-adds for both members).

    For this, SET is made with `--size 352`.
    """
    with Image.open(next(study.set.rglob("*.png"))) as crop:
        if crop.width < 352:
            raise SystemExit(f"{study.set} holds crops of {crop.width} px: make it with fiqa-trt synthesize --size 352")
    names = {224: "size-224", 352: "size-352"}
    return {
        f"{size} px": study.train(name, study.dataset("size", _everything, size), study.recipe)
        for size, name in names.items()
    }


STUDIES = {"loss": losses, "weight": weights, "wild": wild, "families": families, "width": widths, "size": sizes}


def main() -> None:
    """Run a study and add its results to those of the others."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("set", type=Path)
    parser.add_argument("-o", "--work", type=Path, required=True)
    parser.add_argument("--backbone", type=Path, help="ShuffleNetV2 weights (.safetensors)")
    parser.add_argument("--rows", type=int, default=4000, help="training crops")
    parser.add_argument("--epochs", type=int, default=4)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    # Lambda as in the first three rounds, whatever the default has become since.
    recipe = Recipe(members=(SHUFFLENET,), epochs=options.epochs, ema=0.99, correlation=0.5)
    study = Study(options.set, options.work, options.backbone, options.rows, recipe)
    found = STUDIES[options.study](study)
    path = RESULTS / "ablations.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    budget = {"rows": options.rows, "epochs": options.epochs, "backbone": options.backbone is not None}
    results[options.study] = {"machine": machine(), "budget": budget, "results": found}
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
