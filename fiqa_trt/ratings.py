"""Tables of ratings as people have them: whatever their columns are called, with blanks, images rated several times."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.errors import InputError
from fiqa_trt.user_tables import PATH_NAMES, Column, numbers, read_columns

SCORE_NAMES = ("mos", "rating", "mean_opinion_score", "quality_mos", "mos_score", "mean_score", "mean_rating")


@dataclasses.dataclass(frozen=True)
class Form:
    """What the user says of a table of ratings.

    Attributes:
        path: its column of paths; None to recognise it.
        score: its column of ratings; None to recognise it.
        skip_blank: leave out the rows without a rating.
    """

    path: str | None = None
    score: str | None = None
    skip_blank: bool = False


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Rows of a table of ratings.

    Attributes:
        table: where they come from.
        paths: N paths as they are written there.
        values: float64 [N], finite.
        others: the other columns, N values each.
        rows: N numbers of rows, from 1.
        blank: rows that were left out for want of a rating.
        repeated: images that were rated more than once, and are one row now.
    """

    table: str
    paths: list[str]
    values: npt.NDArray[np.float64]
    others: dict[str, list[Any]]
    rows: list[int]
    blank: int = 0
    repeated: int = 0

    def merged(self, images: Sequence[object], alike: Sequence[str] = ()) -> Ratings:
        """One row an image, with the mean of its ratings.

        Args:
            images: N, what tells which image a row is of.
            alike: other columns; all ratings of an image must say the same there.

        Raises:
            InputError: they do not.
        """
        first: dict[object, int] = {}
        own = np.array([first.setdefault(image, row) for row, image in enumerate(images)], np.int64)
        if len(first) == len(own):
            return self
        for row, leading in enumerate(own):
            for column in alike:
                one, other = self.others[column][leading], self.others[column][row]
                if one != other:
                    raise InputError(
                        f"{self.table}, rows {self.rows[leading]} and {self.rows[row]}: the same image, but "
                        f"`{column}` is {one!r} and {other!r}"
                    )
        counts = np.bincount(own, minlength=len(own))
        means = np.bincount(own, self.values, len(own)) / np.maximum(counts, 1)
        kept = [int(row) for row in np.flatnonzero(counts)]
        return dataclasses.replace(self._select(kept), values=means[kept], repeated=int((counts > 1).sum()))

    def notes(self) -> list[str]:
        """What to tell the user about these rows."""
        lines = []
        if self.blank:
            lines.append(f"{self.blank:,} rows without a rating left out")
        if self.repeated:
            lines.append(f"{self.repeated:,} images are rated more than once: the mean counts")
        return lines

    def select(self, rows: Sequence[int]) -> Ratings:
        """Some of the rows."""
        return dataclasses.replace(self._select(rows), values=self.values[list(rows)])

    def _select(self, rows: Sequence[int]) -> Ratings:
        others = {name: [values[row] for row in rows] for name, values in self.others.items()}
        return dataclasses.replace(
            self, paths=[self.paths[row] for row in rows], others=others, rows=[self.rows[row] for row in rows]
        )


def read_ratings(table: Path, form: Form | None = None, needed: Sequence[str] = ()) -> Ratings:
    """Ratings of a .csv, .tsv, .txt or .parquet.

    Args:
        table: the file. Its columns of paths and of ratings may have any of PATH_NAMES and SCORE_NAMES.
        form: what the user says of it.
        needed: other columns that it must have.

    Raises:
        InputError: as `read_columns` and `numbers`; a row has no path.
    """
    form = form or Form()
    path = Column("path", PATH_NAMES, "--path-column", form.path)
    score = Column("score", SCORE_NAMES, "--score-column", form.score)
    columns, name = read_columns(table, (path, score, *needed)), str(table)
    paths, scores = columns.pop("path"), columns.pop("score")
    # What spreadsheets append: rows of nothing.
    there = [row for row, pair in enumerate(zip(paths, scores, strict=True)) if pair != (None, None)]
    for row in there:
        if paths[row] in (None, ""):
            raise InputError(f"{name}, row {row + 1}: a row has no path")
    values = np.zeros(len(paths))
    values[there] = _values(scores, there, name, form)
    rated = [row for row in there if not np.isnan(values[row])]
    if not rated:
        raise InputError(f"{name} has no rows with a rating")
    others = {column: [cells[row] for row in rated] for column, cells in columns.items()}
    numbered = [row + 1 for row in rated]
    return Ratings(name, [str(paths[row]) for row in rated], values[rated], others, numbered, len(there) - len(rated))


def _values(scores: list[Any], there: list[int], name: str, form: Form) -> npt.NDArray[np.float64]:
    # Rows are named as in the table, so those of nothing keep their places.
    present = set(there)
    cells = [value if row in present else 0 for row, value in enumerate(scores)]
    return numbers(cells, "score", name, skip_blank=form.skip_blank)[there]
