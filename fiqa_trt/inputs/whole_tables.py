"""A user's table read at once: its rows, its numbers, and where in its file they stand."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.errors import InputError, number_of
from fiqa_trt.inputs.user_tables import Column, header, place, read_columns
from fiqa_trt.storage.places import Place

_BLANK = ("", "na", "n/a", "#n/a", "<na>", "nan", "null", "none", "-")


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a table.

    Attributes:
        name: its file.
        columns: N cells each, by our names; of a text, text, and None where there is nothing.
        rows: N, which rows of the file they are, from 0.
        needed: the columns that it had to have.
        blank: rows that were left out for want of a value.
    """

    name: str
    columns: dict[str, list[Any]]
    rows: list[int]
    needed: tuple[str | Column, ...] = ()
    blank: int = 0

    def place(self, row: int) -> str:
        """Where in the file its user finds one of these rows: `line 9`, or `row 8` of a .parquet."""
        return place(self.name, self.needed, self.rows[row])

    def where(self, row: int) -> str:
        """The file and the `place`."""
        return f"{self.name}, {self.place(row)}"

    def told(self, column: str) -> str:
        """What the file calls one of our columns (several, if they are stacked), and which others could be meant."""
        wanted = [each for each in self.needed if isinstance(each, Column) and each.name == column]
        if not wanted:
            return column
        names = header(self.name, self.needed)
        found = " + ".join(str(each.find(names, self.name)) for each in wanted)
        first = wanted[0]
        others = [name for name in names if first.is_meant(name) and name != found and first.given is None]
        return f"{found} (not {', '.join(others)}: {first.option} takes another)" if others else found

    def select(self, rows: Sequence[int]) -> Table:
        """Some of the rows."""
        columns = {name: [cells[row] for row in rows] for name, cells in self.columns.items()}
        return dataclasses.replace(self, columns=columns, rows=[self.rows[row] for row in rows])

    def numbers(self, column: str) -> npt.NDArray[np.float64]:
        """Numbers of a column, with a decimal point or, throughout, a decimal comma: float64 [N], finite.

        Raises:
            InputError: a cell that is no finite number; points and commas in one column.
        """
        cells = self.columns[column]
        texts = ["" if cell is None else str(cell).strip() for cell in cells]
        commas, points = ([row for row, text in enumerate(texts) if mark in text] for mark in ",.")
        if commas and points:
            one, other = commas[0], points[0]
            raise InputError(
                f"{self.where(one)}: the {self.told(column)} {texts[one]!r} has a comma, {texts[other]!r} in "
                f"{self.place(other)} a point: write all decimals alike, and thousands without a mark"
            )
        found = np.full(len(texts), np.nan)
        for row, text in enumerate(texts):
            with contextlib.suppress(ValueError):
                found[row] = float(text.replace(",", "."))
            if not np.isfinite(found[row]):
                what = f"{cells[row]!r} is not a finite number" if text else "is blank"
                raise InputError(f"{self.where(row)}: the {self.told(column)} {what}")
        return found

    def notes(self) -> list[str]:
        """What to tell the user: which columns were taken where others could be meant, and what was left out."""
        columns = [each.name for each in self.needed if isinstance(each, Column)]
        taken = [f"{name} = {self.told(name)}" for name in dict.fromkeys(columns)]
        lines = [f"columns of {self.name}: {', '.join(taken)}"]
        if self.blank:
            stacked = len(taken) < len(columns)  # then a blank costs no row of the file
            what = ("blank", "blanks") if stacked else ("row with a blank", "rows with a blank")
            lines.append(f"{number_of(self.blank, *what)} left out")
        return lines


def stacked(parts: Sequence[Table]) -> Table:
    """One file, read for one column after the other, as one table: the rows of each part below those before it."""
    first = parts[0]
    columns = {name: [cell for part in parts for cell in part.columns[name]] for name in first.columns
               if all(name in part.columns for part in parts)}  # fmt: skip
    needed = tuple(dict.fromkeys(each for part in parts for each in part.needed))
    rows = [row for part in parts for row in part.rows]
    return Table(first.name, columns, rows, needed, sum(part.blank for part in parts))


def is_empty(cell: object) -> bool:
    """Whether a cell holds nothing: of a text or a name, where `NA` may be one."""
    return cell in (None, "") or (isinstance(cell, float) and math.isnan(cell))


def _is_blank(cell: object) -> bool:
    """Whether a cell holds nothing, or what people write for it among numbers."""
    return cell is None or str(cell).strip().lower() in _BLANK


def read_table(
    file: Place,
    paths: Sequence[Column],
    values: Sequence[Column],
    others: Sequence[str | Column] = (),
    *,
    skip_blank: bool = False,
) -> Table:
    """A table that says something about images, without the rows of nothing that spreadsheets append.

    Args:
        file: a .csv, .tsv, .txt or .parquet.
        paths: columns of images, filled in every row.
        values: columns that say something of them.
        others: columns that it must have besides.
        skip_blank: leave out, and count, the rows with a blank among `values`.

    Raises:
        InputError: as `read_columns`; a row without a path, or with a blank among `values`; no row is left.
    """
    needed: tuple[str | Column, ...] = (*paths, *values, *others)
    columns = read_columns(file, needed)
    table = Table(str(file), columns, list(range(len(columns[paths[0].name]))), needed)
    images, said = ({column.name: columns[column.name] for column in some} for some in (paths, values))
    kept, blank = [], 0
    for row in table.rows:
        if all(cells[row] is None for cells in (*images.values(), *said.values())):
            continue
        if any(is_empty(cells[row]) for cells in images.values()):
            raise InputError(f"{table.where(row)}: a row has no path")
        missing = next((name for name, cells in said.items() if _is_blank(cells[row])), None)
        if missing is None:
            kept.append(row)
        elif skip_blank:
            blank += 1
        else:
            written = f" ({said[missing][row]!r})" if said[missing][row] else ""
            way_out = "--skip-blank leaves such rows out"
            raise InputError(f"{table.where(row)}: the {table.told(missing)} is blank{written}; {way_out}")
    if not kept:
        raise InputError(f"{file} has no rows with a {table.told(values[0].name)}")
    for column in paths:
        columns[column.name] = [str(path) for path in columns[column.name]]
    return dataclasses.replace(table.select(kept), blank=blank)
