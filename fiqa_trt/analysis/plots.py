"""The scatter of ratings over scores, and the EDC curve, as files of KINDS."""

from __future__ import annotations

from typing import Any

import numpy as np

from fiqa_trt.analysis.edc import Edc
from fiqa_trt.analysis.measures import Agreement, logistic
from fiqa_trt.analysis.rated import Rated
from fiqa_trt.errors import number_of
from fiqa_trt.storage.places import Place
from fiqa_trt.storage.writing import atomic, check_output

KINDS = (".png", ".pdf", ".svg")


def _save(figure: Any, path: Place) -> None:
    check_output(path, KINDS)
    with atomic(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lower()[1:], dpi=120)


def plot_agreement(rated: Rated, found: Agreement, path: Place) -> None:
    """Scatter of ratings over scores, with the logistic. Raises OutputError if the file cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 5), layout="constrained")
    axes = figure.subplots()
    size = float(np.clip(4000 / len(rated.scores), 1, 20))
    axes.scatter(rated.scores, rated.ratings, size, alpha=0.5, linewidths=0)
    line = np.linspace(rated.scores.min(), rated.scores.max(), 200)
    axes.plot(line, logistic(line, *found.logistic), "C1", label="4-parameter logistic")
    srcc, plcc = found.measures["srcc"].value, found.measures["plcc"].value
    axes.set(
        xlabel="score", ylabel="rating", title=f"{number_of(found.rows, 'image')}, SRCC {srcc:.3f}, PLCC {plcc:.3f}"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def plot_edc(curve: Edc, path: Place, at: str = "") -> None:
    """FNMR over the discarded share, with the ideal; `at` is the threshold in words.

    Raises:
        OutputError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.discard, curve.fnmr, label=f"quality (pAUC to 20 %: {curve.pauc(0.2):.4f})")
    axes.plot(curve.discard, curve.ideal, "k:", label="ideal")
    axes.set(xlabel="share of pairs discarded", ylabel="FNMR", xlim=(0, 0.95), ylim=(0, None))
    axes.set_title(f"{number_of(curve.pairs, 'mated pair')}, {at or f'threshold {curve.threshold:.4g}'}")
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)
