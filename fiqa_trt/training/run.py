"""A training as a run: what it starts from, its state beside the output, its log and curves, and the checkpoint.

`<output>.training/` holds `state.safetensors` (weights, moving average, optimizer and, as metadata, the history and the
run's fingerprint), `best.safetensors` and, unless another place was given, the decoded images. Each epoch replaces the
state in one step, so a kill costs at most an epoch. When the training is over the checkpoint, its `.log.csv` and its
`.curves.png` stand under their names and the folder is gone.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fiqa_trt.errors import DifferentRun, EngineError, InputError, RunError, already_there, number_of, unwritable
from fiqa_trt.fingerprint import Fingerprint, counted, refuse_difference
from fiqa_trt.models.causes import Causes
from fiqa_trt.models.networks import Ensemble
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.progress import Progress, Report, Say, silent
from fiqa_trt.storage.writing import atomic, beside, check_output, target_of
from fiqa_trt.training.dataset import TRAIN, VAL, Dataset, Labels
from fiqa_trt.training.loop import Epoch, Measures, Trainer, rankable
from fiqa_trt.training.recipe import Recipe
from fiqa_trt.version import __version__

_FINGERPRINT = "fingerprint"
_HISTORY = "history"
_CLASSIFIERS = ("fc", "classifier")  # of a backbone: for other classes than ours, so left out


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        output: the checkpoint.
        best: the epoch whose weights it holds.
        history: all epochs.
        skipped: rows that were left out because their image could not be decoded.
    """

    output: str
    best: Epoch
    history: list[Epoch]
    skipped: int


class TrainingFolder:
    """The state of a training beside its output."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = beside(target_of(output), ".training")
        self.state = self.path / "state.safetensors"
        self.best = self.path / "best.safetensors"

    def prepare(self, *, resume: bool, restart: bool) -> None:
        """Refuse what would lose an earlier training.

        Raises:
            OutputError: the output cannot be written there.
            DifferentRun: something is there and neither `resume` nor `restart` says what to do with it, or there is
                nothing to resume.
        """
        check_output(self.output, (".safetensors",))
        if restart:
            shutil.rmtree(self.path, ignore_errors=True)
        elif resume and not self.state.exists():
            raise DifferentRun(f"nothing to resume: {self.state} does not exist")
        elif self.state.exists() and not resume:
            raise DifferentRun(f"{self.path} holds an unfinished training; --resume continues it, --restart forgets it")
        elif self.output.exists() and not resume:
            raise already_there(self.output)
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as exc:
            raise unwritable(self.path, exc) from exc

    def read(self, fingerprint: Fingerprint, trainer: Trainer) -> list[Epoch]:
        """Bring the trainer back to the last finished epoch; returns the history so far.

        Raises:
            DifferentRun: the state belongs to another training; the difference is named.
            InputError: the state is damaged.
        """
        try:
            with safe_open(self.state, "pt") as file:
                metadata = file.metadata()
            recorded = json.loads(metadata[_FINGERPRINT])
            history = [Epoch(**epoch) for epoch in json.loads(metadata[_HISTORY])]
            tensors = load_file(self.state)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as exc:
            raise InputError(f"{self.state} cannot be read ({exc}); --restart begins anew") from exc
        refuse_difference(str(self.path), recorded, fingerprint)
        trainer.load_state(tensors)
        return history

    def write(self, fingerprint: Fingerprint, trainer: Trainer, history: list[Epoch]) -> None:
        """Keep the state after an epoch. Raises RunError if the disk does not take it."""
        epochs = json.dumps([dataclasses.asdict(epoch) for epoch in history])
        with atomic(self.state) as temporary:
            save_file(trainer.state(), temporary, {_FINGERPRINT: json.dumps(fingerprint), _HISTORY: epochs})

    def finish(self) -> None:
        """Put the best weights in place and drop the state. Raises RunError if the disk does not take them."""
        with atomic(self.output) as temporary:
            shutil.copyfile(self.best, temporary)
        shutil.rmtree(self.path, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class Start:
    """What a training begins with.

    Attributes:
        model: the ensemble.
        given: names of the tensors that came from files; the others are random.
        digest: of those files.
    """

    model: Ensemble
    given: frozenset[str]
    digest: str


def start(init: Sequence[Path], seed: int = 0) -> Start:
    """The ensemble to begin with.

    Args:
        init: checkpoints of this ensemble, of one member of it, or backbones with torchvision's names (ShuffleNetV2 or
            MobileNetV3-Small); later ones win.
        seed: initialises the rest.

    Raises:
        EngineError: a file that is none of these.
    """
    torch.manual_seed(seed)
    model = Ensemble()
    given = set[str]()
    for path in init:
        try:
            tensors = load_file(path)
            with safe_open(path, "pt") as file:
                causes = Causes.of(file.metadata())
        except (OSError, ValueError, SafetensorError) as exc:
            raise EngineError(f"--init {path}: not a safetensors file ({str(exc).splitlines()[0]})") from exc
        if causes and causes.names != model.spec.causes.names:
            model.add_causes(causes)
            given = {name for name in given if not _is_of_causes(name)}
        named = _named(tensors, model)
        if not named:
            raise EngineError(f"--init {path}: neither a checkpoint nor a backbone of {' or '.join(MEMBERS)}")
        try:
            model.load_state_dict(named, strict=False)
        except RuntimeError as exc:
            raise EngineError(f"--init {path}: {str(exc).splitlines()[-1].strip()}") from exc
        given |= set(named)
    return Start(model, frozenset(given), hashlib.sha256(b"".join(path.read_bytes() for path in init)).hexdigest())


def _is_of_causes(name: str) -> bool:
    return name.split(".")[2:3] == ["causes"]


def settle_causes(begun: Start, recipe: Recipe, labels: Labels) -> tuple[Start, str]:
    """What to begin with if causes are to be trained as far as the labels tell them, and a line for the user.

    A member that is not trained must have what the others learn; without severities in the table nothing would keep
    what a checkpoint says of causes true, so that it says nothing of them any more.
    """
    names = tuple(labels.causes) if recipe.causes else ()
    known = begun.model.spec.causes
    others = [name for name in MEMBERS if name not in recipe.members]
    kept = names == known.names
    if others and names and not (kept and all(f"members.{other}.causes.weight" in begun.given for other in others)):
        names, kept = (), False
        note = f"causes are not trained: {others[0]} would not know them"
    elif names:
        note = f"causes: {', '.join(names)}"
    else:
        note = "no causes: the table has no columns cause_blur ..., so the checkpoint will tell none" if known else ""
    if kept:
        return begun, note
    given = frozenset(name for name in begun.given if not _is_of_causes(name))
    if names:
        begun.model.add_causes(Causes.untuned(names))
    elif known:
        begun.model.forget_causes()
    return dataclasses.replace(begun, given=given), note


def untrained(begun: Start, recipe: Recipe) -> list[str]:
    """Members that a checkpoint will not have: neither trained nor wholly given."""
    lacking = {name.split(".")[1] for name in begun.model.state_dict().keys() - begun.given}
    return [name for name in MEMBERS if name in lacking and name not in recipe.members]


def _set_heads(begun: Start, mean_score: float) -> None:
    """New heads predict the mean of the labels at first."""
    for name in MEMBERS:
        for part, layer in begun.model.members[name].named_modules():
            key = f"members.{name}.{part}.bias"
            if isinstance(layer, nn.Linear) and part != "causes" and layer.out_features == 1 and key not in begun.given:
                nn.init.constant_(layer.bias, math.log(mean_score / (1 - mean_score)))


def _named(tensors: dict[str, Tensor], model: Ensemble) -> dict[str, Tensor]:
    """Tensors of a checkpoint or a backbone by their names in the ensemble; empty if they belong to neither."""
    known = set(model.state_dict())
    prefixes = ("", *(f"members.{name}.{inner}" for name in MEMBERS for inner in ("", "features.")))
    for prefix in prefixes:
        named = {prefix + name: value for name, value in tensors.items() if name.split(".")[0] not in _CLASSIFIERS}
        if named and set(named) <= known:
            return named
    return {}


def train(
    dataset: Dataset,
    recipe: Recipe,
    folder: TrainingFolder,
    begun: Start,
    device: str = "cpu",
    resume: bool = False,
    report: Report = silent,
    say: Say = silent,
) -> Trained:
    """Train and write the checkpoint of the best epoch, its log and its curves.

    Args:
        dataset: what to train and validate on.
        recipe: how.
        folder: prepared; its output is the checkpoint, beside which the log and the curves appear.
        begun: of `start`.
        device: `cpu`, `cuda` or `cuda:i`.
        resume: go on with the state beside the output.
        report: receives the number of images done, over all epochs, after every step.
        say: a line after every epoch.

    Raises:
        DifferentRun: the state belongs to another training.
        RunError: the loss is not finite, or the disk is full; the epochs before are kept for `resume`.
    """
    output = folder.output
    begun, note = settle_causes(begun, recipe, dataset.labels)
    if note:
        say(note)
    _set_heads(begun, float(np.clip(dataset.labels.scores.mean(), 0.01, 0.99)))
    untouched = _untouched(begun, recipe)
    trainer = Trainer(dataset, recipe, begun.model, torch.device(device))
    fingerprint = _fingerprint(dataset, recipe, begun)
    history = folder.read(fingerprint, trainer) if resume else list[Epoch]()
    if not resume:
        folder.write(fingerprint, trainer, history)  # so that a kill during the first epoch can be resumed as well
    judges = dataset.labels.scores[trainer.rows[VAL]]
    if not rankable(judges):
        say(
            f"the labels to validate with ({len(judges):,}) are too few or all but alike (deviation {judges.std():.4f} "
            "of the scale): SRCC and PLCC mean nothing there, so the epoch with the lowest RMSE is kept"
        )
    total = len(trainer.rows[TRAIN]) * recipe.epochs
    before = len(trainer.rows[TRAIN]) * len(history)
    for number in range(len(history) + 1, recipe.epochs + 1):
        if _stale(history, recipe):
            say(f"no better epoch in {recipe.patience}: stopped early")
            break
        try:
            epoch = trainer.epoch(number, lambda done: report(Progress(done, total, before=before)))
        except torch.OutOfMemoryError as exc:
            raise RunError(f"{device} has no memory for batches of {recipe.batch}; use a smaller --batch-size") from exc
        history.append(epoch)
        say(describe(epoch))
        if best_of(history) is epoch:
            with atomic(folder.best) as temporary:
                weights = {name: value.cpu().contiguous() for name, value in trainer.weights().items()}
                save_file({**untouched, **weights}, temporary, trainer.causes.metadata())
        folder.write(fingerprint, trainer, history)
        _write_log(output.with_suffix(".log.csv"), history)
        _draw(output.with_suffix(".curves.png"), history)
    folder.finish()
    return Trained(str(output), best_of(history), history, len(dataset.skipped))


def _fingerprint(dataset: Dataset, recipe: Recipe, begun: Start) -> Fingerprint:
    """What the weights depend on."""
    return {
        "version": __version__,
        **counted(recipe),
        "labels": dataset.labels.digest(),
        "images": dataset.identity,
        "init": begun.digest,
    }


def _untouched(begun: Start, recipe: Recipe) -> dict[str, Tensor]:
    """Tensors that were given and are not trained."""
    return {
        name: value.clone()
        for name, value in begun.model.state_dict().items()
        if name in begun.given and name.split(".")[1] not in recipe.members
    }


def best_of(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest SRCC + PLCC (lowest RMSE where labels are all but alike); of equals the first."""
    return max(history, key=lambda epoch: epoch.merit)


def _stale(history: list[Epoch], recipe: Recipe) -> bool:
    return bool(recipe.patience and history and len(history) - best_of(history).number >= recipe.patience)


def describe(epoch: Epoch) -> str:
    """An epoch in a line."""
    validated = _figures(epoch.srcc, epoch.plcc, epoch.rmse)
    tested = f"; test {_figures(epoch.test_srcc, epoch.test_plcc, epoch.test_rmse)}" if epoch.test_srcc else ""
    causes = "" if epoch.causes is None else f"; causes AUROC {epoch.causes:.4f}"
    return f"epoch {epoch.number}: loss {epoch.loss:.4f}, {validated}{tested}{causes}"


def describe_test(epoch: Epoch, count: int) -> str:
    """The agreement on the `test` rows in a line."""
    last = list(epoch.test_srcc)[-1]
    srcc, plcc, rmse = epoch.test_srcc[last], epoch.test_plcc[last], epoch.test_rmse[last]
    values = [("SRCC", srcc), ("PLCC", plcc), ("RMSE", rmse)]
    text = ", ".join(f"{name} {value:.4f}" for name, value in values if value is not None)
    return f"test ({number_of(count, 'image')} that chose nothing): {text} of the scale"


def _figures(srcc: Measures, plcc: Measures, rmse: dict[str, float]) -> str:
    cells, kind = {}, "SRCC/PLCC"
    for name in srcc:
        one, other = srcc[name], plcc[name]
        if one is None or other is None:
            kind, cells[name] = "RMSE", f"{rmse[name]:.4f}"
        else:
            cells[name] = f"{one:.4f}/{other:.4f}"
    return f"{kind} " + "  ".join(f"{name} {cell}" for name, cell in cells.items())


def _write_log(path: Path, history: Sequence[Epoch]) -> None:
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        measures = [f"{side}{measure}" for side in _sides(history) for measure in ("srcc", "plcc", "rmse")]
        names = list(history[0].srcc)
        writer.writerow(["epoch", "rate", "loss", *(f"{measure}_{name}" for measure in measures for name in names)])
        for epoch in history:
            values = [getattr(epoch, measure)[name] for measure in measures for name in names]
            cells = ("" if value is None else f"{value:.6g}" for value in (epoch.rate, epoch.loss, *values))
            writer.writerow([epoch.number, *cells])


def _sides(history: Sequence[Epoch]) -> list[str]:
    return ["", "test_"] if history[0].test_srcc else [""]


def _draw(path: Path, history: Sequence[Epoch]) -> None:
    """Loss, and SRCC (RMSE where labels are all but alike) of each member, over the epochs; of tests dashed."""
    from matplotlib.figure import Figure

    numbers = [epoch.number for epoch in history]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    loss, merit = figure.subplots(1, 2)
    loss.plot(numbers, [epoch.loss for epoch in history], "o-", ms=3)
    loss.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
    measure = "rmse" if None in history[0].srcc.values() else "srcc"
    for side, line in zip(_sides(history), ("o-", "x--"), strict=False):
        for index, name in enumerate(history[0].srcc):
            values = [getattr(epoch, side + measure)[name] for epoch in history]
            if None not in values:
                label = f"{name}, test" if side else name
                merit.plot(numbers, values, line, color=f"C{index}", ms=3, label=label)
    merit.set(xlabel="epoch", ylabel=f"{measure.upper()}, validation")
    merit.legend()
    for axes in (loss, merit):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
