"""`fiqa-trt train`: the label table, the loop, resuming, and what it refuses."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from fiqa_trt.cli import group
from fiqa_trt.engines.opening import CHECKPOINT
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.errors import DifferentRun, EngineError, FiqaError, InputError, RunError
from fiqa_trt.machine.samples import portrait
from fiqa_trt.models.networks import Ensemble
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.training.dataset import Dataset
from fiqa_trt.training.loop import Epoch, Trainer, agreement, augment
from fiqa_trt.training.recipe import Recipe, read_recipe
from fiqa_trt.training.run import TrainingFolder, best_of, describe_test, start, train, untrained

FACE = np.asarray(portrait())
SMALL = Recipe(epochs=3, batch=8, rate=3e-4, ema=0.9, seed=5)


def folder(path: Path, *, resume: bool = False, restart: bool = False) -> TrainingFolder:
    found = TrainingFolder(path)
    found.prepare(resume=resume, restart=restart)
    return found


def test_a_recipe_is_toml_and_options_win(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('epochs = 7\nrate = 1e-4\nmembers = ["mobilenet_v3_small"]\n')
    recipe = read_recipe(config, {"epochs": 9, "seed": None})
    assert recipe == Recipe(members=MEMBERS[:1], epochs=9, rate=1e-4)
    for text, message in {
        "epoch = 1": "unknown name `epoch`",
        "epochs = 0": "between 1 and",
        'epochs = "many"': "kind of 12",
        "mse = 0\ncorrelation = 0": "nothing to learn",
        'members = ["resnet"]': "one or both of",
        'schedule = "linear"': "one of cosine, step",
        "= 3": "not TOML",
    }.items():
        config.write_text(text)
        with pytest.raises(InputError, match=message):
            read_recipe(config, {})


@pytest.mark.slow
def test_training_learns_and_keeps_what_it_measured(data: Dataset, tmp_path: Path) -> None:
    done = train(data, SMALL, folder(tmp_path / "a.safetensors"), start([CHECKPOINT]))
    assert done.history[-1].loss < done.history[0].loss
    assert len(done.history) == 3
    model = load_checkpoint(tmp_path / "a.safetensors")
    rows = np.flatnonzero(~data.labels.train)
    with torch.inference_mode():
        scores = model(torch.from_numpy(data.pixels(rows)))[0].numpy().mean(axis=1)
    assert agreement(scores, data.labels.scores[rows]) == pytest.approx(
        (done.best.srcc["ensemble"], done.best.plcc["ensemble"], done.best.rmse["ensemble"]), abs=1e-5
    )
    log = list(csv.DictReader((tmp_path / "a.log.csv").read_text().splitlines()))
    assert [row["epoch"] for row in log] == ["1", "2", "3"]
    assert float(log[0]["loss"]) == pytest.approx(done.history[0].loss, rel=1e-4)
    assert (tmp_path / "a.curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.curves.png", "a.log.csv", "a.safetensors"]


@pytest.mark.slow
def test_resuming_changes_nothing(data: Dataset, tmp_path: Path) -> None:
    whole = train(data, SMALL, folder(tmp_path / "whole.safetensors"), start([]))

    class Killed(Exception):
        pass

    def kill(line: str) -> None:
        if line.startswith("epoch 2"):
            raise Killed  # epoch 2 is done but not kept: it has to be done again

    part = tmp_path / "part.safetensors"
    with pytest.raises(Killed):
        train(data, SMALL, folder(part), start([]), say=kill)
    with pytest.raises(DifferentRun, match="--resume continues"):
        folder(part)
    with pytest.raises(DifferentRun, match=r"rate: 0\.0003 there, 0\.01 now"):
        train(data, dataclasses.replace(SMALL, rate=0.01), folder(part, resume=True), start([]), resume=True)
    resumed = train(data, SMALL, folder(part, resume=True), start([]), resume=True)
    assert resumed.history == whole.history
    assert part.read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    with pytest.raises(DifferentRun, match="nothing to resume"):
        folder(part, resume=True)
    with pytest.raises(DifferentRun, match="exists already"):
        folder(part)


@pytest.mark.slow
def test_one_member_alone_and_both_again(data: Dataset, tmp_path: Path) -> None:
    first, second = (
        train(
            data,
            dataclasses.replace(SMALL, epochs=1, members=(name,)),
            folder(tmp_path / f"{name}.safetensors"),
            start([]),
        )
        for name in MEMBERS
    )
    assert list(first.best.srcc) == [MEMBERS[0]]
    files = [Path(first.output), Path(second.output)]
    with pytest.raises(EngineError, match=f"but of one member: .* --member {MEMBERS[1]} --init {files[0]} adds"):
        load_checkpoint(files[0])
    assert untrained(start([]), dataclasses.replace(SMALL, members=MEMBERS[:1])) == [MEMBERS[1]]
    begun = start(files)
    assert untrained(begun, dataclasses.replace(SMALL, members=MEMBERS[:1])) == []
    assert begun.given == set(begun.model.state_dict())
    # With the other member given, the output has both, the other one untouched.
    train(data, dataclasses.replace(SMALL, epochs=1, members=MEMBERS[:1]), folder(tmp_path / "c.safetensors"), begun)
    both, other = load_file(tmp_path / "c.safetensors"), load_file(files[1])
    assert all(torch.equal(both[name], other[name]) for name in other)
    load_checkpoint(tmp_path / "c.safetensors")


@pytest.mark.slow
def test_a_backbone_goes_to_its_member_and_its_classifier_nowhere(tmp_path: Path) -> None:
    from torchvision.models import mobilenet_v3_small, shufflenet_v2_x1_0

    for index, network in enumerate((mobilenet_v3_small(weights=None), shufflenet_v2_x1_0(weights=None))):
        file = tmp_path / "b.safetensors"
        save_file(network.state_dict(), file)
        given = start([file]).given
        assert given
        assert all(name.startswith(f"members.{MEMBERS[index]}.features.") for name in given)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(EngineError, match="neither a checkpoint nor a backbone"):
        start([file])
    file.write_text("weights")
    with pytest.raises(EngineError, match="not a safetensors file"):
        start([file])


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(data: Dataset) -> None:
    labels = dataclasses.replace(data.labels, weights=np.full_like(data.labels.weights, np.inf))
    model = Ensemble()
    trainer = Trainer(dataclasses.replace(data, labels=labels), SMALL, model, torch.device("cpu"))
    before = {name: value.clone() for name, value in model.named_parameters()}
    with pytest.raises(RunError, match=r"epoch 1, step 1 of \d+: the loss is nan"):
        trainer.epoch(1)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


@pytest.mark.slow
def test_early_stop(data: Dataset, tmp_path: Path) -> None:
    said = list[str]()
    recipe = dataclasses.replace(SMALL, epochs=30, rate=1e-9, ema=0, patience=1)
    done = train(data, recipe, folder(tmp_path / "a.safetensors"), start([]), say=said.append)
    assert len(done.history) < 30
    assert "stopped early" in said[-1]
    assert done.best == best_of(done.history)


def test_the_best_epoch_is_the_one_with_the_most_merit() -> None:
    epochs = [
        Epoch(i + 1, 0, 0, {"ensemble": s}, {"ensemble": p}, {}) for i, (s, p) in enumerate([(0.8, 0.9), (0.9, 0.85)])
    ]
    assert best_of(epochs).number == 2


@pytest.mark.slow
def test_a_test_split_is_measured_and_chooses_nothing(data: Dataset, tmp_path: Path) -> None:
    split = data.labels.split.copy()
    split[np.flatnonzero(data.labels.train)[:8]] = "test"
    labels = dataclasses.replace(data.labels, split=split)
    # Other labels of the test rows change what is said of them, and nothing else.
    other = dataclasses.replace(labels, scores=np.where(split == "test", 1 - labels.scores, labels.scores))
    said = list[str]()
    one, two = (
        train(
            dataclasses.replace(data, labels=each),
            dataclasses.replace(SMALL, epochs=2, members=MEMBERS[:1]),
            folder(tmp_path / f"{name}.safetensors"),
            start([CHECKPOINT]),
            say=said.append,
        )
        for name, each in (("a", labels), ("b", other))
    )
    name = MEMBERS[0]
    assert (one.best.number, one.best.srcc, one.best.rmse) == (two.best.number, two.best.srcc, two.best.rmse)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert one.best.test_srcc[name] == pytest.approx(-two.best.test_srcc[name])  # type: ignore[operator]
    model = load_checkpoint(tmp_path / "a.safetensors")
    rows = np.flatnonzero(split == "test")
    with torch.inference_mode():
        scores = model(torch.from_numpy(data.pixels(rows)))[0].numpy()[:, list(MEMBERS).index(name)]
    assert agreement(scores, labels.scores[rows])[2] == pytest.approx(one.best.test_rmse[name], abs=1e-5)
    assert all("; test SRCC/PLCC" in line for line in said if line.startswith("epoch"))
    log = list(csv.DictReader((tmp_path / "a.log.csv").read_text().splitlines()))
    assert float(log[1][f"test_rmse_{name}"]) == pytest.approx(one.history[1].test_rmse[name], rel=1e-4)
    assert re.search(r"that chose nothing\): .* RMSE 0\.\d+ of the scale$", describe_test(one.best, 8))


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 0.004])
def test_where_labels_are_all_but_alike_rmse_chooses(data: Dataset, tmp_path: Path, spread: float) -> None:
    scores = data.labels.scores.copy()
    alike = np.flatnonzero(data.labels.split == "val")
    scores[alike] = 0.4 + spread * (np.arange(len(alike)) % 2)
    labels, said = dataclasses.replace(data.labels, scores=scores), list[str]()
    done = train(
        dataclasses.replace(data, labels=labels),
        dataclasses.replace(SMALL, members=MEMBERS[:1]),
        folder(tmp_path / "a.safetensors"),
        start([CHECKPOINT]),
        say=said.append,
    )
    said = [line for line in said if not line.startswith("no causes")]  # of a table without them
    assert "the epoch with the lowest RMSE is kept" in said[0]
    assert done.best.rmse == min((epoch.rmse for epoch in done.history), key=lambda rmse: rmse[MEMBERS[0]])
    assert done.best.srcc == done.best.plcc == {MEMBERS[0]: None}
    assert all("RMSE" in line and "nan" not in line for line in said)
    assert "NaN" not in json.dumps(dataclasses.asdict(done))
    assert (tmp_path / "a.curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("schedule", ["cosine", "step"])
def test_the_rate_rises_and_falls(data: Dataset, schedule: str) -> None:
    recipe = dataclasses.replace(SMALL, epochs=20, warmup=0.1, schedule=schedule)
    trainer = Trainer(data, recipe, Ensemble(), torch.device("cpu"))
    rates = np.array([trainer.rate(step) for step in range(trainer.steps * 20)])
    assert rates.argmax() == round(0.1 * len(rates)) - 1
    assert rates.max() == pytest.approx(recipe.rate)
    assert (np.diff(rates[rates.argmax() :]) <= 0).all()
    assert rates[-1] <= recipe.rate / 99


def test_augmentation_shifts_and_mirrors_only() -> None:
    images = torch.from_numpy(np.stack([FACE] * 8))
    out = augment(images, 0.04, np.random.default_rng(0)).numpy()
    assert out.shape == images.shape
    margin = round(FACE.shape[0] * 0.04)
    inner = FACE[2 * margin : -2 * margin, 2 * margin : -2 * margin]
    for image in out:
        views = (image, image[:, ::-1])
        shifts = [(y, x) for y in range(-margin, margin + 1) for x in range(-margin, margin + 1)]
        assert any(
            np.array_equal(
                view[2 * margin - y : view.shape[0] - 2 * margin - y, 2 * margin - x : view.shape[1] - 2 * margin - x],
                inner,
            )
            for view in views
            for y, x in shifts
        )
    assert len({image.tobytes() for image in out}) > 4


def test_weights_count(data: Dataset) -> None:
    from fiqa_trt.training.losses import MSECorrLoss

    x, y = torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([0.2, 0.3, 0.5, 0.7])
    repeated = MSECorrLoss()(x[[0, 1, 2, 2, 2, 3]], y[[0, 1, 2, 2, 2, 3]])
    assert MSECorrLoss()(x, y, torch.tensor([1.0, 1, 3, 1])) == pytest.approx(float(repeated), abs=1e-6)


def call(*arguments: object) -> tuple[int, str]:
    done = CliRunner().invoke(group, ["train", *map(str, arguments)])
    if isinstance(done.exception, FiqaError):
        return done.exception.exit_code, str(done.exception)
    return done.exit_code, done.output


@pytest.mark.slow
def test_the_command(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    command = [sys.executable, "-m", "fiqa_trt", "train", str(table), "-o", str(out), "--epochs", "1", "--rate", "1e-5"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["skipped"] == 2
    assert "left out: " in done.stderr
    assert "epoch 1: loss" in done.stderr
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, len(again.stderr.splitlines())) == (2, 1)
    assert "--restart replaces it" in again.stderr


@pytest.mark.slow
def test_mistakes_of_the_command(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.safetensors"
    for arguments, message in {
        (table, "-o", tmp_path / "m.pt"): ".safetensors",
        (table, "-o", tmp_path / "no" / "m.safetensors"): "does not exist",
        (table, "-o", out, "--resume"): "nothing to resume",
        (table, "-o", out, "--resume", "--restart"): "either",
        (table, "-o", out, "--epochs", 0): "epochs = 0",
        (table, "-o", out, "--init", tmp_path / "gone.safetensors"): "gone.safetensors",
        (table, "-o", out, "--device", "tpu"): "--device tpu",
        (table, "-o", out, "--config", tmp_path / "c.toml"): "c.toml",
        (tmp_path / "gone.csv", "-o", out): "gone.csv",
    }.items():
        code, text = call(*arguments)
        assert (code, message in text) == (2, True), text
    assert not list(tmp_path.glob("m.*"))
