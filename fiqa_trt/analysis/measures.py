"""How scores agree with ratings."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fiqa_trt.errors import InputError

Values = npt.NDArray[np.float64]

MEASURES = ("srcc", "krcc", "plcc", "plcc_logistic", "rmse", "rmse_logistic")
_NARROWEST = 1e-6  # width of a logistic
_FLAT = 1e-9  # of the ratings' span: what is left of it is rounding
MIN_ROWS = 8  # a 4-parameter fit of fewer points says nothing


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap 95 % interval, None where nothing was drawn."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How scores agree with ratings.

    Attributes:
        rows: pairs of score and rating.
        measures: each of MEASURES. SRCC and KRCC (tau-b) compare orders; PLCC is Pearson's r, raw and after the
            logistic; RMSE is in units of the rating, raw (for scores of that scale) and after the logistic.
        logistic: its four parameters, see `logistic`.
    """

    rows: int
    measures: dict[str, Estimate]
    logistic: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How two scores of the same images agree with their ratings.

    Attributes:
        one: of the one.
        other: of the other.
        difference: the measures of the one less those of the other. The interval is that of the paired bootstrap, in
            which each draw is of the same images for both: a difference whose interval is without 0 is hardly chance.
    """

    one: Agreement
    other: Agreement
    difference: dict[str, Estimate]


def logistic(scores: Values, high: float, low: float, middle: float, width: float) -> Values:
    """The 4-parameter logistic of VQEG (2000) and Sheikh et al. (2006): monotonic from `low` to `high`."""
    from scipy.special import expit

    return np.asarray(low + (high - low) * expit((scores - middle) / max(abs(width), _NARROWEST)))


def _slopes(scores: Values, high: float, low: float, middle: float, width: float) -> Values:
    """Derivatives of `logistic` by its parameters, [N, 4]."""
    from scipy.special import expit

    scale = max(abs(width), _NARROWEST)
    distance = (scores - middle) / scale
    share = expit(distance)
    by_middle = (low - high) * share * (1 - share) / scale
    return np.stack([share, 1 - share, by_middle, by_middle * distance * np.sign(width)], axis=1)


def fit_logistic(
    scores: Values, ratings: Values, start: Sequence[float] | None = None
) -> tuple[float, float, float, float]:
    """Least-squares parameters of `logistic` that maps scores to ratings.

    Where the least squares do not converge, or end in one value for all scores, it is the logistic that they begin
    with, which is monotonic.

    Args:
        scores: float64 [N].
        ratings: float64 [N].
        start: the parameters for much the same rows, from which a few steps are enough.
    """
    from scipy.optimize import least_squares

    rising = np.corrcoef(scores, ratings)[0, 1] >= 0
    ends = (ratings.max(), ratings.min()) if rising else (ratings.min(), ratings.max())
    plain = (*ends, float(scores.mean()), max(float(scores.std()), _NARROWEST))
    try:
        # Steps into the void are no one's concern.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            # Near a straight line the parameters run on for ever; what was found by then is as good.
            begin, steps, enough = (plain, 4000, 1e-8) if start is None else (start, 50, 1e-5)
            found = least_squares(
                lambda p: logistic(scores, *p) - ratings, begin, lambda p: _slopes(scores, *p), method="lm",
                max_nfev=steps, ftol=enough,
            ).x  # fmt: skip
    except (RuntimeError, ValueError):
        found = begin
    mapped = logistic(scores, *found)
    if not (np.isfinite(mapped).all() and np.ptp(mapped) > _FLAT * np.ptp(ratings)):
        found = plain
    high, low, middle, width = (float(value) for value in found)
    return high, low, middle, abs(width)


def _plcc(x: Values, y: Values) -> float:
    return float(np.corrcoef(x, y)[0, 1])


def _measure(scores: Values, ratings: Values, start: Sequence[float]) -> dict[str, float]:
    from scipy import stats

    mapped = logistic(scores, *fit_logistic(scores, ratings, start))
    return {
        "srcc": float(stats.spearmanr(scores, ratings).statistic),
        "krcc": float(stats.kendalltau(scores, ratings).statistic),
        "plcc": _plcc(scores, ratings),
        "plcc_logistic": _plcc(mapped, ratings),
        "rmse": float(np.sqrt(np.mean((scores - ratings) ** 2))),
        "rmse_logistic": float(np.sqrt(np.mean((mapped - ratings) ** 2))),
    }


def comparable(scores: Values, ratings: Values) -> bool:
    """Whether there are enough rows, and not all alike, for `agreement`."""
    return bool(len(scores) >= MIN_ROWS and np.ptp(scores) > 0 and np.ptp(ratings) > 0)


def agreement(
    scores: Values,
    ratings: Values,
    resamples: int = 1000,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Agreement:
    """SRCC, KRCC, PLCC and RMSE of scores [N] with ratings [N], with percentile bootstrap 95 % intervals over rows.

    Args:
        scores: float64 [N], any monotonic scale.
        ratings: float64 [N], any scale.
        resamples: bootstrap draws; 0 gives no intervals.
        seed: of the draws.
        report: receives the number of draws done.

    Raises:
        InputError: fewer than MIN_ROWS rows, a value that is not finite, all scores or all ratings alike.
    """
    return _agreements([scores], ratings, resamples, seed, report)[0][0]


def comparison(
    scores: Values,
    others: Values,
    ratings: Values,
    resamples: int = 1000,
    seed: int = 0,
    report: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """How much better or worse scores [N] agree with ratings [N] than other scores [N] of the same images do.

    Args:
        scores: float64 [N], any monotonic scale.
        others: float64 [N], any monotonic scale.
        ratings: float64 [N], any scale.
        resamples: bootstrap draws; 0 gives no intervals.
        seed: of the draws.
        report: receives the number of draws done.

    Raises:
        InputError: as `agreement`.
    """
    (one, other), draws = _agreements([scores, others], ratings, resamples, seed, report)
    difference = {
        name: _estimate(one.measures[name].value - other.measures[name].value, [a[name] - b[name] for a, b in draws])
        for name in MEASURES
    }
    return Comparison(one, other, difference)


def _agreements(
    sides: Sequence[Values], ratings: Values, resamples: int, seed: int, report: Callable[[int], None]
) -> tuple[list[Agreement], list[list[dict[str, float]]]]:
    """The agreement of each side with the ratings, and the measures of the sides in each draw."""
    if len(ratings) < MIN_ROWS:
        raise InputError(f"{len(ratings)} rows with score and rating; at least {MIN_ROWS} are needed")
    for name, column in (*(("score", side) for side in sides), ("rating", ratings)):
        if not np.isfinite(column).all():
            raise InputError(f"a {name} is not a finite number")
        if np.ptp(column) == 0:
            raise InputError(f"every {name} is {column[0]:g}; there is nothing to correlate")
    fits = [fit_logistic(side, ratings) for side in sides]
    rng, draws = np.random.default_rng(seed), list[list[dict[str, float]]]()
    while len(draws) < resamples:
        chosen = rng.integers(0, len(ratings), len(ratings))
        drawn = [side[chosen] for side in sides]
        if np.ptp(ratings[chosen]) > 0 and all(np.ptp(side) > 0 for side in drawn):
            draws.append([_measure(side, ratings[chosen], fit) for side, fit in zip(drawn, fits, strict=True)])
            report(len(draws))
    agreements = []
    for at, (side, fit) in enumerate(zip(sides, fits, strict=True)):
        values = _measure(side, ratings, fit)
        measures = {name: _estimate(value, [draw[at][name] for draw in draws]) for name, value in values.items()}
        agreements.append(Agreement(len(ratings), measures, fit))
    return agreements, draws


def _estimate(value: float, draws: Sequence[float]) -> Estimate:
    """A figure with the middle 95 % of its draws."""
    return Estimate(value, *np.percentile(draws, [2.5, 97.5]).tolist()) if draws else Estimate(value)
