"""Causes in training: the columns of the table, their loss, what a checkpoint then tells, thresholds."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from fiqa_trt.engines.opening import CHECKPOINT
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.errors import InputError
from fiqa_trt.models.causes import CAUSES, Causes
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.training.dataset import VAL, Dataset, read_labels
from fiqa_trt.training.loop import Trainer, auroc
from fiqa_trt.training.losses import causes_loss, rarity
from fiqa_trt.training.recipe import Recipe
from fiqa_trt.training.run import Start, TrainingFolder, settle_causes, start, train

RECIPE = Recipe(epochs=2, batch=8, rate=3e-4, ema=0.9, seed=5)


def folder(path: Path) -> TrainingFolder:
    found = TrainingFolder(path)
    found.prepare(resume=False, restart=False)
    return found


def dark(data: Dataset) -> Dataset:
    """The set of `conftest.py`, whose crops differ in their light alone, with that as a cause and an unknown one."""
    light = np.where(data.labels.scores < 0.4, 0.9, 0).astype(np.float32)
    blur = np.where(np.arange(len(light)) % 2, np.nan, 0).astype(np.float32)
    return dataclasses.replace(data, labels=dataclasses.replace(data.labels, causes={"blur": blur, "light": light}))


def test_a_table_may_tell_severities(table: Path, tmp_path: Path) -> None:
    lines = table.read_text().splitlines()
    cells = ["cause_light,cause_blur,cause_weather", *(f"{i / 40:.3f},{'' if i % 2 else 0.5},x" for i in range(40))]
    told = tmp_path / "labels.csv"
    told.write_text("\n".join(f"{line},{cell}" for line, cell in zip(lines, cells, strict=True)))
    labels = read_labels(told, table.parent)
    assert list(labels.causes) == ["blur", "light"]
    assert labels.causes["light"] == pytest.approx(np.arange(40) / 40)
    assert np.isnan(labels.causes["blur"]).tolist() == [bool(i % 2) for i in range(40)]
    assert labels.digest() != read_labels(table).digest()
    told.write_text(told.read_text().replace("0.975,,x", "1.5,,x"))
    with pytest.raises(InputError, match=r"the cause_light 1\.5 is not from 0 to 1"):
        read_labels(told, table.parent)
    told.write_text(told.read_text().replace("1.5,,x", "dark,,x"))
    with pytest.raises(InputError, match="'dark' is not a finite number"):
        read_labels(told, table.parent)


@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**31))
def test_the_loss_is_the_mean_cross_entropy_of_what_is_known(count: int, causes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = torch.tensor(rng.normal(0, 3, (count, causes)), requires_grad=True)
    truth = rng.random((count, causes))
    known = rng.random((count, causes)) < 0.6
    loss = causes_loss(logits, torch.tensor(np.where(known, truth, np.nan)))
    p = 1 / (1 + np.exp(-logits.detach().numpy()))
    each = -(truth * np.log(p) + (1 - truth) * np.log(1 - p))
    assert float(loss.detach()) == pytest.approx(each[known].mean() if known.any() else 0, rel=1e-3, abs=1e-5)
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert bool(torch.isfinite(logits.grad).all())
    assert not logits.grad[torch.tensor(~known)].any()


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_the_share_of_pairs(rows: list[tuple[float, bool]]) -> None:
    values, present = np.array([row[0] for row in rows], np.float32), np.array([row[1] for row in rows])
    pairs = [(a > b) + (a == b) / 2 for a in values[present] for b in values[~present]]
    assert auroc(values, present) == (pytest.approx(np.mean(pairs)) if pairs else None)


@pytest.mark.slow
def test_what_was_learned_is_told_with_thresholds(data: Dataset, tmp_path: Path) -> None:
    told = dark(data)
    done = train(told, dataclasses.replace(RECIPE, causes=3), folder(tmp_path / "a.safetensors"), start([CHECKPOINT]))
    assert done.best.causes is not None
    assert done.best.causes > 0.9
    model = load_checkpoint(tmp_path / "a.safetensors")
    assert model.spec.causes.names == ("blur", "light")
    rows = np.flatnonzero(told.labels.split == VAL)
    with torch.inference_mode():
        scores, causes = (part.numpy() for part in model(torch.from_numpy(told.pixels(rows))))
    assert scores.shape == (len(rows), 2)
    light = told.labels.causes["light"][rows]
    assert causes[light > 0, 1].min() > causes[light == 0, 1].max()
    assert (causes[light == 0, 1] <= model.spec.causes.thresholds[1] + 1e-3).mean() >= 0.9


@pytest.mark.slow
def test_the_released_scores_stay_if_only_causes_are_added(data: Dataset) -> None:
    begun, note = settle_causes(start([CHECKPOINT]), RECIPE, dark(data).labels)
    assert note == "causes: blur, light"
    trainer = Trainer(dark(data), RECIPE, begun.model, torch.device("cpu"))
    trainer.averaged.module.eval()
    rows = np.arange(8)
    with torch.inference_mode():
        before = load_checkpoint(CHECKPOINT)(torch.from_numpy(data.pixels(rows)))[0].numpy()
    assert trainer.predict(rows)[0] == pytest.approx(before, abs=1e-6)  # another order of sums


def heads(begun: Start) -> set[str]:
    return {name for name in begun.given if ".causes." in name}


@pytest.mark.slow
def test_what_becomes_of_causes_that_a_checkpoint_tells(data: Dataset, tmp_path: Path) -> None:
    told, path = dark(data), tmp_path / "a.safetensors"
    train(told, dataclasses.replace(RECIPE, epochs=1), folder(path), start([CHECKPOINT]))
    assert len(heads(start([path]))) == 4
    # The same causes go on from where they were, others begin anew, and without any nothing is told.
    begun, _ = settle_causes(start([path]), RECIPE, told.labels)
    assert len(heads(begun)) == 4
    fewer = dataclasses.replace(told.labels, causes={"light": told.labels.causes["light"]})
    begun, _ = settle_causes(start([path]), RECIPE, fewer)
    assert not heads(begun)
    assert begun.model.spec.causes == Causes.untuned(["light"])
    said = list[str]()
    one = dataclasses.replace(RECIPE, epochs=1)
    train(data, one, folder(tmp_path / "b.safetensors"), start([path]), say=said.append)
    assert said[0].startswith("no causes: the table has no columns cause_blur")
    assert not load_checkpoint(tmp_path / "b.safetensors").spec.causes
    # A member alone learns them only if the other one knows them.
    alone = dataclasses.replace(one, members=MEMBERS[:1])
    train(told, alone, folder(tmp_path / "c.safetensors"), start([CHECKPOINT]), say=said.append)
    assert f"causes are not trained: {MEMBERS[1]} would not know them" in said
    assert not load_checkpoint(tmp_path / "c.safetensors").spec.causes
    train(told, alone, folder(tmp_path / "d.safetensors"), start([path]))
    before, after = load_file(path), load_file(tmp_path / "d.safetensors")
    other = f"members.{MEMBERS[1]}.causes.weight"
    assert torch.equal(before[other], after[other])
    assert load_checkpoint(tmp_path / "d.safetensors").spec.causes.names == ("blur", "light")


def test_all_causes_are_columns_of_a_set() -> None:
    from fiqa_trt.training.crops import Face, make_crop
    from fiqa_trt.training.synthesis import _described

    photo, face = np.zeros((64, 64, 3), np.uint8), Face("a")
    row = _described(make_crop(photo, face, (photo, face), np.random.default_rng(0), 64), face)
    assert [name for name in row if name.startswith("cause_")] == [f"cause_{cause}" for cause in CAUSES]
    assert row["cause_pose"] == ""


def test_the_rarer_a_cause_the_more_it_counts() -> None:
    severities = torch.tensor([[1.0, 1.0], [0.0, 1.0], [float("nan"), 0.0], [0.0, 0.0], [0.0, 0.0]])
    rare = rarity(severities)
    assert rare.tolist() == pytest.approx([3**0.5, 1.5**0.5])
    logits = torch.full((5, 2), -1.0)
    alike = causes_loss(logits, severities)
    assert float(causes_loss(logits, severities, rare=torch.ones(2))) == pytest.approx(float(alike))
    assert float(causes_loss(logits, severities, rare=rare)) > float(alike)
    assert float(rarity(torch.full((4, 1), float("nan")))) == 1
