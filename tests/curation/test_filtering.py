"""Which rows are kept: against a plain reimplementation, for all combinations of rules; and what is refused."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiqa_trt.curation.kept import Kept
from fiqa_trt.curation.select import Amount, Rules, Selection, select
from fiqa_trt.errors import InputError, UsageError
from fiqa_trt.scores.grouping import grouping
from tests.helpers import Row, row, write


def kept(path: Path, rules: Rules) -> list[str]:
    mask = select(path, rules).mask
    return [name for name, keep in zip(pq.read_table(path)["path"].to_pylist(), mask, strict=True) if keep]


def plainly(rows: list[Row], rules: Rules) -> list[str]:
    """The rules, read aloud."""
    seen, scored = set(), []
    for index, r in enumerate(rows):
        if r["score"] is not None and r["path"] not in seen:
            scored.append({**r, "index": index, "group": r["path"].rpartition("/")[0]})
            seen.add(r["path"])

    def best(items: list[Row], amount: Amount) -> list[Row]:
        ordered = sorted(items, key=lambda r: (-np.float32(r["score"]), r["path"]))
        share = math.ceil(round(len(items) * amount.value / 100, 9))
        return ordered[: share if amount.percent else int(amount.value)]

    def by_group(items: list[Row]) -> list[list[Row]]:
        ordered = sorted(items, key=lambda r: r["group"])
        return [list(group) for _, group in itertools.groupby(ordered, lambda r: r["group"])]

    left = [r for r in scored if rules.min_score is None or np.float32(r["score"]) >= np.float32(rules.min_score)]
    if rules.per_group:
        left = [r for group in by_group(left) for r in best(group, rules.per_group)]
    if rules.keep:
        left = best(left, rules.keep)
    if rules.keep_at_least:
        for group in by_group(scored):
            if sum(r["group"] == group[0]["group"] for r in left) < rules.keep_at_least:
                have = {r["index"] for r in left}
                left += [r for r in best(group, Amount(rules.keep_at_least)) if r["index"] not in have]
    indices = {r["index"] for r in left}
    return [r["path"] for index, r in enumerate(rows) if index in indices]


amounts = st.one_of(
    st.integers(1, 5).map(Amount),
    st.sampled_from([1, 10, 33.3, 50, 80, 100]).map(lambda p: Amount(p, True)),
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    items=st.lists(
        st.tuples(
            st.sampled_from(["a", "b", "c/d", ""]), st.integers(0, 9), st.sampled_from([None, 0.1, 0.3, 0.3, 0.5, 0.9])
        ),
        min_size=1,
        max_size=30,
    ),
    min_score=st.sampled_from([None, 0.0, 0.3, 0.6]),
    per_group=st.none() | amounts,
    keep=st.none() | amounts,
    least=st.integers(0, 3),
)
def test_any_combination_keeps_what_the_rules_say(
    tmp_path: Path, items: list[tuple[str, int, float | None]], min_score: float | None, per_group: Amount | None,
    keep: Amount | None, least: int,
) -> None:  # fmt: skip
    rows = [row(f"{folder}/{name}.jpg" if folder else f"{name}.jpg", score) for folder, name, score in items]
    path = write(tmp_path / "s.parquet", rows, 7)
    if min_score is None and per_group is None and keep is None:
        with pytest.raises(UsageError, match="nothing to filter by"):
            Rules()
        return
    rules = Rules(min_score, None, per_group, keep, least)
    if all(score is None for _, _, score in items):
        with pytest.raises(InputError, match="none of its"):
            select(path, rules)
        return
    assert kept(path, rules) == plainly(rows, rules)
    selection = select(path, rules)
    assert selection.kept == len(rows) - sum(selection.dropped.values()) + selection.brought_back
    assert all(count > 0 for count in selection.dropped.values())


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    rows = [
        row("p1/a.jpg", 0.9, person="x"),
        row("p1/b.jpg", 0.2, person="x"),
        row("p2/a.jpg", 0.5, 0.8, person="y"),
        row("p2/b.jpg", None, person="y"),
        row("p3/a.jpg", 0.1, person=None),
        row("s.tar::p/a.jpg", 0.4, person="z"),
        row("s.tar::b.jpg", 0.3, person="z"),
    ]
    return write(tmp_path / "s.parquet", rows)


def chosen(scores: Path, **rules: Any) -> Selection:
    return select(scores, Rules(**rules))


def test_reasons_and_lost_groups(scores: Path) -> None:
    selection = chosen(scores, min_score=0.3, per_group=Amount(1))
    assert selection.dropped == {"failed": 1, "below --min-score": 2}
    assert selection.lost == ["p3"]
    assert selection.groups == 5
    rescued = chosen(scores, min_score=0.3, keep_at_least=1)
    assert rescued.lost == []
    assert (rescued.dropped, rescued.brought_back) == ({"failed": 1, "below --min-score": 2}, 1)


def test_groups_of_which_every_image_failed(tmp_path: Path) -> None:
    rows = [row("p1/a.jpg", 0.9), row("p2/a.jpg", None), row("p2/b.jpg", None), row("stray.jpg", None)]
    path = write(tmp_path / "s.parquet", rows)
    for rules in ({"per_group": Amount(1)}, {"min_score": 0.1, "keep_at_least": 1}):
        found = chosen(path, group_by=r"^(p\d)/", **rules)  # which does not match the stray, that has no score
        assert (found.kept, found.groups, found.lost, found.unscored) == (1, 2, [], ["p2"])
    assert chosen(path, min_score=0.1, group_by=r"^(p\d)/").unscored == ["p2"]


def test_disagreement(scores: Path) -> None:
    assert kept(scores, Rules(max_disagreement=0.2)) == [
        "p1/a.jpg", "p1/b.jpg", "p3/a.jpg", "s.tar::p/a.jpg", "s.tar::b.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        ("parent", ["p1/a.jpg", "p2/a.jpg", "p3/a.jpg", "s.tar::p/a.jpg", "s.tar::b.jpg"]),
        ("person", ["p1/a.jpg", "p2/a.jpg", "p3/a.jpg", "s.tar::p/a.jpg"]),
        (r"(.)\.jpg$", ["p1/a.jpg", "s.tar::b.jpg"]),
        (r"(?P<who>[ab])\.jpg", ["p1/a.jpg", "s.tar::b.jpg"]),
        (r"^(p\d|s)", ["p1/a.jpg", "p2/a.jpg", "p3/a.jpg", "s.tar::p/a.jpg"]),
    ],
)
def test_groups(scores: Path, group_by: str, expected: list[str]) -> None:
    assert kept(scores, Rules(per_group=Amount(1), group_by=group_by)) == expected


@pytest.mark.parametrize(
    ("group_by", "message"),
    [
        ("people", "neither `parent` nor a column (carried along: person)"),
        ("(", "not a regular expression"),
        ("(a)(b)", "one bracket"),
        (r"^(p\d)/", "it does not match every path that has a score, for one not s.tar::p/a.jpg"),
        (r"(?P<a>x)(?=y)", "--group-by"),
    ],
)
def test_groups_that_cannot_be_told(scores: Path, group_by: str, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        chosen(scores, per_group=Amount(1), group_by=group_by)


def test_files_that_are_none_of_ours(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(InputError, match=message):
            select(tmp_path / "x.parquet", Rules(min_score=0.5))

    refused("cannot be read")
    (tmp_path / "x.parquet").write_text("junk")
    refused("cannot be read")
    pq.write_table(pa.table({"path": ["a"], "score": [0.5]}), tmp_path / "x.parquet")
    refused("no column status")
    write(tmp_path / "x.parquet", [row("a", 0.5)])
    pq.write_table(pq.read_table(tmp_path / "x.parquet").slice(0, 0), tmp_path / "x.parquet")
    refused("has no rows")
    write(tmp_path / "x.parquet", [row("a", None), row("b", None)])
    refused("none of its 2 rows has a score")


def test_rules_that_cannot_be_meant() -> None:
    for wrong in (
        {"min_score": 1.1},
        {"max_disagreement": -0.1},
        {"keep_at_least": -1, "min_score": 0.1},
        {"keep_at_least": 1},
    ):
        with pytest.raises(UsageError):
            Rules(**wrong)
    for text in ("0", "-1", "1.5", "101%", "0%", "x", "nan", "%"):
        with pytest.raises(UsageError, match="neither a number"):
            Amount.parse(text)
    assert Amount.parse("80%") == Amount(80, True)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_other_formats(scores: Path, tmp_path: Path, suffix: str) -> None:
    from fiqa_trt.curation.delivery import write_rows

    rules = Rules(keep=Amount(50, True))
    write_rows(Kept(scores, np.ones(7, bool)), tmp_path / f"s.{suffix}")
    assert (select(tmp_path / f"s.{suffix}", rules).mask == select(scores, rules).mask).all()


@pytest.mark.parametrize(
    ("pattern", "group"),
    [(r"[(](\w+)", "b"), (r"\((\w+)", "b"), (r"[](](?:\w)[)]/(.)", "c"), (r"(?P<g>^.)", "a"), (r"(?i)(A)", "a")],
)
def test_groups_by_a_regular_expression(tmp_path: Path, pattern: str, group: str) -> None:
    path = write(tmp_path / "s.parquet", [row("a/(b)/c.jpg", 0.5)])
    assert grouping(pattern, path)(pq.read_table(path)).to_pylist() == [group]


@pytest.mark.parametrize("values", [[[1, 2]], [b"\xff"]])
def test_groups_by_a_column_that_names_none(tmp_path: Path, values: list[Any]) -> None:
    path = tmp_path / "s.parquet"
    pq.write_table(pa.table({"path": ["a"], "score": [0.5], "status": ["ok"], "x": values}), path)
    with pytest.raises(InputError, match=r"--group-by x: a column of .* names no groups"):
        grouping("x", path)(pq.read_table(path))
