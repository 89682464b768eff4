"""Scores by group, gathered in one pass: figures, and what each threshold leaves of each group."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

STEPS = 1000  # of the threshold's slider
THRESHOLDS = (np.arange(STEPS + 1) / STEPS).astype(np.float32)  # as `filter --min-score` compares
UNITS = (1, 10, 100, STEPS)  # steps that are told apart, where there is too much to tell
MOST_RUNS = 4_000_000
_PENDING = 4_000_000
_MOST_OF_A_RUN = 255


@dataclasses.dataclass(frozen=True)
class Group:
    """Scores of a group; the mean is None if none of its images has one."""

    name: str
    images: int
    failed: int
    mean: float | None
    lowest: float | None
    highest: float | None


@dataclasses.dataclass(frozen=True)
class Runs:
    """The scores of every group as runs of equal steps, group after group, in each from low to high.

    Attributes:
        unit: steps that are taken together; 1 where the counts are exact for each of them.
        sizes: of each group, how many runs.
        steps: of each run, as 16 bits, low byte first; of `STEPS`, multiples of the unit.
        counts: images of each run, as 8 bits; several runs of one step where there are more.
    """

    unit: int
    sizes: list[int]
    steps: bytes
    counts: bytes

    def left(self, step: int) -> npt.NDArray[np.int64]:
        """Images of each group whose scores reach a step, or the next lower one of the unit."""
        group = np.repeat(np.arange(len(self.sizes)), self.sizes)
        reached = np.frombuffer(self.steps, "<u2") >= step // self.unit * self.unit
        kept = np.where(reached, np.frombuffer(self.counts, np.uint8), 0)
        return np.bincount(group, kept, len(self.sizes)).astype(np.int64)


class Ledger:
    """Takes rows in, and gives the groups of all of them out."""

    def __init__(self) -> None:
        self._codes = dict[str, int]()
        self._images, self._scored, self._sum = (np.zeros(0) for _ in range(3))
        self._low, self._high = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._unit = UNITS[0]
        self._runs = list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]()  # keys and counts
        self._pending = 0

    def add(self, names: pa.Array | pa.ChunkedArray, scores: npt.NDArray[np.float32]) -> None:
        """Rows by the names of their groups; NaN for a row without a score."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names = names.combine_chunks() if isinstance(names, pa.ChunkedArray) else names
        encoded = pc.fill_null(names, "").dictionary_encode()
        known = [self._codes.setdefault(name, len(self._codes)) for name in encoded.dictionary.to_pylist()]
        codes = np.array(known, np.int64)[encoded.indices.to_numpy()]
        self._grow()
        good = ~np.isnan(scores)
        count, mine, values = len(self._images), codes[good], scores[good]
        self._images += np.bincount(codes, minlength=count)
        self._scored += np.bincount(mine, minlength=count)
        self._sum += np.bincount(mine, values, count)
        np.minimum.at(self._low, mine, values)
        np.maximum.at(self._high, mine, values)
        self._keep(*np.unique(mine * (STEPS + 1) + steps_of(values) // self._unit * self._unit, return_counts=True))

    def groups(self) -> tuple[list[Group], Runs]:
        """All groups, the lowest means first, then those without any score; by name where they are equal."""
        self._merge()
        keys, counts = self._runs[0] if self._runs else (np.zeros(0, np.int64), np.zeros(0, np.int64))
        names = list(self._codes)
        with np.errstate(invalid="ignore"):
            means = self._sum / self._scored  # NaN without a score, which is sorted last
        order = np.lexsort((np.array(names, object), means)) if names else np.zeros(0, np.int64)
        found = []
        for code in order:
            images, scored = int(self._images[code]), int(self._scored[code])
            figures = [float(each[code]) if scored else None for each in (means, self._low, self._high)]
            found.append(Group(names[code], images, images - scored, *figures))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        of, steps = place[keys // (STEPS + 1)], keys % (STEPS + 1)
        order = np.lexsort((steps, of))
        of, steps, counts = of[order], steps[order], counts[order]
        pieces = -(-counts // _MOST_OF_A_RUN)
        last = np.cumsum(pieces) - 1
        split = np.full(int(pieces.sum()), _MOST_OF_A_RUN, np.uint8)
        split[last] = counts - (pieces - 1) * _MOST_OF_A_RUN
        sizes = np.bincount(np.repeat(of, pieces), minlength=len(names))
        runs = np.repeat(steps, pieces).astype("<u2")
        return found, Runs(self._unit, sizes.tolist(), runs.tobytes(), split.tobytes())

    def _grow(self) -> None:
        more = len(self._codes) - len(self._images)
        if more > 0:
            self._images, self._scored, self._sum = (
                np.r_[each, np.zeros(more)] for each in (self._images, self._scored, self._sum)
            )
            self._low = np.r_[self._low, np.full(more, np.inf, np.float32)]
            self._high = np.r_[self._high, np.full(more, -np.inf, np.float32)]

    def _keep(self, keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> None:
        self._runs.append((keys, counts))
        self._pending += len(keys)
        if self._pending > _PENDING:
            self._merge()

    def _merge(self) -> None:
        """One run for each step of each group, coarser where there would be too many."""
        if not self._runs:
            return
        keys, counts = (np.concatenate(each) for each in zip(*self._runs, strict=True))
        keys, counts = _summed(keys, counts)
        while len(keys) > MOST_RUNS and self._unit != UNITS[-1]:
            self._unit = UNITS[UNITS.index(self._unit) + 1]
            group, step = keys // (STEPS + 1), keys % (STEPS + 1)
            keys, counts = _summed(group * (STEPS + 1) + step // self._unit * self._unit, counts)
        self._runs, self._pending = [(keys, counts)], 0


def steps_of(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """The highest step that each score reaches."""
    return np.searchsorted(THRESHOLDS, scores, "right") - 1


def quantile(counts: npt.NDArray[np.int64], share: float) -> float:
    """Of scores that are counted by their steps."""
    return float(np.searchsorted(np.cumsum(counts), share * counts.sum())) / STEPS


def _summed(
    keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    distinct, inverse = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(inverse, counts, len(distinct)).astype(np.int64)
