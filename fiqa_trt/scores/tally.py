"""Statuses and scores of rows, counted as they pass by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_trt.errors import InputError
from fiqa_trt.outcomes import UNFORESEEN, Status
from fiqa_trt.scores.members import causes_of
from fiqa_trt.scores.schema import CAUSE

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 10_000


class Tally:
    """Counts statuses, causes and scores as tables pass by, in constant memory."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.unforeseen = 0
        self.causes: Counter[str | None] = Counter()
        self._bins = np.zeros(_BINS + 1, np.int64)

    def count(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Pass tables on, counted."""
        for table in tables:
            for entry in pc.value_counts(table["status"].combine_chunks()).to_pylist():
                self.statuses[entry["values"]] += entry["counts"]
            if "error" in table.column_names:
                self.unforeseen += pc.sum(pc.starts_with(table["error"], UNFORESEEN)).as_py() or 0
            if causes := causes_of(table.schema):
                self.causes.update(dict.fromkeys(causes, 0))
                named = table.filter(pc.equal(table["status"], Status.OK.value))[CAUSE]
                for entry in pc.value_counts(named.combine_chunks()).to_pylist():
                    self.causes[entry["values"]] += entry["counts"]
            scores = table["score"].drop_null().to_numpy()
            if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
                raise InputError(f"a score of {scores.max() if scores.max() > 1 else scores.min():g}, not from 0 to 1")
            self._bins += np.bincount(np.rint(scores * _BINS).astype(np.int64), minlength=_BINS + 1)
            yield table

    def named(self) -> dict[str, int]:
        """Rows by their cause, most frequent first; empty where rows tell of none."""
        return {name: count for name, count in self.causes.most_common() if name is not None}

    def quantiles(self) -> dict[str, float]:
        """Score at each of QUANTILES, to 1e-4."""
        below = np.cumsum(self._bins)
        if below[-1] == 0:
            return {}
        return {f"{q:g}": float(np.searchsorted(below, q * below[-1])) / _BINS for q in QUANTILES}
