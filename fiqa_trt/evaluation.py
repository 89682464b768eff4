"""How far scores can be trusted: their agreement with ratings, and what they are worth to face recognition."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.errors import InputError, OutputError
from fiqa_trt.outputs import SUFFIXES, read_output
from fiqa_trt.records import open_path
from fiqa_trt.storage import atomic
from fiqa_trt.user_tables import read_columns

Values = npt.NDArray[np.float64]

MEASURES = ("srcc", "krcc", "plcc", "plcc_logistic", "rmse", "rmse_logistic")
MIN_ROWS = 8  # a 4-parameter fit of fewer points says nothing
DISCARDS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
AREAS = (0.2, 0.3)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap 95 % interval."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How scores agree with ratings.

    Attributes:
        rows: pairs of score and rating.
        measures: each of MEASURES. SRCC and KRCC (tau-b) compare orders; PLCC is Pearson's r, raw and after the
            logistic; RMSE is in units of the rating, raw and after the logistic.
        logistic: its four parameters, see `logistic`.
    """

    rows: int
    measures: dict[str, Estimate]
    logistic: tuple[float, float, float, float]


def logistic(scores: Values, high: float, low: float, middle: float, width: float) -> Values:
    """The 4-parameter logistic of VQEG (2000) and Sheikh et al. (2006): monotonic from `low` to `high`."""
    from scipy.special import expit

    return np.asarray(low + (high - low) * expit((scores - middle) / abs(width)))


def fit_logistic(
    scores: Values, ratings: Values, start: Sequence[float] | None = None
) -> tuple[float, float, float, float]:
    """Least-squares parameters of `logistic` that maps scores to ratings.

    Falls back to where it began when the least squares do not converge, which leaves the mapping monotonic.
    """
    from scipy.optimize import curve_fit

    if start is None:
        rising = np.corrcoef(scores, ratings)[0, 1] >= 0
        ends = (ratings.max(), ratings.min()) if rising else (ratings.min(), ratings.max())
        start = (*ends, float(scores.mean()), max(float(scores.std()), 1e-6))
    try:
        found, _ = curve_fit(logistic, scores, ratings, start, maxfev=4000)
    except RuntimeError:
        found = start
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


def agreement(scores: Values, ratings: Values, resamples: int = 1000, seed: int = 0) -> Agreement:
    """SRCC, KRCC, PLCC and RMSE of scores [N] with ratings [N], with percentile bootstrap 95 % intervals over rows.

    Args:
        scores: float64 [N], any monotonic scale.
        ratings: float64 [N], any scale.
        resamples: bootstrap draws; 0 gives intervals of no width.
        seed: of the draws.

    Raises:
        InputError: fewer than MIN_ROWS rows, a value that is not finite, all scores or all ratings alike.
    """
    if len(scores) < MIN_ROWS:
        raise InputError(f"{len(scores)} rows with score and rating; at least {MIN_ROWS} are needed")
    for name, column in (("score", scores), ("rating", ratings)):
        if not np.isfinite(column).all():
            raise InputError(f"a {name} is not a finite number")
        if np.ptp(column) == 0:
            raise InputError(f"every {name} is {column[0]:g}; there is nothing to correlate")
    parameters = fit_logistic(scores, ratings)
    values = _measure(scores, ratings, parameters)
    rng, draws = np.random.default_rng(seed), list[dict[str, float]]()
    while len(draws) < resamples:
        chosen = rng.integers(0, len(scores), len(scores))
        if np.ptp(scores[chosen]) > 0 and np.ptp(ratings[chosen]) > 0:
            draws.append(_measure(scores[chosen], ratings[chosen], parameters))
    measures = {}
    for name, value in values.items():
        low, high = np.percentile([draw[name] for draw in draws] or [value], [2.5, 97.5])
        measures[name] = Estimate(value, float(low), float(high))
    return Agreement(len(scores), measures, parameters)


@dataclasses.dataclass(frozen=True)
class Edc:
    """Error versus discard: what is left of the false non-matches when the pairs of lowest quality are discarded.

    Attributes:
        pairs: mated pairs.
        threshold: similarity below which a mated pair is a false non-match; fixed before any pair is discarded.
        discard: share of pairs discarded, [pairs], rising from 0.
        fnmr: false non-match rate of the rest, [pairs].
        ideal: the same for a quality that discards exactly the false non-matches first; nothing can be below it.
    """

    pairs: int
    threshold: float
    discard: Values
    fnmr: Values
    ideal: Values

    def at(self, share: float) -> float:
        """FNMR when `share` of the pairs is discarded."""
        return float(np.interp(share, self.discard, self.fnmr))

    def pauc(self, share: float, *, ideal: bool = False) -> float:
        """Area under the curve (or under the ideal one) from no discard to `share`; at most `share`."""
        curve = self.ideal if ideal else self.fnmr
        inner = self.discard < share
        x = np.append(self.discard[inner], share)
        y = np.append(curve[inner], np.interp(share, self.discard, curve))
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def edc(quality: Values, similarity: Values, threshold: float) -> Edc:
    """The error-versus-discard characteristic (Grother and Tabassi, 2007; ISO/IEC 29794-1) of mated pairs.

    As Schlett et al. (2023) ask, the threshold stays what it was for all pairs. Of pairs with the same quality none
    comes before the other: a part of such a group is discarded with its share of errors.

    Args:
        quality: float64 [N], of each mated pair: the lower one of its two images.
        similarity: float64 [N], higher is more alike.
        threshold: a similarity below it is a false non-match.
    """
    count = len(quality)
    order = np.argsort(quality, kind="stable")
    errors = (similarity < threshold)[order].astype(np.float64)
    ends = np.flatnonzero(np.append(np.diff(quality[order]) > 0, True)) + 1
    discarded = np.arange(count)
    gone = np.interp(discarded, np.append(0, ends), np.append(0, np.cumsum(errors)[ends - 1]))
    left, total = count - discarded, errors.sum()
    return Edc(count, threshold, discarded / count, (total - gone) / left, np.maximum(total - discarded, 0) / left)


def threshold_at_fnmr(similarity: Values, rate: float) -> float:
    """The similarity at which at most `rate` of the mated pairs [N] are false non-matches, as close as ties allow."""
    ordered = np.sort(similarity)
    return float(ordered[min(int(np.floor(rate * len(ordered) + 1e-9)), len(ordered) - 1)])


def threshold_at_fmr(similarity: Values, rate: float) -> float:
    """The lowest similarity at which at most `rate` of the non-mated pairs [N] are false matches (similarity >= it).

    Raises:
        InputError: there are no non-mated pairs.
    """
    if not len(similarity):
        raise InputError("a false match rate needs pairs of different people (same = 0), and there are none")
    ordered = np.sort(similarity)[::-1]
    allowed = int(np.floor(rate * len(ordered) + 1e-9))
    return float(np.nextafter(ordered[allowed], np.inf)) if allowed < len(ordered) else float(ordered[-1])


@dataclasses.dataclass(frozen=True)
class Rated:
    """Scores beside ratings.

    Attributes:
        scores: float64 [N].
        ratings: float64 [N].
        groups: N values of the column that divides them; all empty without one.
        failed: rated images that have no score.
        unmatched: rated images that are not among the scores.
    """

    scores: Values
    ratings: Values
    groups: list[str]
    failed: int
    unmatched: int


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Recognition's verdict on pairs of images, and the lower quality of each pair.

    Attributes:
        quality: float64 [N], the lower score of the two.
        similarity: float64 [N], higher is more alike.
        same: bool [N], whether both show the same person.
        dropped: pairs that lack a score on one side.
    """

    quality: Values
    similarity: Values
    same: npt.NDArray[np.bool_]
    dropped: int


class _Scores:
    """An output of `fiqa-trt score`, by path."""

    def __init__(self, path: Path, column: str) -> None:
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"cannot tell the format of {path}: name it {', '.join(SUFFIXES)}")
        self.path = path
        self.values: dict[str, float | None] = {}
        for table in read_output(path, ("path", column)):
            for name, value in zip(table["path"].to_pylist(), table[column].to_pylist(), strict=True):
                self.values[_normal(name)] = value
        if not self.values:
            raise InputError(f"{path} has no rows")

    def find(self, name: str, folder: Path | None) -> float | None:
        """The score of an image, None if it has none. Raises KeyError for an image that is not there."""
        return self.values[_normal(name, folder)]

    def foreign(self, table: Path, name: str, folder: Path | None) -> InputError:
        """What to say when not one path of `table` is known."""
        ours, theirs = next(iter(self.values)), _normal(name, folder)
        return InputError(
            f"no path of {table} is in {self.path} ({theirs} there, {ours} here); --images says where its paths start"
        )


def _normal(name: str | None, folder: Path | None = None) -> str:
    if not name:
        raise InputError("a row has no path")
    return os.path.normpath(os.path.join(folder or "", open_path(name)))


def _number(value: object, column: str, row: int, table: Path) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise InputError(f"{table}, row {row + 1}: the {column} {value!r} is not a finite number")
    return number


def read_rated(
    scores: Path, labels: Path, images: Path | None = None, column: str = "score", by: str | None = None
) -> Rated:
    """Scores and ratings of the same images.

    Args:
        scores: an output of `fiqa-trt score`.
        labels: .csv or .parquet with the columns `path` and `score`.
        images: folder that the paths of `labels` start from.
        column: which column of `scores` to take.
        by: a column of `labels` that divides the images into groups.

    Raises:
        InputError: a file that cannot be read, a missing column, a rating that is no number, not one path in common.
    """
    known, table = _Scores(scores, column), read_columns(labels, ("path", "score", *([by] if by else [])))
    kept, failed, unmatched = list[tuple[float, float, str]](), 0, 0
    groups = table[by] if by else [""] * len(table["path"])
    for row, (name, rating, group) in enumerate(zip(table["path"], table["score"], groups, strict=True)):
        try:
            score = known.find(name, images)
        except KeyError:
            unmatched += 1
            continue
        if score is None:
            failed += 1
        else:
            kept.append((score, _number(rating, "score", row, labels), "" if group is None else str(group)))
    if not kept and not failed:
        raise known.foreign(labels, table["path"][0], images)
    values = np.array([row[:2] for row in kept], np.float64).reshape(-1, 2)
    return Rated(values[:, 0], values[:, 1], [row[2] for row in kept], failed, unmatched)


_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")


def read_pairs(scores: Path, pairs: Path, images: Path | None = None, column: str = "score") -> Pairs:
    """Pairs of images with their similarity and the lower of their scores.

    Args:
        scores: an output of `fiqa-trt score`.
        pairs: .csv or .parquet with the columns `a`, `b` (paths), `same` (1 or 0) and `similarity`.
        images: folder that the paths of `pairs` start from.
        column: which column of `scores` to take.

    Raises:
        InputError: as in `read_rated`; a `same` that is neither; no mated pair.
    """
    known, table = _Scores(scores, column), read_columns(pairs, ("a", "b", "same", "similarity"))
    kept, dropped, found = list[tuple[float, float, bool]](), 0, False
    for row, (a, b, same, similarity) in enumerate(
        zip(*(table[name] for name in ("a", "b", "same", "similarity")), strict=True)
    ):
        verdict = str(same).strip().lower().removesuffix(".0")
        if verdict not in (*_TRUE, *_FALSE):
            raise InputError(f"{pairs}, row {row + 1}: `same` is {same!r}, not 1 or 0")
        try:
            both = known.find(a, images), known.find(b, images)
            found = True
        except KeyError:
            both = None, None
        if both[0] is None or both[1] is None:
            dropped += 1
            continue
        kept.append((min(both[0], both[1]), _number(similarity, "similarity", row, pairs), verdict in _TRUE))
    if not found:
        raise known.foreign(pairs, table["a"][0], images)
    same_person = np.array([row[2] for row in kept], bool)
    if not same_person.any():
        raise InputError(f"{pairs}: no pair of the same person has scores on both sides")
    values = np.array([row[:2] for row in kept], np.float64).reshape(-1, 2)
    return Pairs(values[:, 0], values[:, 1], same_person, dropped)


def _save(figure: Any, path: Path) -> None:
    if path.suffix.lower() != ".png":
        raise OutputError(f"--plot {path}: name it .png")
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def plot_agreement(rated: Rated, found: Agreement, path: Path) -> None:
    """Scatter of ratings over scores, with the logistic. Raises OutputError if the PNG cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(4000 / len(rated.scores), 1, 20))
    axes.scatter(rated.scores, rated.ratings, size, alpha=0.5, linewidths=0)
    line = np.linspace(rated.scores.min(), rated.scores.max(), 200)
    axes.plot(line, logistic(line, *found.logistic), "C1", label="4-parameter logistic")
    srcc, plcc = found.measures["srcc"].value, found.measures["plcc"].value
    axes.set(xlabel="score", ylabel="rating", title=f"{found.rows:,} images, SRCC {srcc:.3f}, PLCC {plcc:.3f}")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_edc(curve: Edc, path: Path) -> None:
    """FNMR over the discarded share, with the ideal. Raises OutputError if the PNG cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.discard, curve.fnmr, label=f"quality (pAUC to 20 %: {curve.pauc(0.2):.4f})")
    axes.plot(curve.discard, curve.ideal, "k:", label="ideal")
    axes.set(xlabel="share of pairs discarded", ylabel="FNMR", xlim=(0, 0.95), ylim=(0, None))
    axes.set_title(f"{curve.pairs:,} mated pairs, threshold {curve.threshold:.4g}")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)
