"""Tables of ratings as people have them: whatever their columns are called, with blanks, images rated several times."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.errors import InputError, number_of
from fiqa_trt.inputs.user_tables import PATH_NAMES, Column
from fiqa_trt.inputs.whole_tables import Table, read_table, stacked
from fiqa_trt.storage.places import Place

_DIGITS = 12  # of a mean: what is behind them is rounding, which would tell apart means that are equal

SCORE_NAMES = ("mos", "rating", "mean_opinion_score", "quality_mos", "mos_score", "mean_score", "mean_rating")


@dataclasses.dataclass(frozen=True)
class Form:
    """What the user says of a table of ratings.

    Attributes:
        path: its column of paths; None to recognise it.
        scores: its columns of ratings, each of another rater; empty to recognise a single one.
        skip_blank: leave out the rows without a rating; of several columns, only the rating that is missing.
        group: its column of groups (persons), where a group is of use; None: one that is called `group`.
    """

    path: str | None = None
    scores: tuple[str, ...] = ()
    skip_blank: bool = False
    group: str | None = None


@dataclasses.dataclass(frozen=True)
class Ratings:
    """Rows of a table of ratings.

    Attributes:
        table: N rows, with the columns `path` and `score` among others.
        values: float64 [N], finite.
        repeated: images that were rated more than once, and are one row now.
    """

    table: Table
    values: npt.NDArray[np.float64]
    repeated: int = 0

    @property
    def columns(self) -> dict[str, list[Any]]:
        """Of the table."""
        return self.table.columns

    @property
    def paths(self) -> list[str]:
        """N paths as they are written in the table."""
        return self.columns["path"]

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
                one, other = (self.columns[column][each] for each in (leading, row))
                if one != other:
                    raise InputError(
                        f"{self.table.where(leading)} and {self.table.place(row)}: the same image, but `{column}` is "
                        f"{one!r} and {other!r}"
                    )
        counts = np.bincount(own, minlength=len(own))
        means = _rounded(np.bincount(own, self.values, len(own)) / np.maximum(counts, 1))
        kept = [int(row) for row in np.flatnonzero(counts)]
        return Ratings(self.table.select(kept), means[kept], int((counts > 1).sum()))

    def notes(self) -> list[str]:
        """What to tell the user about these rows."""
        lines = self.table.notes()
        if self.repeated:
            lines.append(f"{number_of(self.repeated, 'image is', 'images are')} rated more than once: the mean counts")
        return lines

    def select(self, rows: Sequence[int]) -> Ratings:
        """Some of the rows."""
        return dataclasses.replace(self, table=self.table.select(rows), values=self.values[list(rows)])


def _rounded(means: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """To the digits that count: sums of the same ratings in another order differ in the last ones."""
    largest = float(np.abs(means).max())
    return np.round(means, _DIGITS - math.ceil(math.log10(largest))) if largest else means


def read_ratings(table: Place, form: Form | None = None, needed: Sequence[str | Column] = ()) -> Ratings:
    """Ratings of a .csv, .tsv, .txt or .parquet; of several columns of ratings, a row for each.

    Args:
        table: the file. Its columns of paths and of ratings may have any of PATH_NAMES and SCORE_NAMES.
        form: what the user says of it.
        needed: other columns that it must have.

    Raises:
        InputError: as `read_table` and `Table.numbers`.
    """
    form = form or Form()
    path = Column("path", PATH_NAMES, "--path-column", form.path)
    parts = [
        read_table(
            table, [path], [Column("score", SCORE_NAMES, "--score-column", name)], needed, skip_blank=form.skip_blank
        )
        for name in dict.fromkeys(form.scores or (None,))
    ]
    # Numbers are read column by column, so that a mistake is told of the column that has it.
    return Ratings(stacked(parts), np.concatenate([part.numbers("score") for part in parts]))
