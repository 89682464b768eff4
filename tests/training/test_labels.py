"""Degradations and the labels that come of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_trt.machine.samples import portrait
from fiqa_trt.training.degradations import FAMILIES, apply_chain, draw_chain
from fiqa_trt.training.labels import METRICS, equalise, full_reference

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


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_full_severity_costs_more_than_a_touch(family: str) -> None:
    def label(severity: float) -> float:
        damaged = [FAMILIES[family](FACE, severity, np.random.default_rng(seed)) for seed in range(4)]
        return float(full_reference(damaged, [FACE] * 4).mean())

    assert label(1.0) < label(0.05)


@pytest.mark.slow
def test_metrics_fall_from_identical_to_blurred() -> None:
    blurred = [apply_chain(FACE, [("gaussian_blur", s)], 0) for s in (0.2, 0.5, 0.9)]
    values = full_reference([FACE, *blurred], [FACE] * 4)
    assert values.shape == (4, len(METRICS))
    assert values[0] == pytest.approx(1, abs=1e-3)
    assert (np.diff(values, axis=0) < 0).all()


@given(st.integers(0, 2**32))
def test_chains_can_be_applied(seed: int) -> None:
    chain = draw_chain(np.random.default_rng(seed))
    assert len(chain) <= 8
    assert all(name in FAMILIES and 0 < severity <= 1 for name, severity in chain)


def test_chains_are_broad() -> None:
    chains = [draw_chain(np.random.default_rng(seed)) for seed in range(3000)]
    assert 0.1 < np.mean([not chain for chain in chains]) < 0.18
    used = [name for chain in chains for name, _ in chain]
    assert all(used.count(family) > 100 for family in FAMILIES)
    # Second-order: the same stage twice, in the same image.
    assert 0.05 < np.mean([len(chain) > 3 for chain in chains]) < 0.2


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
