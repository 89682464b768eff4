"""Tables of ratings, and of what recognition makes of pairs of images, beside the scores of those images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fiqa_trt.errors import InputError
from fiqa_trt.evaluation.matching import Scores
from fiqa_trt.evaluation.measures import Values
from fiqa_trt.ratings import Form, read_ratings
from fiqa_trt.user_tables import Column, numbers, read_columns


@dataclasses.dataclass(frozen=True)
class Rated:
    """Scores beside ratings.

    Attributes:
        scores: float64 [N].
        ratings: float64 [N].
        groups: N values of the column that divides them; all empty without one.
        failed: rated images that have no score.
        unmatched: rated images that are not among the scores.
        notes: lines for the user: what was left out or averaged, and how paths were matched.
    """

    scores: Values
    ratings: Values
    groups: list[str]
    failed: int
    unmatched: int
    notes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Recognition's verdict on pairs of images, and the lower quality of each pair.

    Attributes:
        quality: float64 [N], the lower score of the two.
        similarity: float64 [N], higher is more alike; distances are negated.
        same: bool [N], whether both show the same person.
        dropped: pairs that lack a score on one side.
        notes: lines for the user.
    """

    quality: Values
    similarity: Values
    same: npt.NDArray[np.bool_]
    dropped: int
    notes: list[str] = dataclasses.field(default_factory=list)


def read_rated(
    scores: Path,
    labels: Path,
    images: Path | None = None,
    column: str = "score",
    by: str | None = None,
    form: Form | None = None,
) -> Rated:
    """Scores and ratings of the same images.

    Args:
        scores: an output of `fiqa-trt score`.
        labels: as `read_ratings` reads it.
        images: folder that the paths of `labels` start from.
        column: which column of `scores` to take.
        by: a column of `labels` that divides the images into groups.
        form: what the user says of `labels`.

    Raises:
        InputError: a file that cannot be read, a missing column, a rating that is no number, not one path in common.
    """
    known = Scores(scores, column)
    table = read_ratings(labels, form, [by] if by else [])
    found = known.match(table.paths, labels, images)
    matched = [row for row, name in enumerate(table.paths) if name in found.rows]
    unmatched = len(set(table.paths)) - len(found.rows)
    rated = table.select(matched)
    rated = rated.merged([found.rows[name] for name in rated.paths], [by] if by else [])
    values = [known.values[found.rows[name]] for name in rated.paths]
    kept = [row for row, value in enumerate(values) if value is not None]
    groups = ["" if value is None else str(value) for value in rated.others[by]] if by else [""] * len(values)
    return Rated(
        np.array([values[row] for row in kept], np.float64),
        rated.values[kept],
        [groups[row] for row in kept],
        len(values) - len(kept),
        unmatched,
        [*rated.notes(), *filter(None, [found.note()])],
    )


_TRUE, _FALSE = ("1", "true", "yes"), ("0", "false", "no")
_SIMILARITY = ("similarity", "distance")  # by whether it is a distance


def read_pairs(
    scores: Path, pairs: Path, images: Path | None = None, column: str = "score", *, distance: bool = False
) -> Pairs:
    """Pairs of images with their similarity and the lower of their scores.

    Args:
        scores: an output of `fiqa-trt score`.
        pairs: a table with the columns `a`, `b` (paths), `same` (1 or 0) and `similarity`.
        images: folder that the paths of `pairs` start from.
        column: which column of `scores` to take.
        distance: the last column, which may be called `distance` as well, is the lower the more alike they are.

    Raises:
        InputError: as in `read_rated`; a `same` that is neither; no mated pair; pairs of the same person are less alike
            than those of different people, so that similarities were taken for distances or the other way round.
    """
    known = Scores(scores, column)
    alike = Column("similarity", ("distance",)) if distance else "similarity"
    try:
        table = read_columns(pairs, ("a", "b", "same", alike))
    except InputError as exc:
        hint = "; of distances, give --distance" if "no column `similarity`" in str(exc) and not distance else ""
        raise InputError(f"{exc}{hint}") from exc
    values = numbers(table["similarity"], _SIMILARITY[distance], str(pairs)) * (-1 if distance else 1)
    found = known.match([name for one in ("a", "b") for name in table[one]], pairs, images)
    same = _verdicts(table["same"], pairs)
    quality = np.full(len(same), np.nan)
    for row, both in enumerate(zip(table["a"], table["b"], strict=True)):
        one, other = (known.values[found.rows[name]] if name in found.rows else None for name in both)
        if one is not None and other is not None:
            quality[row] = min(one, other)
    _check_direction(values, same, pairs, distance=distance)
    kept = np.isfinite(quality)
    if not same[kept].any():
        raise InputError(f"{pairs}: no pair of the same person has scores on both sides")
    notes = [*filter(None, [found.note()])]
    if same.all():
        notes.append("no pairs of different people, so nothing tells whether a higher value means more alike")
    return Pairs(quality[kept], values[kept], same[kept], int((~kept).sum()), notes)


def _verdicts(cells: list[object], pairs: Path) -> npt.NDArray[np.bool_]:
    texts = [str(cell).strip().lower().removesuffix(".0") for cell in cells]
    for row, text in enumerate(texts):
        if text not in (*_TRUE, *_FALSE):
            raise InputError(f"{pairs}, row {row + 1}: `same` is {cells[row]!r}, not 1 or 0")
    return np.array([text in _TRUE for text in texts], bool)


def _check_direction(similarity: Values, same: npt.NDArray[np.bool_], pairs: Path, *, distance: bool) -> None:
    """Refuse values of which those of the same person are mostly below those of different people."""
    from scipy.stats import rankdata

    mated = int(same.sum())
    others = len(same) - mated
    if not mated or not others:
        return
    above = (rankdata(similarity)[same].sum() - mated * (mated + 1) / 2) / (mated * others)
    if above < 0.5:
        what, instead = (
            ("distances", "they look like similarities: leave out --distance")
            if distance
            else ("similarities", "they look like distances: give --distance")
        )
        raise InputError(
            f"{pairs}: as {what}, pairs of the same person are less alike than those of different people (a mated pair "
            f"is ahead of a non-mated one in {above:.0%} of cases); {instead}"
        )
