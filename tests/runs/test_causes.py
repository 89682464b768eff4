"""Rows that tell of causes: what is named, what fails, and that no row stands beside one that tells of others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.errors import DifferentRun, EngineError
from fiqa_trt.executors.base import Setup
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.causes import Causes
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.outcomes import Status
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.update import update_dataset
from fiqa_trt.scores.files import SUFFIXES, output_metadata, read_output, read_schema
from fiqa_trt.scores.members import causes_of, members_of
from tests.helpers import SMALL, TOLD, MeanEngine, in_process, mean_executor, spoil, telling_executor

COLUMNS = [f"cause_{name}" for name in TOLD.names]
severities = st.lists(st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4), min_size=1, max_size=20)


@given(severities)
def test_what_is_named_is_the_farthest_above_its_threshold(rows: list[list[float]]) -> None:
    found = TOLD.worst(np.array(rows, np.float32))
    for name, row in zip(found, rows, strict=True):
        above = {
            n: v - np.float32(t) for n, v, t in zip(TOLD.names, np.array(row, np.float32), TOLD.thresholds, strict=True)
        }
        assert (name is None) == (max(above.values()) <= 0)
        assert name is None or above[name] == max(above.values())


def run(crops: Path, output: Path, options: Options = SMALL) -> list[dict[str, object]]:
    score_dataset(Source((str(crops),)), output, telling_executor, options)
    return list(pa.concat_tables(read_output(output, ["path"])).to_pylist())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_each_row_tells_what_its_image_was_given(crops: Path, tmp_path: Path, suffix: str) -> None:
    spoil(crops)
    found, without = run(crops, tmp_path / f"s{suffix}"), tmp_path / f"plain{suffix}"
    score_dataset(Source((str(crops),)), without, mean_executor, SMALL)
    plain = list(pa.concat_tables(read_output(without, ["path"])).to_pylist())
    assert [{k: v for k, v in row.items() if not k.startswith("cause")} for row in found] == plain
    names = list(found[0])
    assert names[names.index("score") + 3 : names.index("width")] == ["cause", *COLUMNS]
    assert {row["status"] == "ok" for row in found} == {True, False}
    for row in found:
        values = [row[name] for name in COLUMNS]
        if row["status"] != Status.OK.value:
            assert [row["cause"], *values] == [None] * 5
            continue
        red = row["score_mobilenet_v3_small"]
        assert values == pytest.approx([red, 0.9 * red, 0.8 * red, 0.7 * red], abs=1e-6)  # type: ignore[operator]
        assert row["cause"] == TOLD.worst(np.array([values], np.float32))[0]
    schema = read_schema(tmp_path / f"s{suffix}", ["path"])
    assert (members_of(schema), causes_of(schema)) == (MEMBERS, TOLD.names)
    assert causes_of(read_schema(without, ["path"])) == ()


def test_the_summary_counts_them(crops: Path, tmp_path: Path) -> None:
    spoil(crops)
    summary = score_dataset(Source((str(crops),)), tmp_path / "s.parquet", telling_executor, SMALL)
    found = [row["cause"] for row in run(crops, tmp_path / "s.parquet") if row["status"] == "ok"]
    assert summary.causes == {name: found.count(name) for name in TOLD.names}
    assert list(summary.causes.values()) == sorted(summary.causes.values(), reverse=True)
    again = score_dataset(Source((str(crops),)), tmp_path / "s.parquet", telling_executor, SMALL)
    assert (again.already, again.causes) == (True, summary.causes)
    assert not score_dataset(Source((str(crops),)), tmp_path / "p.parquet", mean_executor, SMALL).causes


def test_the_output_records_from_where_on_a_cause_is_named(crops: Path, tmp_path: Path) -> None:
    run(crops, tmp_path / "s.parquet")
    metadata = output_metadata(tmp_path / "s.parquet")
    assert metadata is not None
    assert metadata["causes"] == TOLD.named()
    score_dataset(Source((str(crops),)), tmp_path / "plain.parquet", mean_executor, SMALL)
    assert "causes" not in (output_metadata(tmp_path / "plain.parquet") or {})


def test_an_own_column_of_that_name_is_carried_along(crops: Path, tmp_path: Path) -> None:
    """Which a list may have that knows nothing of ours."""
    table = tmp_path / "list.csv"
    table.write_text("path,cause,cause_blur\n" + "".join(f"{path},mine,x\n" for path in sorted(crops.rglob("*.jpg"))))
    for suffix in SUFFIXES:
        output = tmp_path / f"s{suffix}"
        score_dataset(Source(list_file=str(table)), output, mean_executor, SMALL)
        assert causes_of(read_schema(output, ["path"])) == ()
        found = pa.concat_tables(read_output(output, ["path"]))
        assert set(found["cause"].to_pylist()) == {"mine"}


def test_an_engine_that_tells_of_none(crops: Path, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="--causes: the checkpoint of this engine tells of none; leave it out"):
        score_dataset(
            Source((str(crops),)), tmp_path / "s.parquet", lambda: in_process(MeanEngine(), setup=Setup(causes=True))
        )
    assert not (tmp_path / "s.parquet").exists()
    assert not (tmp_path / "s.parquet.partial").exists()


def test_a_run_with_causes_is_another_run(crops: Path, tmp_path: Path) -> None:
    run(crops, tmp_path / "s.parquet")
    with pytest.raises(DifferentRun, match="causes: True there, none now"):
        score_dataset(Source((str(crops),)), tmp_path / "s.parquet", mean_executor, SMALL)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_retry_and_update_tell_what_the_output_tells(crops: Path, tmp_path: Path, suffix: str) -> None:
    output, good = tmp_path / f"s{suffix}", (crops / "a" / "0.jpg").read_bytes()
    (crops / "a" / "0.jpg").write_bytes(b"")
    run(crops, output)
    (crops / "a" / "0.jpg").write_bytes(good)
    retry_failed(output, telling_executor, SMALL)
    whole = run(crops, tmp_path / f"whole{suffix}")
    assert list(pa.concat_tables(read_output(output, ["path"])).drop_columns(["bytes", "modified"]).to_pylist()) == [
        {key: value for key, value in row.items() if key not in ("bytes", "modified")} for row in whole
    ]
    (crops / "b" / "9.jpg").unlink()
    (crops / "c.jpg").write_bytes(good)
    update_dataset(Source((str(crops),)), output, telling_executor, SMALL)
    again = list(pa.concat_tables(read_output(output, ["path"])).to_pylist())
    assert again == run(crops, tmp_path / f"anew{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_with_and_without_causes_never_stand_together(crops: Path, tmp_path: Path, suffix: str) -> None:
    (crops / "a" / "0.jpg").write_bytes(b"")
    told, plain = tmp_path / f"told{suffix}", tmp_path / f"plain{suffix}"
    run(crops, told)
    score_dataset(Source((str(crops),)), plain, mean_executor, SMALL)
    before = {path: path.read_bytes() for path in (told, plain)}

    def other() -> object:
        return telling_executor(Causes.untuned(["pose"]))

    for refused, executor, why in (
        (told, mean_executor, "tell of blur, noise, light, occlusion, and this engine of none; give the --engine"),
        (told, other, "tell of blur, noise, light, occlusion, and this engine of pose"),
        (plain, telling_executor, "do not tell of causes; --restart scores all of them with --causes"),
    ):
        with pytest.raises(DifferentRun, match=why):
            retry_failed(refused, executor, SMALL)  # type: ignore[arg-type]
        with pytest.raises(DifferentRun, match=why):
            update_dataset(Source((str(crops),)), refused, executor, SMALL)  # type: ignore[arg-type]
    assert {path: path.read_bytes() for path in before} == before


def test_a_part_of_a_cause_that_is_not_from_0_to_1_is_refused(crops: Path, tmp_path: Path) -> None:
    run(crops, tmp_path / "s.parquet")
    table = pq.read_table(tmp_path / "s.parquet")
    place = table.column_names.index("cause_blur")
    pq.write_table(table.set_column(place, "cause_blur", pa.array([2.0] * len(table))), tmp_path / "s.parquet")
    with pytest.raises(Exception, match="a cause_blur of 2, not from 0 to 1"):
        list(read_output(tmp_path / "s.parquet", ["path"]))
