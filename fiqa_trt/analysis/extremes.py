"""The rows of a file, of any size, that are the lowest by something."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa


class Extremes:
    """The lowest (by `key`) rows seen so far."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._keys = np.zeros(0, np.float64)
        self._rows = list[tuple[str, float]]()

    def add(self, keys: npt.NDArray[np.float64], paths: pa.Array, scores: npt.NDArray[np.float32]) -> None:
        """More rows."""
        if not self._count or not len(keys):
            return
        limit = self._keys[-1] if len(self._keys) == self._count else np.inf
        candidates = np.flatnonzero(keys < limit)
        candidates = candidates[np.argsort(keys[candidates], kind="stable")[: self._count]]
        rows = [(paths[int(index)].as_py(), float(scores[index])) for index in candidates]
        together = np.r_[self._keys, keys[candidates]]
        order = np.argsort(together, kind="stable")[: self._count]
        every = self._rows + rows
        self._keys, self._rows = together[order], [every[index] for index in order]

    def rows(self) -> list[tuple[str, float]]:
        """Path and score of each."""
        return self._rows
