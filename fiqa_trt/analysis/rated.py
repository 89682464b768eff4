"""Tables of ratings, and of what recognition makes of pairs of images, beside the scores of those images."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fiqa_trt.analysis.matching import Scores
from fiqa_trt.analysis.measures import Values
from fiqa_trt.errors import InputError
from fiqa_trt.inputs.ratings import Form, read_ratings
from fiqa_trt.inputs.user_tables import PATH_NAMES, Column
from fiqa_trt.inputs.whole_tables import Table, is_empty, read_table
from fiqa_trt.scores.files import SUFFIXES, read_schema
from fiqa_trt.storage.places import Place


@dataclasses.dataclass(frozen=True)
class Rated:
    """Scores beside ratings.

    Attributes:
        scores: float64 [N].
        ratings: float64 [N].
        groups: N values of the column that divides them, empty where it is; all empty without one.
        images: N paths, as the ratings have them.
        failed: rated images that have no score.
        unmatched: rated images that are not among the scores.
        notes: lines for the user: columns, what was left out or averaged, and how paths were matched.
    """

    scores: Values
    ratings: Values
    groups: list[str]
    images: list[str]
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
    scores: Place,
    labels: Place,
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
        InputError: a file that cannot be read, a missing column, a rating that is no number, not one path in common,
            the two files in each other's place.
    """
    known, doubts = _scores(scores, column, labels, "--labels")
    table = read_ratings(labels, form, [by] if by else [])
    found = known.match(table.paths, labels, images)
    matched = [row for row, name in enumerate(table.paths) if name in found.rows]
    unmatched = len(set(table.paths)) - len(found.rows)
    rated = table.select(matched)
    rated = rated.merged([found.rows[name] for name in rated.paths], [by] if by else [])
    values = [known.values[found.rows[name]] for name in rated.paths]
    kept = [row for row, value in enumerate(values) if value is not None]
    groups = ["" if is_empty(value) else str(value) for value in rated.columns[by]] if by else [""] * len(values)
    return Rated(
        np.array([values[row] for row in kept], np.float64),
        rated.values[kept],
        [groups[row] for row in kept],
        [rated.paths[row] for row in kept],
        len(values) - len(kept),
        unmatched,
        [*doubts, *rated.notes(), *filter(None, [found.note()])],
    )


def in_common(one: Rated, other: Rated) -> tuple[Rated, Rated]:
    """Two scores of what one table rates, only of the images that have both.

    Raises:
        InputError: there are none.
    """
    shared = set(one.images) & set(other.images)
    if not shared:
        raise InputError("no rated image has both scores, so they cannot be compared")

    def only(rated: Rated) -> Rated:
        kept = [row for row, image in enumerate(rated.images) if image in shared]
        groups, images = ([cells[row] for row in kept] for cells in (rated.groups, rated.images))
        return dataclasses.replace(
            rated, scores=rated.scores[kept], ratings=rated.ratings[kept], groups=groups, images=images
        )

    return only(one), only(other)


def _scores(scores: Place, column: str, table: Place, option: str) -> tuple[Scores, list[str]]:
    """The scores, and what looks as if the two files stood in each other's place."""
    swapped = _is_output(table) and not _is_output(scores)
    try:
        known = Scores(scores, column)
    except InputError as exc:
        if swapped and scores.is_file():
            raise InputError(f"{scores} holds no scores, {table} does: give `{table} {option} {scores}`") from exc
        raise
    doubt = f"{scores} has no column `status`, {table} has: are these scores, and those the {option[2:]}?"
    return known, [doubt] if swapped else []


def _is_output(path: Place) -> bool:
    try:
        return path.suffix.lower() in SUFFIXES and bool(read_schema(path, ("path", "score", "status")))
    except InputError:
        return False


@dataclasses.dataclass(frozen=True)
class PairForm:
    """What the user says of a table of pairs.

    Attributes:
        paths: its columns of paths; empty to recognise them.
        same: its column that says whether both are of one person; None to recognise it.
        value: its column of similarities; None to recognise it.
        distance: these are distances, the lower the more alike.
        skip_blank: leave out the pairs that lack either.
    """

    paths: tuple[str, str] | tuple[()] = ()
    same: str | None = None
    value: str | None = None
    distance: bool = False
    skip_blank: bool = False

    def columns(self) -> tuple[list[Column], list[Column]]:
        """Those of paths, and what they say."""
        images = [
            Column(side, tuple(_names(side, number, role)), "--path-column (given twice)", given)
            for side, number, role, given in zip("ab", "12", _ROLES, self.paths or (None, None), strict=True)
        ]
        others = _DISTANCE_NAMES if self.distance else _SIMILARITY_NAMES
        return images, [
            Column("same", _SAME_NAMES, "--same-column", self.same),
            Column("similarity", others, "--score-column", self.value),
        ]


_ROLES = (("reference", "gallery", "enroll", "enrol", "p1"), ("probe", "verif", "verify", "p2"))
_SAME_NAMES = (
    "is_same", "issame", "same_person", "same_identity", "label", "match", "is_match", "mated", "is_mated", "genuine",
    "is_genuine",
)  # fmt: skip
_SIMILARITY_NAMES = (
    "score", "sim", "cosine", "cosine_similarity", "cosine_sim", "cos_sim", "similarity_score", "comparison_score",
)  # fmt: skip
_DISTANCE_NAMES = ("distance", "dist", "cosine_distance", "euclidean_distance")
_TRUE = ("1", "true", "yes", "same", "genuine", "mated", "match", "positive")
_FALSE = (
    "0", "-1", "false", "no", "different", "impostor", "imposter", "nonmated", "nonmatch", "mismatch", "negative",
)  # fmt: skip


def _names(side: str, number: str, roles: Sequence[str]) -> list[str]:
    """What people call the column of paths of one side of a pair."""
    stems = ("path", *PATH_NAMES)
    return [*roles, *(f"{stem}{gap}{mark}" for stem in stems for gap in ("", "_") for mark in (side, number))]


def read_pairs(
    scores: Place, pairs: Place, images: Path | None = None, column: str = "score", form: PairForm | None = None
) -> Pairs:
    """Pairs of images with their similarity and the lower of their scores.

    Args:
        scores: an output of `fiqa-trt score`.
        pairs: a table with the columns `a`, `b` (paths), `same` (1 or 0) and `similarity`, or of names like these.
        images: folder that the paths of `pairs` start from.
        column: which column of `scores` to take.
        form: what the user says of `pairs`.

    Raises:
        InputError: as in `read_rated`; a `same` that is neither; no mated pair; pairs of the same person are less alike
            than those of different people, so that similarities were taken for distances or the other way round.
    """
    form = form or PairForm()
    known, doubts = _scores(scores, column, pairs, "--pairs")
    try:
        table = read_table(pairs, *form.columns(), skip_blank=form.skip_blank)
    except InputError as exc:
        hint = "; of distances, give --distance" if "no column `similarity`" in str(exc) and not form.distance else ""
        raise InputError(f"{exc}{hint}") from exc
    values = table.numbers("similarity") * (-1 if form.distance else 1)
    sides = table.columns["a"], table.columns["b"]
    found = known.match([name for side in sides for name in side], pairs, images)
    same = _verdicts(table)
    quality = np.full(len(same), np.nan)
    for row, both in enumerate(zip(*sides, strict=True)):
        one, other = (known.values[found.rows[name]] if name in found.rows else None for name in both)
        if one is not None and other is not None:
            quality[row] = min(one, other)
    _check_direction(values, same, pairs, distance=form.distance)
    kept = np.isfinite(quality)
    if not same[kept].any():
        raise InputError(f"{pairs}: no pair of the same person has scores on both sides")
    notes = [*doubts, *table.notes(), *filter(None, [found.note()])]
    if same.all():
        notes.append("no pairs of different people, so nothing tells whether a higher value means more alike")
    return Pairs(quality[kept], values[kept], same[kept], int((~kept).sum()), notes)


def _verdicts(table: Table) -> npt.NDArray[np.bool_]:
    cells = table.columns["same"]
    texts = [_word(str(cell)) for cell in cells]
    for row, text in enumerate(texts):
        if text not in (*_TRUE, *_FALSE):
            what = f"`{table.told('same')}` is {cells[row]!r}"
            raise InputError(f"{table.where(row)}: {what}, not 1 or 0 (nor true or false, genuine or impostor, …)")
    if {"0", "-1"} <= set(texts):
        raise InputError(f"{table.name}: `{table.told('same')}` is both 0 and -1: write 1 or 0")
    return np.array([text in _TRUE for text in texts], bool)


def _word(verdict: str) -> str:
    """In one spelling: `Non-mated`, `non_mated` and `non mated` are one word, 1.0 is 1."""
    text = verdict.strip().lower().removesuffix(".0")
    return text if text == "-1" else re.sub("[-_ ]", "", text)


def _check_direction(similarity: Values, same: npt.NDArray[np.bool_], pairs: Place, *, distance: bool) -> None:
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
