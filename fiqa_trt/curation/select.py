"""Which images of a scores file to keep: by threshold, by group, overall. Columns in, a mask out; no Python loop a row.

The steps are taken in a fixed order, each on what the ones before have left:

1. rows without a score, and further rows of a path that was there before, are dropped;
2. `min_score`, `max_disagreement`, `max_cause` and `drop_cause`;
3. `per_group`, the best of each group;
4. `keep` or `top`, the best of all;
5. `keep_at_least` brings back the best of every group that would be left with fewer.

Better is a higher score, and among equal scores the path that comes first. Shares are rounded up.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fiqa_trt.curation.kept import Mask
from fiqa_trt.errors import InputError, UsageError, number_of
from fiqa_trt.outcomes import Status
from fiqa_trt.scores.files import read_output, read_schema
from fiqa_trt.scores.grouping import PARENT, grouping
from fiqa_trt.scores.members import causes_of, disagreement
from fiqa_trt.scores.schema import CAUSE
from fiqa_trt.storage.places import Place

if TYPE_CHECKING:
    import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Amount:
    """So many, or a share of what there is."""

    value: float
    percent: bool = False

    @classmethod
    def parse(cls, text: str, option: str = "") -> Amount:
        """`100` or `80%`. Raises UsageError, which begins with `option`."""
        percent = text.endswith("%")
        try:
            value = float(text.removesuffix("%"))
        except ValueError:
            value = math.nan
        if not (0 < value <= 100 if percent else value >= 1 and value.is_integer()):
            raise UsageError(f"{option}{text}: neither a number of images like 100 nor a percentage like 80%")
        return cls(value, percent)

    def of(self, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """How many of each of `counts`."""
        if not self.percent:
            return np.minimum(counts, int(self.value))
        # Exact for every share with a few decimals, where 0.8 * 10 in binary may not be.
        return np.ceil(np.round(counts * self.value / 100, 9)).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Rules:
    """What to keep.

    Attributes:
        min_score: lowest score, 0 to 1.
        max_disagreement: largest difference between two members' scores, 0 to 1.
        per_group: of each group.
        keep: of all that is left.
        keep_at_least: of each group, whatever its scores.
        group_by: `parent` (the folder), the name of a column, or a regular expression that is searched for in the path;
            its first bracket is the group.
        max_cause: of causes by name the largest severity, 0 to 1; of several of one cause the lowest.
        drop_cause: rows that have one of these as their cause go.
    """

    min_score: float | None = None
    max_disagreement: float | None = None
    per_group: Amount | None = None
    keep: Amount | None = None
    keep_at_least: int = 0
    group_by: str = PARENT
    max_cause: tuple[tuple[str, float], ...] = ()
    drop_cause: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises UsageError for a rule that cannot be meant."""
        for name in ("min_score", "max_disagreement"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"--{name.replace('_', '-')} {value:g}: scores lie between 0 and 1")
        for cause, value in self.max_cause:
            if not 0 <= value <= 1:
                raise UsageError(f"--max-cause {cause}={value:g}: severities lie between 0 and 1")
        object.__setattr__(self, "max_cause", _lowest(self.max_cause))
        object.__setattr__(self, "drop_cause", tuple(dict.fromkeys(self.drop_cause)))
        if self.keep_at_least < 0:
            raise UsageError(f"--keep-at-least {self.keep_at_least}: it cannot be negative")
        if not self.anything():
            raise UsageError(
                "nothing to filter by: give --min-score, --keep, --top, --per-group, --max-disagreement, --max-cause "
                "or --drop-cause"
            )

    def anything(self) -> bool:
        """Whether any rule drops something."""
        rules = (self.min_score, self.max_disagreement, self.per_group, self.keep)
        return any(value is not None for value in rules) or bool(self.max_cause or self.drop_cause)

    @property
    def grouped(self) -> bool:
        """Whether groups matter."""
        return self.per_group is not None or self.keep_at_least > 0 or self.group_by != PARENT


@dataclasses.dataclass(frozen=True)
class Selection:
    """What a filter keeps.

    Attributes:
        mask: bool [rows of the file].
        dropped: rows by reason, in the order of the steps.
        brought_back: rows that were dropped and that `keep_at_least` keeps all the same.
        highest: of all scores.
        groups: how many there are; 0 if they did not matter.
        lost: groups that had scores and keep nothing, by name, in order.
        unscored: groups without an image that has a score, which no rule can keep, likewise.
        short: groups that have scores, but fewer than `keep_at_least`, and keep all of these, likewise.
    """

    mask: Mask
    dropped: dict[str, int]
    brought_back: int
    highest: float
    groups: int
    lost: list[str]
    unscored: list[str]
    short: list[str]

    @property
    def kept(self) -> int:
        """How many rows."""
        return int(self.mask.sum())


@dataclasses.dataclass(frozen=True)
class _Columns:
    """What the rules look at, row for row."""

    paths: pa.ChunkedArray
    scores: npt.NDArray[np.float32]  # NaN without one
    disagreement: npt.NDArray[np.float32] | None
    groups: npt.NDArray[np.int64] | None  # -1 for a failed row that belongs to none
    names: pa.Array | None  # of the groups
    causes: dict[str, Mask]  # by what is said of those that go: the rows that stay


def select(scores: Place, rules: Rules) -> Selection:
    """Apply rules to a scores file, streaming it once.

    Raises:
        InputError: it cannot be read, lacks a column, holds no score, or the groups cannot be told.
    """
    columns = _read(scores, rules)
    values = columns.scores
    dropped: dict[str, int] = {}

    def drop(reason: str, kept: Mask, remaining: Mask) -> Mask:
        after = kept & remaining
        if lost := int(kept.sum() - after.sum()):
            dropped[reason] = lost
        return after

    everything = np.ones(len(values), bool)
    kept = drop("failed", everything, ~np.isnan(values))
    if not kept.any():
        raise InputError(
            f"{scores}: none of its {number_of(len(values), 'row')} has a score, so there is nothing to choose from"
        )
    kept = scored = drop("duplicate", kept, _first_of_each(columns.paths, kept))
    if rules.min_score is not None:
        kept = drop("below --min-score", kept, values >= np.float32(rules.min_score))
    if columns.disagreement is not None and rules.max_disagreement is not None:
        kept = drop("above --max-disagreement", kept, columns.disagreement <= np.float32(rules.max_disagreement))
    for reason, stays in columns.causes.items():
        kept = drop(reason, kept, stays)
    if rules.per_group is not None and columns.groups is not None:
        kept = drop("beyond --per-group", kept, _best(columns, kept, columns.groups, rules.per_group))
    if rules.keep is not None:
        one = np.zeros(len(values), np.int64)
        kept = drop("beyond --keep or --top", kept, _best(columns, kept, one, rules.keep))
    brought_back, lost, unscored, short = 0, list[str](), list[str](), list[str]()
    if columns.groups is not None and columns.names is not None:
        if rules.keep_at_least:
            rescued = _rescued(columns, kept, scored, rules.keep_at_least)
            brought_back, kept = int((rescued & ~kept).sum()), rescued
        count_of = len(columns.names)
        had, has = (np.bincount(columns.groups[rows], minlength=count_of) for rows in (scored, kept))
        lost, unscored, short = (
            sorted(columns.names.take(np.flatnonzero(which)).to_pylist())
            for which in ((had > 0) & (has == 0), had == 0, (had > 0) & (had < rules.keep_at_least))
        )
    count = 0 if columns.names is None else len(columns.names)
    return Selection(kept, dropped, brought_back, float(np.nanmax(values)), count, lost, unscored, short)


def _best(columns: _Columns, kept: Mask, groups: npt.NDArray[np.int64], amount: Amount) -> Mask:
    """The best of each group among the kept rows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = np.flatnonzero(kept)
    order = rows[np.lexsort((-columns.scores[rows], groups[rows]))]
    of = groups[order]
    starts = np.flatnonzero(np.r_[True, of[1:] != of[:-1]]) if len(order) else np.zeros(0, np.int64)
    counts = np.diff(np.r_[starts, len(order)])
    cuts = starts + amount.of(counts)
    taken = np.arange(len(order)) < np.repeat(cuts, counts)
    # Where the cut goes through equal scores, their paths decide.
    values = columns.scores[order]
    new_run = np.r_[True, (of[1:] != of[:-1]) | (values[1:] != values[:-1])] if len(order) else np.zeros(0, bool)
    run = np.cumsum(new_run) - 1
    inner = cuts[cuts < starts + counts]
    split = np.unique(run[inner][run[inner] == run[inner - 1]]) if len(inner) else inner
    if len(split):
        places = np.flatnonzero(np.isin(run, split))
        tied = pa.table({"run": run[places], "path": columns.paths.take(pa.array(order[places]))})
        by_path = pc.sort_indices(tied, [("run", "ascending"), ("path", "ascending")]).to_numpy()
        order[places] = order[places][by_path]
    best = np.zeros(len(kept), bool)
    best[order[taken]] = True
    return best


def _rescued(columns: _Columns, kept: Mask, scored: Mask, least: int) -> Mask:
    """`kept`, and the best of each group that has fewer than `least`."""
    assert columns.groups is not None
    assert columns.names is not None
    poor = np.bincount(columns.groups[kept], minlength=len(columns.names)) < least
    candidates = scored & poor[columns.groups]
    return kept | _best(columns, candidates, columns.groups, Amount(least))


def _first_of_each(paths: pa.ChunkedArray, kept: Mask) -> Mask:
    """True for the first kept row of each path, and wherever there is but one."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pc.count_distinct(paths).as_py() == len(paths):
        return np.ones(len(paths), bool)
    table = pa.table({"path": paths, "row": pa.array(np.arange(len(paths)), mask=~kept)})
    first = np.zeros(len(paths), bool)
    first[table.group_by("path").aggregate([("row", "min")])["row_min"].drop_null().to_numpy()] = True
    return first


def _read(scores: Place, rules: Rules) -> _Columns:
    import pyarrow as pa
    import pyarrow.compute as pc

    paths, values, differences, groups = list[pa.Array](), list[pa.Array](), list[pa.Array](), list[pa.Array]()
    group_of = grouping(rules.group_by, scores) if rules.grouped else None
    _check_causes(scores, rules)
    stays: dict[str, list[pa.Array]] = {}
    looked_at = [f"{CAUSE}_{name}" for name, _ in rules.max_cause] + [CAUSE] * bool(rules.drop_cause)
    for part in read_output(
        scores, ["path", "score", "status", *looked_at], members=rules.max_disagreement is not None
    ):
        table = part.combine_chunks()
        paths.append(_flat(table["path"].cast(pa.large_string())))  # those of ten million rows take gigabytes
        failed = pc.not_equal(table["status"], Status.OK.value)
        values.append(_flat(pc.if_else(failed, None, table["score"])))
        if rules.max_disagreement is not None:
            differences.append(_flat(disagreement(table)))
        for reason, rows in _by_cause(table, rules):
            stays.setdefault(reason, []).append(rows)
        if group_of is not None:
            groups.append(_flat(group_of(table)).dictionary_encode())
    if not paths or not sum(map(len, paths)):
        raise InputError(f"{scores} has no rows")

    def numbers(arrays: list[pa.Array]) -> npt.NDArray[np.float32]:
        return np.concatenate([np.asarray(a.to_numpy(zero_copy_only=False), np.float32) for a in arrays])

    codes = names = None
    if groups:
        unified = pa.chunked_array(groups).unify_dictionaries()
        names = unified.chunk(0).dictionary
        codes = np.concatenate([pc.fill_null(chunk.indices, -1).to_numpy() for chunk in unified.chunks])
        codes = codes.astype(np.int64)
    return _Columns(
        pa.chunked_array(paths),
        numbers(values),
        numbers(differences) if differences else None,
        codes,
        names,
        {reason: np.concatenate([np.asarray(rows) for rows in parts]) for reason, parts in stays.items()},
    )


def _check_causes(scores: Place, rules: Rules) -> None:
    """Raise InputError for a cause in the rules that a scores file does not tell of."""
    wanted = [("--max-cause", name) for name, _ in rules.max_cause]
    wanted += [("--drop-cause", name) for name in rules.drop_cause]
    known = causes_of(read_schema(scores, ["path"])) if wanted else ()
    for option, name in wanted:
        if not known:
            raise InputError(f"{option} {name}: {scores} does not tell of causes; score --causes writes one that does")
        if name not in known:
            raise InputError(f"{option} {name}: {scores} tells of {', '.join(known)}")


def _by_cause(table: pa.Table, rules: Rules) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Of each rule on causes what is said of the rows that go, and which stay."""
    import pyarrow.compute as pc

    for name, most in rules.max_cause:
        severities = table[f"{CAUSE}_{name}"].to_numpy().astype(np.float32)
        yield f"above --max-cause {name}", severities <= np.float32(most)
    for name in rules.drop_cause:
        others = pc.fill_null(pc.not_equal(table[CAUSE], name), True)
        yield f"of --drop-cause {name}", others.to_numpy()


def _lowest(limits: Iterable[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Of several limits of a cause the lowest: with it all of them hold."""
    found = dict[str, float]()
    for name, most in limits:
        found[name] = min(most, found.get(name, most))
    return tuple(found.items())


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    import pyarrow as pa

    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
