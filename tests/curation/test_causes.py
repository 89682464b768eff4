"""Rows chosen by what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fiqa_trt.api import filter_scores
from fiqa_trt.curation.select import Rules, select
from fiqa_trt.errors import InputError, UsageError
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import SUFFIXES, read_schema
from fiqa_trt.scores.members import causes_of
from tests.helpers import TOLD, call_filter, mean_executor, spoil, telling_executor


@pytest.fixture(params=SUFFIXES)
def told(crops: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    spoil(crops)
    output = tmp_path / f"s{request.param}"
    score_dataset(Source((str(crops),)), output, telling_executor)
    return output


def rows(told: Path) -> list[dict[str, object]]:
    table = told.with_name("all.parquet")
    filter_scores(told, table, min_score=0, restart=True)
    return list(pq.read_table(table).to_pylist())


def test_rows_are_chosen_by_causes(told: Path, tmp_path: Path) -> None:
    every = rows(told)
    severities = sorted(float(row["cause_noise"]) for row in every)  # type: ignore[arg-type]
    limit = severities[len(severities) // 2]
    found = filter_scores(told, tmp_path / f"kept{told.suffix}", max_cause={"noise": limit})
    assert found.selection.kept == sum(value <= limit for value in severities)
    assert found.selection.dropped["above --max-cause noise"] == sum(value > limit for value in severities)
    assert causes_of(read_schema(tmp_path / f"kept{told.suffix}", ["path"])) == TOLD.names
    names = {row["cause"] for row in every}
    assert names >= {None, "blur"}
    found = filter_scores(told, drop_cause=["blur", "light"])
    assert found.selection.kept == sum(row["cause"] not in ("blur", "light") for row in every)
    assert found.selection.dropped["of --drop-cause blur"] == sum(row["cause"] == "blur" for row in every)


def test_of_an_unknown_cause_and_of_an_output_without(told: Path, crops: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--max-cause hat: .* tells of blur, noise, light, occlusion$"):
        select(told, Rules(max_cause=(("hat", 0.5),)))
    plain = tmp_path / f"plain{told.suffix}"
    score_dataset(Source((str(crops),)), plain, mean_executor)
    with pytest.raises(InputError, match=r"--drop-cause blur: .* does not tell of causes; score --causes writes one"):
        select(plain, Rules(drop_cause=("blur",)))


def test_what_cannot_be_meant() -> None:
    with pytest.raises(UsageError, match="--max-cause blur=30: severities lie between 0 and 1"):
        Rules(max_cause=(("blur", 30.0),))
    assert "--max-cause': blur: give how much of it, as in blur=0.3" in call_filter(
        __file__, "--dry-run", "--max-cause", "blur", code=2
    )
    assert "=0.5: of which cause? Give its name, as in blur=0.3" in call_filter(
        __file__, "--dry-run", "--max-cause", "=0.5", code=2
    )
    assert "blur=x: give a number, as in blur=0.3" in call_filter(
        __file__, "--dry-run", "--max-cause", "blur=x", code=2
    )


def test_several_of_a_kind(crops: Path, tmp_path: Path) -> None:
    score_dataset(Source((str(crops),)), tmp_path / "s.parquet", telling_executor)
    said = call_filter(
        tmp_path / "s.parquet",
        "--dry-run",
        "--max-cause",
        "blur=0.5",
        "--max-cause",
        "noise=0.4",
        "--drop-cause",
        "light",
    )
    assert "above --max-cause blur" in said
    assert "above --max-cause noise" in said


def test_a_cause_that_is_named_twice(told: Path) -> None:
    """All limits of it hold, so the lowest does, whatever their order."""
    lowest = filter_scores(told, max_cause={"noise": 0.3}).selection
    assert 0 < lowest.kept < len(lowest.mask)
    for limits in ([("noise", 0.3), ("noise", 0.9)], [("noise", 0.9), ("noise", 0.3)]):
        found = filter_scores(told, max_cause=limits).selection
        assert (found.mask.tolist(), found.dropped) == (lowest.mask.tolist(), lowest.dropped)
    words = [word for most in (0.3, 0.9) for word in ("--max-cause", f"noise={most}")]
    assert f"{lowest.kept} of {len(lowest.mask)} rows kept" in call_filter(told, "--dry-run", *words)
    once, twice = (filter_scores(told, drop_cause=["blur"] * times).selection for times in (1, 2))
    assert (once.mask.tolist(), once.dropped) == (twice.mask.tolist(), twice.dropped)
    with pytest.raises(UsageError, match="blur=nan: severities lie between 0 and 1"):
        Rules(max_cause=(("blur", 0.3), ("blur", float("nan"))))
