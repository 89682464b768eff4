"""What a scores file tells of causes: how often each is named, overall and by group, and what a filter would keep."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from fiqa_trt.analysis.extremes import Extremes
from fiqa_trt.models.causes import MEANINGS, SUPERLATIVES
from fiqa_trt.scores.members import causes_of
from fiqa_trt.scores.schema import CAUSE

if TYPE_CHECKING:
    import pyarrow as pa

LIMITS = (0.1, 0.3, 0.5, 0.7, 0.9)
MOST_GROUPS = 100
_PENDING = 1 << 20  # rows of counts that are kept before they are summed
_PAIR = ["group", "cause", "images"]


@dataclasses.dataclass(frozen=True)
class Cause:
    """A cause in a scores file.

    Attributes:
        name: of it.
        meaning: in a few words; empty for one that is not among ours.
        named: images that have it as their cause.
        kept: what `filter --max-cause` keeps with each of LIMITS.
    """

    name: str
    meaning: str
    named: int
    kept: list[int]


@dataclasses.dataclass(frozen=True)
class Afflicted:
    """A group: its images that have a score, and how many of these have each cause, in the order of the causes."""

    name: str
    scored: int
    named: list[int]


@dataclasses.dataclass(frozen=True)
class Told:
    """What the page shows of causes.

    Attributes:
        scored: images.
        causes: each of them; none for a file that tells of none.
        groups: those with the most images that have a cause, up to MOST_GROUPS.
        group_count: how many groups have any.
    """

    scored: int
    causes: list[Cause]
    groups: list[Afflicted]
    group_count: int

    @property
    def spotless(self) -> int:
        """Images that have a score and no cause."""
        return self.scored - sum(cause.named for cause in self.causes)

    def __str__(self) -> str:
        """In a line, the most frequent first."""
        often = sorted((cause for cause in self.causes if cause.named), key=lambda cause: -cause.named)
        shares = [f"{cause.name} {cause.named / self.scored:.1%}" for cause in often]
        return "causes: " + ", ".join([*shares, f"none {self.spotless / max(self.scored, 1):.1%}"])


class CauseLedger:
    """Takes rows that have scores, and gives out what is told of causes."""

    def __init__(self, schema: pa.Schema, sheet: int) -> None:
        """Of a file with this schema; `sheet` says how many images the contact sheet of each cause has."""
        self.names = causes_of(schema)
        self._scored, self._below = 0, {name: np.zeros(len(LIMITS), np.int64) for name in self.names}
        self._worst = {name: Extremes(sheet) for name in self.names}
        self._pairs, self._pending = list["pa.Table"](), 0

    def add(self, good: pa.Table, groups: pa.Array | pa.ChunkedArray) -> None:
        """Rows, and the names of their groups."""
        import pyarrow as pa

        if not self.names or not good.num_rows:
            return
        self._scored += good.num_rows
        paths = good["path"].combine_chunks()
        for name in self.names:
            severities = good[f"{CAUSE}_{name}"].to_numpy().astype(np.float32)
            self._below[name] += [int((severities <= np.float32(limit)).sum()) for limit in LIMITS]
            self._worst[name].add(-severities.astype(np.float64), paths, severities)
        pairs = pa.table({"group": groups, "cause": good[CAUSE], "images": np.ones(good.num_rows, np.int64)})
        self._pairs.append(_summed([pairs]))
        self._pending += self._pairs[-1].num_rows
        if self._pending > _PENDING:
            self._pairs = [_summed(self._pairs)]
            self._pending = self._pairs[0].num_rows

    def told(self) -> Told:
        """Everything so far."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if not self._pairs:
            return Told(0, [Cause(name, MEANINGS.get(name, ""), 0, [0] * len(LIMITS)) for name in self.names], [], 0)
        pairs = _summed(self._pairs)
        total = _by(pairs, "cause")
        causes = [
            Cause(name, MEANINGS.get(name, ""), total.get(name, 0), self._below[name].tolist()) for name in self.names
        ]
        afflicted = _by(pairs.filter(pc.is_valid(pairs["cause"])), "group")
        worst = sorted(afflicted, key=lambda name: (-afflicted[name], str(name)))[:MOST_GROUPS]
        theirs = pairs.filter(pc.is_in(pairs["group"], value_set=pa.array(worst, pairs["group"].type)))
        scored, named = _by(theirs, "group"), dict[tuple[str | None, str | None], int]()
        for group, cause, images in zip(*(theirs[name].to_pylist() for name in _PAIR), strict=True):
            named[group, cause] = images
        groups = [
            Afflicted(str(name or ""), scored[name], [named.get((name, cause), 0) for cause in self.names])
            for name in worst
        ]
        return Told(self._scored, causes, groups, len(afflicted))

    def sheets(self) -> dict[str, list[tuple[str, float]]]:
        """Path and severity of the images that have the most of each cause, by title."""
        return {SUPERLATIVES.get(name, f"The most {name}"): rows.rows() for name, rows in self._worst.items()}


def _summed(pairs: list[pa.Table]) -> pa.Table:
    """Images of each group and cause."""
    import pyarrow as pa

    summed = pa.concat_tables(pairs).group_by(["group", "cause"]).aggregate([("images", "sum")])
    return pa.table([summed["group"], summed["cause"], summed["images_sum"]], _PAIR)


def _by(pairs: pa.Table, name: str) -> dict[str | None, int]:
    """Images by group, or by cause."""
    summed = pairs.group_by(name).aggregate([("images", "sum")])
    return dict(zip(summed[name].to_pylist(), summed["images_sum"].to_pylist(), strict=True))
