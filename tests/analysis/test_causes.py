"""What the page tells of causes, against plain counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.analysis import causes
from fiqa_trt.analysis.causes import LIMITS, CauseLedger
from fiqa_trt.analysis.explain import explain
from fiqa_trt.analysis.report import survey, write_report
from fiqa_trt.curation.select import Rules, select
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.causes import CAUSES, SUPERLATIVES, Causes
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.score import Score
from tests.helpers import TOLD, invoke, mean_executor, spoil, telling_executor


@pytest.fixture
def told(crops: Path, tmp_path: Path) -> Path:
    spoil(crops)
    score_dataset(Source((str(crops),)), tmp_path / "s.parquet", telling_executor)
    return tmp_path / "s.parquet"


def test_figures(told: Path, tmp_path: Path) -> None:
    found = survey(told, sheet=6)
    rows = [row for row in pq.read_table(told).to_pylist() if row["status"] == "ok"]
    named = Counter(row["cause"] for row in rows)
    assert {cause.name: cause.named for cause in found.told.causes} == {name: named[name] for name in TOLD.names}
    assert (found.told.scored, found.told.spotless) == (len(rows), named[None])
    assert 0 < named[None] < len(rows)
    for cause in found.told.causes:
        assert cause.kept == [select(told, Rules(max_cause=((cause.name, limit),))).kept for limit in LIMITS]
    for group in found.told.groups:
        mine = [row for row in rows if str(Path(row["path"]).parent) == group.name]
        assert group.scored == len(mine)
        assert group.named == [sum(row["cause"] == name for row in mine) for name in TOLD.names]
    assert found.told.group_count == len({str(Path(row["path"]).parent) for row in rows if row["cause"]})
    assert list(found.sheets_of_causes) == [SUPERLATIVES[name] for name in TOLD.names]
    most = sorted((row["cause_blur"] for row in rows), reverse=True)[:3]
    assert [each.value for each in found.sheets_of_causes["The most blurred"]] == pytest.approx(most)
    write_report(tmp_path / "r.html", found)
    page = (tmp_path / "r.html").read_text()
    assert page.count("<h3>") == 1 + len(TOLD)
    assert "--drop-cause" in page


group_and_cause = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["blur", "noise", None]))


@given(st.lists(group_and_cause, min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 3))
def test_groups_are_counted_as_they_pass_by(rows: list[tuple[str, str | None]], part: int, most: int) -> None:
    count = len(rows)
    columns = {
        "path": [""] * count,
        "score": [0.5] * count,
        "cause": pa.array([cause for _, cause in rows], pa.string()),
    }
    columns |= {f"cause_{name}": pa.array([0.5] * count, pa.float32()) for name in ("blur", "noise")}
    table, names = pa.table({**columns, "width": [1] * count}), pa.array([group for group, _ in rows])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causes, "_PENDING", 5)
        patch.setattr(causes, "MOST_GROUPS", most)
        ledger = CauseLedger(table.schema, 0)
        for start in range(0, len(rows), part):
            ledger.add(table.slice(start, part), names.slice(start, part))
        told = ledger.told()
    assert told.scored == count
    assert [cause.named for cause in told.causes] == [sum(c == n for _, c in rows) for n in ("blur", "noise")]
    bad = {group: sum(g == group and c is not None for g, c in rows) for group, _ in rows}
    assert told.group_count == sum(map(bool, bad.values()))
    worst = sorted((group for group in bad if bad[group]), key=lambda group: (-bad[group], group))[:most]
    assert [(group.name, group.scored, group.named) for group in told.groups] == [
        (name, sum(g == name for g, _ in rows), [rows.count((name, "blur")), rows.count((name, "noise"))])
        for name in worst
    ]


def test_it_is_said_in_a_line(told: Path, tmp_path: Path) -> None:
    done = invoke("report", told, "-o", tmp_path / "r.html", "--no-images", "--json")
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert list(facts["causes"]) == list(TOLD.names)
    assert f"causes: blur {facts['causes']['blur'] / facts['scored']:.1%}, " in done.stderr
    assert (tmp_path / "r.html").read_text().count("<h3>") == 1


def test_a_file_without_them(crops: Path, tmp_path: Path) -> None:
    score_dataset(Source((str(crops),)), tmp_path / "s.parquet", mean_executor)
    done = invoke("report", tmp_path / "s.parquet", "-o", tmp_path / "r.html", "--json")
    assert json.loads(done.stdout)["causes"] == {}
    assert "causes" not in done.stderr
    assert "<h2>Causes" not in (tmp_path / "r.html").read_text()


def test_every_cause_has_a_title_of_its_own() -> None:
    assert tuple(SUPERLATIVES) == CAUSES
    assert len(set(SUPERLATIVES.values())) == len(CAUSES)


def test_an_explanation_has_a_bar_for_each() -> None:
    """Red and as long as the severity where that is above its threshold, else blue."""
    two, pixels = Causes(("blur", "noise"), (0.4, 0.5)), np.zeros((224, 224, 3), np.uint8)
    score = Score("a", 0.5, {"x": 0.5}, 224, 224, "ok", None, {"blur": 0.8, "noise": 0.25}, "blur")
    plain, picture = explain(pixels, score), explain(pixels, score, causes=two)
    below = np.asarray(picture.crop((0, plain.height, *picture.size)))
    reds = (below == (200, 60, 50)).all(axis=2).sum(axis=1).max()
    blues = (below == (66, 103, 172)).all(axis=2).sum(axis=1).max()
    assert reds / blues == pytest.approx(0.8 / 0.25, rel=0.05)
    assert isinstance(plain, Image.Image)
    assert picture.width == plain.width
