"""Outputs and stopped runs of the version before are read and resumed, or refused in a line (see before/README.md)."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_trt.analysis.report import survey
from fiqa_trt.api import filter_scores
from fiqa_trt.decoding.registry import libraries
from fiqa_trt.errors import DifferentRun
from fiqa_trt.executors.base import Executor
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.runs.update import update_dataset
from fiqa_trt.scores.files import output_metadata, read_output
from fiqa_trt.version import __version__
from tests.helpers import mean_executor

SMALL = Options(unit_rows=2)
EVERY = Source(("crops", "t.tar", "t.parquet"))
FACES = Source(("t.parquet",), image_column="face")


def workers() -> Executor:
    return mean_executor(2)


@pytest.fixture(autouse=True)
def before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that it was all made in; what depends on other programs' versions says that it is of today's."""
    with tarfile.open(Path(__file__).parent / "before" / "outputs.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    today = {"version": __version__, "libraries": libraries("cpu")}
    for run in tmp_path.glob("*.partial/run.json"):
        run.write_text(json.dumps(json.loads(run.read_text()) | today))
    for output in (tmp_path / "all.parquet", tmp_path / "face.parquet"):
        metadata = output_metadata(output)
        assert metadata is not None
        metadata["fingerprint"] |= today
        table = pq.read_table(output)
        pq.write_table(table.replace_schema_metadata({"fiqa_trt": json.dumps(metadata)}), output)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows(output: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(output).to_pylist())


@pytest.mark.slow
def test_a_stopped_run_goes_on() -> None:
    summary = score_dataset(EVERY, Path("stopped.parquet"), workers, SMALL)
    assert 0 < summary.scored_now < summary.images == 13
    assert pq.read_table("stopped.parquet").equals(pq.read_table("all.parquet"))
    assert not Path("stopped.parquet.partial").exists()


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_finished_run_is_complete(suffix: str) -> None:
    output = Path("all").with_suffix(suffix)
    content = output.read_bytes()
    assert score_dataset(EVERY, output, workers, SMALL).already
    assert output.read_bytes() == content


def test_an_update_scores_what_is_new() -> None:
    shutil.copy("crops/0.jpg", "crops/new.jpg")
    old = rows(Path("all.parquet"))
    summary = update_dataset(EVERY, Path("all.parquet"), workers, SMALL)
    assert (summary.images, summary.scored_now) == (14, 1)
    assert [row for row in rows(Path("all.parquet")) if row["path"] != "crops/new.jpg"] == old


def test_failed_rows_are_scored_again_and_the_good_ones_filtered() -> None:
    shutil.copy("crops/0.jpg", "crops/4.jpg")
    assert retry_failed(Path("all.parquet"), workers, SMALL).failed == 0
    filter_scores("all.parquet", output="kept", way="copy", min_score=0.0)
    assert len(list(Path("kept").rglob("*.jpg"))) == 13


def test_images_of_another_column_are_found() -> None:
    """Their paths did not name it; the output did."""
    old = pq.read_table("face.parquet")
    assert old["path"].to_pylist() == [f"t.parquet::{row}" for row in range(4)]
    read = pa.concat_tables(read_output(Path("face.parquet"), ["path"]))["path"].to_pylist()
    assert read == [f"t.parquet::face::{row}" for row in range(4)]
    assert all(image.data for image in survey(Path("face.parquet"), sheet=3).sheets["The highest scores"])
    filter_scores("face.parquet", output="kept", way="copy", min_score=0.0)
    assert len(list(Path("kept").rglob("*.jpg"))) == 3
    table = pq.read_table("t.parquet")
    pq.write_table(table.set_column(1, "face", table["image"]), "t.parquet")
    assert retry_failed(Path("face.parquet"), workers, SMALL).failed == 0
    assert pq.read_table("face.parquet")["path"].to_pylist() == read
    assert update_dataset(FACES, Path("face.parquet"), workers, SMALL).images == 4


def test_a_folder_of_images_of_another_column_is_brought_up_to_date() -> None:
    """Its table did not name it in `original_path` either."""
    filter_scores("face.parquet", output="kept", way="copy", min_score=0.0)
    table = pq.read_table("kept/fiqa_scores.parquet")
    origins = pa.array([path.replace("::face", "") for path in table["original_path"].to_pylist()])
    table = table.set_column(table.schema.get_field_index("original_path"), "original_path", origins)
    pq.write_table(table, "kept/fiqa_scores.parquet")
    done = filter_scores("face.parquet", output="kept", way="copy", keep=2, update=True).delivered
    assert done is not None
    assert (done.written, done.already, done.removed, done.staying) == (0, 2, 1, 0)
    origins = pq.read_table("kept/fiqa_scores.parquet")["original_path"].to_pylist()
    assert all(path.startswith("t.parquet::face::") for path in origins)


@pytest.mark.parametrize("name", ["stopped_face", "face"])
def test_a_run_on_another_column_is_refused_in_a_line(name: str) -> None:
    with pytest.raises(DifferentRun) as caught:
        score_dataset(FACES, Path(f"{name}.parquet"), workers, SMALL)
    assert "\n" not in str(caught.value)
    assert "--restart" in str(caught.value)
    assert score_dataset(FACES, Path(f"{name}.parquet"), workers, Options(unit_rows=2, restart=True)).images == 4
