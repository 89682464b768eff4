"""The training pool and loop, on a few crops of a public-domain portrait."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.samples import portrait
from fiqa_trt.training.dataset import Pool, load_pool, synthesize
from fiqa_trt.training.degradations import FAMILIES, apply_chain, draw_chain
from fiqa_trt.training.labels import METRICS, equalise, full_reference
from fiqa_trt.training.loop import Recipe, agreement, augment, fit, predict

FACE = np.asarray(portrait())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_degradation_is_deterministic_and_leaves_its_input_alone(family: str) -> None:
    before = FACE.copy()
    for severity in (0.01, 1.0):
        out = FAMILIES[family](before, severity, np.random.default_rng(3))
        again = FAMILIES[family](before, severity, np.random.default_rng(3))
        assert out.shape == FACE.shape
        assert out.dtype == np.uint8
        assert np.array_equal(out, again)
    assert np.array_equal(before, FACE)


@pytest.mark.parametrize("family", FAMILIES)
def test_full_severity_costs_more_than_a_touch(family: str) -> None:
    def label(severity: float) -> float:
        damaged = [FAMILIES[family](FACE, severity, np.random.default_rng(seed)) for seed in range(4)]
        return float(full_reference(damaged, [FACE] * 4).mean())

    assert label(1.0) < label(0.05)


def test_metrics_fall_from_identical_to_blurred() -> None:
    blurred = [apply_chain(FACE, [("gaussian_blur", s)], np.random.default_rng(0)) for s in (0.2, 0.5, 0.9)]
    values = full_reference([FACE, *blurred], [FACE] * 4)
    assert values.shape == (4, len(METRICS))
    assert values[0] == pytest.approx(1, abs=1e-3)
    assert (np.diff(values, axis=0) < 0).all()


@given(st.integers(0, 2**32))
def test_chains_are_in_the_order_of_application(seed: int) -> None:
    chain = draw_chain(np.random.default_rng(seed))
    order = [list(FAMILIES).index(name) for name, _ in chain]
    assert order == sorted(set(order))
    assert len(chain) <= 3
    assert all(0 < severity <= 1 for _, severity in chain)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=40))
def test_labels_keep_the_order_on_which_all_metrics_agree(rows: list[tuple[float, float]]) -> None:
    metrics = np.array(rows)
    labels = equalise(metrics)
    assert ((labels > 0) & (labels < 1)).all()
    for i, first in enumerate(metrics):
        for j, second in enumerate(metrics):
            if (first >= second).all() and (first > second).any():
                assert labels[i] > labels[j]


def test_labels_of_distinct_values_are_uniform() -> None:
    values = np.arange(99.0)[:, None] ** 3
    assert equalise(values) == pytest.approx(np.arange(1, 100) / 100)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table in the form of `faces.csv`: one portrait, mirrored and turned into three people."""
    folder = tmp_path_factory.mktemp("faces")
    with (folder / "faces.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "pool", "group", "split", "face_x", "face_y", "face_w", "face_h"])
        for index, split in enumerate(["train", "train", "val"]):
            image = Image.fromarray(np.roll(FACE, 40 * index, axis=2 if index == 1 else 1))
            image.save(folder / f"{index}.png")
            writer.writerow([f"{index}.png", "portrait", f"g{index}", split, 60, 40, 100, 120])
    return folder / "faces.csv"


@pytest.fixture(scope="module")
def pool(faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    synthesize(faces, folder, count=64, seed=1, workers=2)
    return folder


def test_a_pool_is_repeatable_and_splits_by_face(faces: Path, pool: Path, tmp_path: Path) -> None:
    synthesize(faces, tmp_path, count=64, seed=1, workers=1)
    assert (tmp_path / "images.npy").read_bytes() == (pool / "images.npy").read_bytes()
    assert (tmp_path / "labels.csv").read_text() == (pool / "labels.csv").read_text()
    rows = list(csv.DictReader((pool / "labels.csv").read_text().splitlines()))
    assert {(row["file"], row["split"]) for row in rows} == {("0.png", "train"), ("1.png", "train"), ("2.png", "val")}


def test_training_repeats_itself_and_writes_what_it_measured(pool: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from fiqa_trt.networks import Ensemble

    data, recipe = load_pool(pool), Recipe(epochs=2, batch=16, seed=5)
    reached = fit(data, tmp_path / "a.safetensors", recipe)
    assert fit(data, tmp_path / "b.safetensors", recipe) == reached
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    model = Ensemble()
    model.load_state_dict(load_file(tmp_path / "a.safetensors"))
    val = np.flatnonzero(data.splits == "val")
    assert agreement(predict(model, data.images[val]), data.labels[val]) == reached


def test_a_label_that_is_not_a_number_stops_the_training(pool: Path, tmp_path: Path) -> None:
    data = load_pool(pool)
    spoiled = Pool(data.images, np.full_like(data.labels, np.nan), data.splits)
    with pytest.raises(FloatingPointError, match="epoch 0, step 0"):
        fit(spoiled, tmp_path / "x.safetensors", Recipe(epochs=1, batch=16))
    assert not (tmp_path / "x.safetensors").exists()


def test_augmentation_shifts_and_mirrors_only() -> None:
    out = augment(np.stack([FACE] * 8), np.random.default_rng(0))
    assert out.shape == (8, *FACE.shape)
    for image in out:
        assert np.abs(image.mean(axis=(0, 1)) - FACE.mean(axis=(0, 1))).max() < 8
    assert len({image.tobytes() for image in out}) > 4
