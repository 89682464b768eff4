"""The training itself: steps, moving average, validation. Knows nothing of files; `run.py` keeps its state."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fiqa_trt.errors import RunError
from fiqa_trt.models.causes import DEFAULT_THRESHOLD, Causes
from fiqa_trt.models.networks import Ensemble, Member
from fiqa_trt.training.dataset import TEST, TRAIN, VAL, Dataset
from fiqa_trt.training.losses import MSECorrLoss, causes_loss, rarity
from fiqa_trt.training.recipe import Recipe

Measures = dict[str, float | None]
Figures = tuple[float | None, float | None, float]
Batch = tuple[Tensor, Tensor, Tensor, Tensor]

ENSEMBLE = "ensemble"
_NARROW = 0.01  # standard deviation of labels, of their whole scale: below it their order is chance
_FEW = 3
_CLIP = 5.0
_PRESENT = 0.3  # severity from which on a cause counts as there
_FALSE = 0.02  # of the rows without it may be said to have a cause
_VALIDATION_BATCH = 64


@dataclasses.dataclass(frozen=True)
class Epoch:
    """What an epoch gave.

    Attributes:
        number: from 1.
        rate: learning rate at its end.
        loss: mean over its steps.
        srcc: of each member that is trained, and of their mean if there are several, on the `val` rows; None where
            their labels are all but alike.
        plcc: likewise, raw.
        rmse: likewise, never None.
        test_srcc: as `srcc`, on the `test` rows, which decide nothing; empty if there are none.
        test_plcc: likewise.
        test_rmse: likewise.
        causes: AUROC of the causes on the `val` rows, present against absent, their mean; None without such.
    """

    number: int
    rate: float
    loss: float
    srcc: Measures
    plcc: Measures
    rmse: dict[str, float]
    test_srcc: Measures = dataclasses.field(default_factory=dict)
    test_plcc: Measures = dataclasses.field(default_factory=dict)
    test_rmse: dict[str, float] = dataclasses.field(default_factory=dict)
    causes: float | None = None

    @property
    def merit(self) -> float:
        """What decides which epoch is kept: SRCC + PLCC of what is trained, or RMSE, negated, where these are None."""
        last = list(self.srcc)[-1]
        srcc, plcc = self.srcc[last], self.plcc[last]
        return -self.rmse[last] if srcc is None or plcc is None else srcc + plcc


def augment(images: Tensor, shift: float, rng: np.random.Generator) -> Tensor:
    """Mirror half of the uint8 [N, S, S, 3] crops and shift each by up to `shift` of its side, edges reflected."""
    count, size = images.shape[:2]
    margin = round(size * shift)
    offsets = rng.integers(-margin, margin + 1, (2, count, 1))
    lines = np.abs(np.arange(size) + offsets)
    rows, columns = np.where(lines < size, lines, 2 * (size - 1) - lines)
    mirrored = rng.random((count, 1)) < 0.5
    columns = np.where(mirrored, columns[:, ::-1], columns)
    index = [torch.from_numpy(np.ascontiguousarray(axis)).to(images.device) for axis in (rows, columns)]
    each = torch.arange(count, device=images.device)
    return images[each[:, None, None], index[0][:, :, None], index[1][:, None, :]]


def rankable(labels: npt.NDArray[np.float32]) -> bool:
    """Whether labels [N] in [0, 1] differ enough for correlations with them to mean something."""
    return len(labels) >= _FEW and float(labels.std()) >= _NARROW


def agreement(scores: npt.NDArray[np.float32], labels: npt.NDArray[np.float32]) -> Figures:
    """SRCC, PLCC and RMSE of scores [N] with labels [N].

    Both correlations are None for labels that are not `rankable`, and 0 for constant scores, as at the start.
    """
    rmse = float(np.sqrt(np.mean((scores - labels) ** 2)))
    if not rankable(labels):
        return None, None, rmse
    if np.ptp(scores) < 1e-5:
        return 0.0, 0.0, rmse
    return float(stats.spearmanr(scores, labels).statistic), float(stats.pearsonr(scores, labels).statistic), rmse


def auroc(values: npt.NDArray[np.float32], present: npt.NDArray[np.bool_]) -> float | None:
    """Share of the pairs of one present and one absent, [N] each, in the right order; None if there are no pairs."""
    count, rest = int(present.sum()), int((~present).sum())
    if not count or not rest:
        return None
    return float((stats.rankdata(values)[present].sum() - count * (count + 1) / 2) / (count * rest))


class Trainer:
    """Trains the members that the recipe names, each with its own MSECorrLoss, and their mean with another; and, where
    the model tells causes, these of each member with `causes_loss`.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, model: Ensemble, device: torch.device) -> None:
        """Takes over `model`.

        Args:
            dataset: rows and pixels.
            recipe: how to train.
            model: with its initial weights.
            device: where to train.
        """
        self.dataset, self.recipe, self.device = dataset, recipe, device
        self.model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.trained = nn.ModuleDict({name: model.members[name] for name in recipe.members})

        def average(mean: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
            # The plain mean at first, so that short trainings do not stay near their beginning.
            share = torch.as_tensor((1 + count) / (10 + count)).clamp(max=recipe.ema)  # on the device, not awaited
            return mean + (new - mean) * (1 - share)

        self.causes = model.spec.causes
        self.averaged = AveragedModel(self.trained, avg_fn=average, use_buffers=True)
        self.optimizer = torch.optim.AdamW(self.trained.parameters(), recipe.rate, weight_decay=recipe.decay)
        self.criterion = MSECorrLoss(recipe.correlation, recipe.mse)
        named = self.model.spec.causes.names
        every = [dataset.labels.causes[name] for name in named]
        self.severities = np.stack(every, axis=1) if named else np.zeros((len(dataset.labels.paths), 0), np.float32)
        self.rows = {side: np.flatnonzero(dataset.labels.split == side) for side in (TRAIN, VAL, TEST)}
        self.rare = rarity(torch.from_numpy(self.severities[self.rows[TRAIN]])).to(device)
        self.steps = max(1, len(self.rows[TRAIN]) // recipe.batch)
        auto = device.type == "cuda" and torch.cuda.is_bf16_supported()
        self._autocast = recipe.precision == "bf16" or (recipe.precision == "auto" and auto)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0 over all epochs."""
        total = self.steps * self.recipe.epochs
        warm = max(1, round(self.recipe.warmup * total))
        if step < warm:
            return self.recipe.rate * (step + 1) / warm
        progress = (step - warm) / max(1, total - warm)
        if self.recipe.schedule == "step":
            return float(self.recipe.rate * 0.1 ** math.floor(3 * progress))
        return self.recipe.rate * (1 + math.cos(math.pi * progress)) / 2

    def _outputs(self, members: nn.ModuleDict, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Scores [N, trained members], and of each of these the causes' logits [N, causes], if there are such."""
        scores, logits = list[Tensor](), list[Tensor]()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast):
            normalised = self.model.normalise(images)
            for member in members.values():
                assert isinstance(member, Member)
                pooled = member.pool(normalised)
                scores.append(member.score(pooled).float())
                if member.causes is not None:
                    logits.append(member.causes(pooled).float())
        return torch.stack(scores, dim=1), logits

    def _batches(self, epoch: int) -> Iterator[Batch]:
        """Augmented images, labels, weights and severities of each step; the next one is read while the last is
        trained on.
        """
        rng = np.random.default_rng([self.recipe.seed, epoch])
        labels = self.dataset.labels

        def read(rows: npt.NDArray[np.int64], seed: int) -> Batch:
            pixels = torch.from_numpy(self.dataset.pixels(rows)).to(self.device)
            images = augment(pixels, self.recipe.shift, np.random.default_rng(seed))
            told = (labels.scores, labels.weights, self.severities)
            targets, weights, severities = (torch.from_numpy(values[rows]).to(self.device) for values in told)
            return images, targets, weights, severities

        chosen = np.array_split(rng.permutation(self.rows[TRAIN]), self.steps)
        seeds = rng.integers(0, 2**63, self.steps)
        with ThreadPoolExecutor(1, "read") as reader:
            ahead: Future[Batch] = reader.submit(read, np.sort(chosen[0]), int(seeds[0]))
            for step in range(self.steps):
                batch = ahead.result()
                if step + 1 < self.steps:
                    ahead = reader.submit(read, np.sort(chosen[step + 1]), int(seeds[step + 1]))
                yield batch

    def epoch(self, number: int, report: Callable[[int], None] = lambda done: None) -> Epoch:
        """Train for an epoch, validate and test. The result depends on the state and on `number` alone.

        Args:
            number: from 1.
            report: called after every step with the number of images done in this epoch and those before.

        Raises:
            RunError: a loss or a gradient is not finite; the weights are as they were before that step.
        """
        torch.manual_seed(self.recipe.seed * 100_003 + number)
        self.trained.train()
        total, rate, done = 0.0, 0.0, (number - 1) * len(self.rows[TRAIN])
        for step, (images, labels, weights, severities) in enumerate(self._batches(number)):
            rate = self.rate((number - 1) * self.steps + step)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            scores, logits = self._outputs(self.trained, images)
            columns = [*scores.unbind(1), scores.mean(1)] if scores.shape[1] > 1 else scores.unbind(1)
            loss = torch.stack([self.criterion(column, labels, weights) for column in columns]).sum()
            for each in logits:
                loss = loss + self.recipe.causes * causes_loss(each, severities, weights, self.rare)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(self.trained.parameters(), _CLIP)
            value = float(loss.detach())
            if not (math.isfinite(value) and math.isfinite(float(norm))):
                raise RunError(
                    f"epoch {number}, step {step + 1} of {self.steps}: the loss is {value:g} and its gradient "
                    f"{float(norm):g}; lower the learning rate ({self.recipe.rate:g}) or train in fp32"
                )
            self.optimizer.step()
            self.averaged.update_parameters(self.trained)
            total += value
            done += len(images)
            report(done)
        return self._validate(number, rate, total / self.steps)

    def predict(self, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """Scores of the averaged weights, float32 [len(rows), trained members], and the severities of the causes,
        float32 [len(rows), causes], the mean over these members.
        """
        members = self.averaged.module
        assert isinstance(members, nn.ModuleDict)
        members.eval()
        scores, causes = [], []
        with torch.inference_mode():
            for start in range(0, len(rows), _VALIDATION_BATCH):
                pixels = self.dataset.pixels(rows[start : start + _VALIDATION_BATCH])
                found, logits = self._outputs(members, torch.from_numpy(pixels).to(self.device))
                scores.append(found.cpu().numpy())
                each = torch.stack(logits).sigmoid().mean(dim=0) if logits else found[:, :0]
                causes.append(each.cpu().numpy())
        return np.concatenate(scores).astype(np.float32), np.concatenate(causes).astype(np.float32)

    def _validate(self, number: int, rate: float, loss: float) -> Epoch:
        scores, causes = self.predict(self.rows[VAL])
        measures = self._measure(VAL, scores)
        tested = self._measure(TEST, self.predict(self.rows[TEST])[0]) if len(self.rows[TEST]) else ({}, {}, {})
        self.causes = self._tuned(causes)
        return Epoch(number, rate, loss, *measures, *tested, self._told_apart(causes))

    def _told_apart(self, causes: npt.NDArray[np.float32]) -> float | None:
        found = list[float]()
        for values, truth in zip(causes.T, self.severities[self.rows[VAL]].T, strict=True):
            clear = (truth == 0) | (truth >= _PRESENT)
            area = auroc(values[clear], truth[clear] > 0)
            found += [] if area is None else [area]
        return float(np.mean(found)) if found else None

    def _tuned(self, causes: npt.NDArray[np.float32]) -> Causes:
        """Thresholds which few of the `val` rows without a cause are above."""
        thresholds = list[float]()
        for values, truth in zip(causes.T, self.severities[self.rows[VAL]].T, strict=True):
            absent = values[truth == 0]
            thresholds.append(float(np.quantile(absent, 1 - _FALSE)) if len(absent) else DEFAULT_THRESHOLD)
        return Causes(self.model.spec.causes.names, tuple(round(value, 4) for value in thresholds))

    def _measure(self, side: str, scores: npt.NDArray[np.float32]) -> tuple[Measures, Measures, dict[str, float]]:
        """SRCC, PLCC and RMSE by member, and of their mean, on the rows of a side."""
        labels = self.dataset.labels.scores[self.rows[side]]
        columns = dict(zip(self.recipe.members, scores.T, strict=True))
        if len(columns) > 1:
            columns[ENSEMBLE] = scores.mean(axis=1)
        found = {name: agreement(values, labels) for name, values in columns.items()}
        return (
            {name: values[0] for name, values in found.items()},
            {name: values[1] for name, values in found.items()},
            {name: values[2] for name, values in found.items()},
        )

    def weights(self) -> dict[str, Tensor]:
        """The averaged weights of the trained members, under the names that they have in the ensemble."""
        members = self.averaged.module
        return {f"members.{name}": value.detach().clone() for name, value in members.state_dict().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything but the epoch's number that the next epoch depends on, as tensors."""
        tensors = {f"model.{name}": value for name, value in self.trained.state_dict().items()}
        tensors |= {f"averaged.{name}": value for name, value in self.averaged.state_dict().items()}
        for index, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in moments.items()}
        return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Go back to a `state`."""
        part: dict[str, dict[str, Tensor]] = {"model": {}, "averaged": {}, "optimizer": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            part[kind][rest] = value
        self.trained.load_state_dict(part["model"])
        self.averaged.load_state_dict(part["averaged"])
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in part["optimizer"].items():
            index, _, moment = name.partition(".")
            moments.setdefault(int(index), {})[moment] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
