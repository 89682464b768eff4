"""Training of the ensemble on a pool: both members jointly, each with its own MSECorrLoss."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

from fiqa_trt.networks import Ensemble, ShuffleNetV2
from fiqa_trt.spec import MEMBERS
from fiqa_trt.training.dataset import Pool
from fiqa_trt.training.losses import MSECorrLoss


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run besides the pool.

    Attributes:
        epochs: passes over the `train` split.
        batch: images in a batch.
        rate: peak learning rate of the one-cycle schedule (AdamW).
        decay: weight decay.
        correlation: lambda of MSECorrLoss.
        seed: of initialisation, order and augmentation.
        backbone: ShuffleNetV2 weights to start from, or None.
    """

    epochs: int = 6
    batch: int = 32
    rate: float = 1.5e-3
    decay: float = 1e-2
    correlation: float = 0.5
    seed: int = 0
    backbone: str | None = None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """SRCC and PLCC (raw) of each member and of their mean with the labels."""

    srcc: dict[str, float]
    plcc: dict[str, float]


def augment(images: npt.NDArray[np.uint8], rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Mirror half of the uint8 [N, H, W, 3] crops and shift each by up to 4 %, edges reflected."""
    out = np.empty_like(images)
    margin = round(images.shape[1] * 0.04)
    for index, image in enumerate(images):
        padded = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), "reflect")
        top, left = rng.integers(0, 2 * margin + 1, 2)
        view = padded[top : top + image.shape[0], left : left + image.shape[1]]
        out[index] = view[:, ::-1] if rng.random() < 0.5 else view
    return out


def predict(model: Ensemble, images: npt.NDArray[np.uint8], batch: int = 32) -> npt.NDArray[np.float32]:
    """Member scores, float32 [N, members], of uint8 [N, 224, 224, 3] crops."""
    model.eval()
    with torch.inference_mode():
        parts = [model(torch.from_numpy(np.array(images[i : i + batch]))) for i in range(0, len(images), batch)]
    return np.asarray(torch.cat(parts).numpy(), np.float32)


def agreement(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> Agreement:
    """How well member scores [N, members] follow labels [N]; 0 for a constant one, as at the start of a training."""
    columns = {name: scores[:, index] for index, name in enumerate(MEMBERS)} | {"ensemble": scores.mean(axis=1)}
    constant = {name for name, values in columns.items() if np.ptp(values) < 1e-5}
    return Agreement(
        {n: 0.0 if n in constant else float(stats.spearmanr(v, labels).statistic) for n, v in columns.items()},
        {n: 0.0 if n in constant else float(stats.pearsonr(v, labels).statistic) for n, v in columns.items()},
    )


def fit(pool: Pool, out: Path, recipe: Recipe) -> Agreement:
    """Train on the pool's `train` split and write the ensemble to `out` (safetensors) after each epoch.

    Returns the agreement on the `val` split after the last epoch; prints it after each.

    Raises:
        FloatingPointError: the loss is not finite; the step and the value are named.
    """
    from safetensors.torch import load_file, save_file

    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    model = Ensemble().to(memory_format=torch.channels_last)
    if recipe.backbone:
        shufflenet = model.members[MEMBERS[1]]
        assert isinstance(shufflenet, ShuffleNetV2)
        shufflenet.load_backbone(load_file(recipe.backbone))
    criterion = MSECorrLoss(recipe.correlation)
    train, val = np.flatnonzero(pool.splits == "train"), np.flatnonzero(pool.splits == "val")
    steps = len(train) // recipe.batch
    optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=recipe.decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.rate, total_steps=steps * recipe.epochs)
    reached = Agreement({}, {})
    for epoch in range(recipe.epochs):
        began, total = time.monotonic(), 0.0
        model.train()
        order = rng.permutation(train)
        for step in range(steps):
            chosen = np.sort(order[step * recipe.batch : (step + 1) * recipe.batch])
            images, labels = augment(pool.images[chosen], rng), torch.from_numpy(pool.labels[chosen])
            scores: Tensor = model(torch.from_numpy(images))
            loss = sum(
                (criterion(scores[:, i], labels) for i in range(len(MEMBERS))), criterion(scores.mean(1), labels)
            )
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at epoch {epoch}, step {step}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
            if step % 50 == 0:
                print(f"epoch {epoch} step {step}/{steps} loss {total / (step + 1):.4f}", flush=True)
        reached = agreement(predict(model, pool.images[val]), pool.labels[val])
        seconds = time.monotonic() - began
        print(json.dumps({"epoch": epoch, "seconds": round(seconds), **dataclasses.asdict(reached)}), flush=True)
        partial = out.with_suffix(".tmp")
        save_file({name: value.contiguous() for name, value in model.state_dict().items()}, partial)
        partial.replace(out)
    return reached
