"""How far the members of the ensemble are apart, counted as the rows of a scores file pass by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fiqa_trt.scores.groups import STEPS, quantile
from fiqa_trt.scores.members import member_columns

if TYPE_CHECKING:
    import pyarrow as pa


class Differences:
    """How far the members are apart, in the rows in which each has a score."""

    def __init__(self) -> None:
        self.count = 0  # members that have a column
        self._differences = np.zeros(STEPS + 1, np.int64)
        self._sums: npt.NDArray[np.float64] = np.zeros(())  # [members], once it is known how many
        self._products: npt.NDArray[np.float64] = np.zeros(())  # [members, members]

    def add(self, good: pa.Table) -> None:
        """Count the rows of a table of rows with a score."""
        names = member_columns(good.schema)
        if not set(names) <= set(good.column_names):
            return
        self.count = len(names)
        scores = np.stack([good[name].to_numpy().astype(np.float64) for name in names])
        scores = scores[:, ~np.isnan(scores).any(axis=0)]  # NaN where another program lost one
        apart = np.rint(np.ptp(scores, axis=0) * STEPS).astype(np.int64)
        self._differences += np.bincount(apart, minlength=STEPS + 1)
        self._sums = self._sums + scores.sum(axis=1)
        self._products = self._products + scores @ scores.T

    def agreement(self) -> dict[str, float]:
        """Mean and 95 % quantile of the difference between highest and lowest, and the lowest correlation of two;
        empty if there is nothing to compare.
        """
        rows = int(self._differences.sum())
        if not rows or self.count < 2:
            return {}
        covariances = rows * self._products - np.outer(self._sums, self._sums)
        variances = np.diag(covariances).clip(0)
        spreads = np.sqrt(np.outer(variances, variances))
        correlations = np.divide(covariances, spreads, out=np.zeros_like(spreads), where=spreads > 0)
        return {
            "mean": float((self._differences * np.arange(STEPS + 1)).sum() / STEPS / rows),
            "95 %": quantile(self._differences, 0.95),
            "correlation": float(correlations[np.triu_indices(self.count, 1)].min()),
        }
