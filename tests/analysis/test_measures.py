"""Agreement with ratings and the EDC, against scipy and against an example worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from fiqa_trt.analysis import measures
from fiqa_trt.analysis.evaluation import (
    MEASURES,
    agreement,
    comparison,
    edc,
    fit_logistic,
    logistic,
    threshold_at_fmr,
    threshold_at_fnmr,
)
from fiqa_trt.errors import InputError

QUALITY = np.arange(10) / 10
SIMILARITY = np.array([0.1, 0.9, 0.2, 0.8, 0.7, 0.9, 0.4, 0.8, 0.9, 0.6])


def test_agreement_is_what_scipy_says() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(300)
    ratings = scores**2 + rng.normal(0, 0.2, 300)
    found = agreement(scores, ratings, resamples=50)
    values = {name: estimate.value for name, estimate in found.measures.items()}
    assert tuple(values) == MEASURES
    assert values["srcc"] == pytest.approx(stats.spearmanr(scores, ratings).statistic)
    assert values["krcc"] == pytest.approx(stats.kendalltau(scores, ratings).statistic)
    assert values["plcc"] == pytest.approx(stats.pearsonr(scores, ratings).statistic)
    assert values["rmse"] == pytest.approx(np.sqrt(((scores - ratings) ** 2).mean()))
    mapped = logistic(scores, *found.logistic)
    assert values["plcc_logistic"] == pytest.approx(stats.pearsonr(mapped, ratings).statistic)
    assert values["rmse_logistic"] < values["rmse"]


@pytest.mark.slow
def test_the_interval_is_that_of_the_bootstrap() -> None:
    rng = np.random.default_rng(1)
    scores = rng.normal(size=200)
    ratings = scores + rng.normal(size=200)
    found = agreement(scores, ratings, resamples=400).measures["plcc"]
    reference = stats.bootstrap(
        (scores, ratings), lambda x, y: stats.pearsonr(x, y).statistic, paired=True, vectorized=False,
        n_resamples=400, method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert (found.low, found.high) == pytest.approx((reference.low, reference.high), abs=0.03)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_logistic_finds_its_own_parameters(sign: int) -> None:
    scores = np.linspace(0, 1, 100)
    ratings = logistic(sign * scores, 4.5, 1.2, sign * 0.4, 0.1)
    mapped = logistic(sign * scores, *fit_logistic(sign * scores, ratings))
    assert mapped == pytest.approx(ratings, abs=1e-4)


@pytest.mark.parametrize(
    ("scores", "ratings", "message"),
    [
        ([0.1] * 9, list(range(9)), "every score is 0.1"),
        (list(range(9)), [3.0] * 9, "every rating is 3"),
        ([1.0, 2.0], [1.0, 2.0], "at least 8"),
        ([*range(8), np.nan], list(range(9)), "a score is not a finite"),
    ],
)
def test_what_cannot_be_compared(scores: list[float], ratings: list[float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        agreement(np.array(scores, float), np.array(ratings, float))


@pytest.mark.parametrize("curve", [np.exp, np.sqrt, np.log, lambda x: np.exp(8 * x), lambda x: 1 - x])
def test_ratings_on_a_part_of_the_logistic_are_fitted_as_well(curve: Callable[[Any], Any]) -> None:
    """Two models, or two precisions of one: no parameters are best, and those that run on must not count as none."""
    scores = np.random.default_rng(0).uniform(0.2, 0.9, 300)
    ratings = curve(scores)
    found = agreement(scores, ratings / np.ptp(ratings), resamples=0).measures
    assert found["rmse_logistic"].value < 0.01
    assert found["plcc_logistic"].value > abs(found["plcc"].value) - 1e-4


def test_a_draw_costs_a_few_steps_where_the_fit_runs_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a straight line no logistic is best, and to look for it in every draw took minutes."""
    taken = 0

    def counting(*arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        return logistic(*arguments)

    monkeypatch.setattr(measures, "logistic", counting)
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.1, 0.9, 200)
    found = agreement(scores, scores + rng.normal(0, 0.06, 200), resamples=40).measures["rmse_logistic"]
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert taken < 5000 + 40 * 100


def test_edc_worked_out_by_hand() -> None:
    curve = edc(QUALITY, SIMILARITY, 0.5)
    # Three errors in ten; then 2 of 9, 2 of 8, 1 of 7, 1 of 6, 1 of 5, 1 of 4, 0 of 3, 0 of 2, 0 of 1.
    assert curve.fnmr == pytest.approx([3 / 10, 2 / 9, 2 / 8, 1 / 7, 1 / 6, 1 / 5, 1 / 4, 0, 0, 0])
    assert curve.ideal == pytest.approx([3 / 10, 2 / 9, 1 / 8, 0, 0, 0, 0, 0, 0, 0])
    # Trapezia up to 20 %: (3/10 + 2/9) / 2 * 0.1 + (2/9 + 1/4) / 2 * 0.1.
    assert curve.pauc(0.2) == pytest.approx(0.1 * (3 / 10 + 2 / 9) / 2 + 0.1 * (2 / 9 + 1 / 4) / 2)
    assert curve.at(0.25) == pytest.approx((2 / 8 + 1 / 7) / 2)


def test_the_threshold_is_fixed_before_anything_is_discarded() -> None:
    threshold = threshold_at_fnmr(SIMILARITY, 0.3)
    assert threshold == 0.6
    assert edc(QUALITY, SIMILARITY, threshold).fnmr[0] == pytest.approx(0.3)
    assert threshold_at_fmr(np.array([0.1, 0.2, 0.3, 0.4]), 0.25) == pytest.approx(0.3, abs=1e-9)


def test_pairs_of_equal_quality_have_no_order() -> None:
    quality = np.array([0.1, 0.1, 0.1, 0.1, 0.9, 0.9])
    one = edc(quality, np.array([0.0, 1, 1, 1, 1, 1]), 0.5)
    other = edc(quality, np.array([1, 1, 1, 0.0, 1, 1]), 0.5)
    assert one.fnmr == pytest.approx(other.fnmr)
    assert one.fnmr[2] == pytest.approx(0.5 / 4)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=5, max_size=60), st.floats(0.05, 0.9))
def test_nothing_is_below_the_ideal_and_areas_are_integrals(rows: list[tuple[int, int]], share: float) -> None:
    quality, similarity = np.array(rows, float).T
    curve = edc(quality, similarity, 5)
    assert (curve.ideal <= curve.fnmr + 1e-12).all()
    grid = np.unique(np.append(np.linspace(0, share, 2001), curve.discard[curve.discard < share]))
    reference = integrate.trapezoid(np.interp(grid, curve.discard, curve.fnmr), grid)
    assert curve.pauc(share) == pytest.approx(reference, abs=1e-9)


def test_rates_that_so_few_pairs_cannot_show_are_refused() -> None:
    others = np.linspace(0, 1, 300)
    with pytest.raises(
        InputError, match=r"an FMR of 0\.001 cannot .* 300 non-mated pairs: the smallest is --fmr 0\.0034"
    ):
        threshold_at_fmr(others, 0.001)
    assert (others >= threshold_at_fmr(others, 0.0034)).sum() == 1
    assert (others >= threshold_at_fmr(others, 0)).sum() == 0
    with pytest.raises(InputError, match=r"an FNMR of 0\.05 cannot .* 10 mated pairs: the smallest is --fnmr 0\.1"):
        threshold_at_fnmr(SIMILARITY, 0.05)


@pytest.mark.slow
def test_a_difference_is_that_of_a_paired_bootstrap() -> None:
    rng = np.random.default_rng(4)
    ratings = rng.uniform(1, 5, 60)
    one, other = ratings + rng.normal(0, 0.5, 60), ratings + rng.normal(0, 1, 60)
    found = comparison(one, other, ratings, resamples=300, seed=7)
    assert found.one == agreement(one, ratings, resamples=300, seed=7)
    assert found.other == agreement(other, ratings, resamples=300, seed=7)
    draws, again = [], np.random.default_rng(7)
    for _ in range(300):
        rows = again.integers(0, 60, 60)
        plcc = [stats.pearsonr(side[rows], ratings[rows]).statistic for side in (one, other)]
        draws.append(plcc[0] - plcc[1])
    assert [found.difference["plcc"].low, found.difference["plcc"].high] == pytest.approx(
        np.percentile(draws, [2.5, 97.5]).tolist()
    )
    same = comparison(one, one, ratings, resamples=9).difference
    assert all((each.value, each.low, each.high) == (0, 0, 0) for each in same.values())
    with pytest.raises(InputError, match="every score is 1"):
        comparison(one, np.ones(60), ratings)


def test_every_draw_is_reported() -> None:
    scores, done = np.linspace(0, 1, 20), list[int]()
    agreement(scores, scores, resamples=5, report=done.append)
    assert done == [1, 2, 3, 4, 5]
