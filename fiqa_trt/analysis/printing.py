"""Results as tables: for a terminal, or to be pasted into a paper."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

from fiqa_trt.analysis.edc import AREAS, DISCARDS, Edc
from fiqa_trt.analysis.measures import Estimate
from fiqa_trt.errors import printable

# RMSE of raw scores is not among them: scores and ratings are hardly ever of one scale.
HEADINGS = {
    "srcc": "SRCC",
    "krcc": "KRCC",
    "plcc": "PLCC",
    "plcc_logistic": "PLCC (logistic)",
    "rmse_logistic": "RMSE (logistic)",
}
OVERALL = "all"
_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{mark: f"\\{mark}" for mark in "&%$#_{}"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells as text.

    Attributes:
        heading: of each column; the first column names the rows.
        rows: as many cells each.
    """

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]


def agreement_table(parts: Sequence[tuple[str, int, Mapping[str, Estimate]]]) -> Table:
    """A row for each agreement, or difference of two: its name, its number of images and its measures."""
    rows = [
        (printable(name), f"{images:,}", *(_with_interval(measures[measure]) for measure in HEADINGS))
        for name, images, measures in parts
    ]
    return Table(("", "images", *HEADINGS.values()), rows)


def edc_table(curve: Edc, point: Sequence[tuple[str, str]]) -> Table:
    """Where the curve starts, FNMR at some shares of discarded pairs, and areas beside the best possible.

    Args:
        curve: what is shown.
        point: lines about the threshold: what, and how much.
    """
    rows = [(what, value, "") for what, value in point]
    rows += [(f"FNMR, {share:.0%} discarded", f"{curve.at(share):.4f}", "") for share in DISCARDS]
    rows += [
        (f"pAUC to {share:.0%}", f"{curve.pauc(share):.5f}", f"{curve.pauc(share, ideal=True):.5f}") for share in AREAS
    ]
    return Table(("", "value", "best possible"), rows)


def _with_interval(found: Estimate) -> str:
    if not math.isfinite(found.value):
        return "n/a"
    if found.low is None or found.high is None or not math.isfinite(found.low + found.high):
        return f"{found.value:.4f}"
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]"


def as_text(table: Table) -> str:
    """Columns as wide as what they hold, two spaces between them."""
    cells = [[" ".join(cell.split()) for cell in row] for row in (table.heading, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *others in cells:
        rest = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *rest]).rstrip())
    return "\n".join(lines)


def as_markdown(table: Table) -> str:
    """A table of GitHub's and Pandoc's Markdown."""

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(' '.join(cell.split()).replace('|', '&#124;') for cell in cells)} |"

    return "\n".join([line(table.heading), "|---|" + "---:|" * (len(table.heading) - 1), *map(line, table.rows)])


def as_latex(table: Table) -> str:
    """A `tabular` that needs no package."""

    def line(cells: Sequence[str]) -> str:
        row = " & ".join("".join(_LATEX.get(mark, mark) for mark in " ".join(cell.split())) for cell in cells)
        # Behind the end of a row, a bracket would be its argument.
        return f"{{}}{row} \\\\" if row.startswith(("[", "*")) else f"{row} \\\\"

    columns = "l" + "r" * (len(table.heading) - 1)
    body = "\n".join(map(line, table.rows))
    return (
        f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{line(table.heading)}\n\\hline\n{body}\n\\hline\n\\end{{tabular}}"
    )


FORMATS: dict[str, Callable[[Table], str]] = {"text": as_text, "markdown": as_markdown, "latex": as_latex}
