"""What work depends on is in its fingerprint: every option of every command that can be continued has its place."""

from __future__ import annotations

import dataclasses
import inspect
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_trt.analysis.report import survey
from fiqa_trt.cli.score import command as score_command
from fiqa_trt.cli.synthesize import command as synthesize_command
from fiqa_trt.cli.train import command as train_command
from fiqa_trt.curation.delivery import deliver, fill_folder
from fiqa_trt.curation.delivery.folder import check_folder
from fiqa_trt.curation.kept import Kept
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.errors import DifferentRun, OutputError
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.fingerprint import counted
from fiqa_trt.inputs.source import Source
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import output_metadata
from fiqa_trt.version import __version__
from tests.helpers import SMALL, MeanEngine, Stop, jpeg, mean_executor, rows, stop_after

# What each option of `score` becomes, and what makes no difference to rows. A new one belongs into one of them.
FIELDS = {
    **dict.fromkeys(("inputs", "list_file", "path_column", "all_files", "limit", "image_column"), Source),
    **dict.fromkeys(
        ("device", "precision", "engine", "batch_size", "decoder", "workers", "max_pixels", "requests", "causes"), Setup
    ),
    **dict.fromkeys(("unit_size", "restart"), Options),
}
NAMES = {"batch_size": "batch", "workers": "threads", "unit_size": "unit_rows"}
EXECUTORS = {"output", "retry_failed", "update", "keep_gone", "max_failed", "devices", "quiet", "as_json"}
EXECUTORS |= {"cluster", "replicas", "gpus_per_replica", "cpus_per_replica", "memory_per_replica", "shared_filesystem"}
FREE = {
    # Of a source the list that it gives counts.
    Source: {"inputs", "list_file", "path_option", "all_files", "limit", "reserved", "exclude"},
    Setup: {
        "device",
        "precision",
        "engine",
        "batch",
        "threads",
        "cores",
        "requests",
    },  # EngineInfo counts for the first three
    Options: {"restart", "command"},
    EngineInfo: {"device", "batch", "causes"},  # which are the model's
}


def fields(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def free(record: type) -> set[str]:
    return {field.name for field in dataclasses.fields(record) if field.metadata.get("free")}


def test_every_option_of_score_has_its_place() -> None:
    assert {option.name for option in score_command.params} == FIELDS.keys() | EXECUTORS
    assert not FIELDS.keys() & EXECUTORS
    for option, record in FIELDS.items():
        assert NAMES.get(option, option) in fields(record)


def test_what_is_free_was_meant_to_be() -> None:
    assert {record: free(record) for record in FREE} == FREE
    counting = [fields(record) - free(record) for record in FREE]
    assert sum(map(len, counting)) == len(set().union(*counting)), "two fields of one name: one would hide the other"


class _Other(MeanEngine):
    def __init__(self, **changes: object) -> None:
        super().__init__()
        self.info = dataclasses.replace(self.info, **changes)  # type: ignore[arg-type]


def _with(**changes: object) -> Callable[[], InProcess]:
    return lambda: InProcess(_Other(**changes), CpuDecoder(threads=2))


@pytest.mark.parametrize("name", sorted(fields(EngineInfo) - free(EngineInfo) - {"members"}))
def test_another_engine_is_refused(crops: Path, tmp_path: Path, name: str) -> None:
    source, output = Source((str(crops),)), tmp_path / "s.parquet"
    with pytest.raises(Stop):
        score_dataset(source, output, mean_executor, SMALL, stop_after(5))
    with pytest.raises(DifferentRun, match=f"{name}: .* there, other now"):
        score_dataset(source, output, _with(**{name: "other"}), SMALL)
    score_dataset(source, output, _with(device="another of the kind", batch=3), SMALL)
    with pytest.raises(DifferentRun, match=f"{name}: .* there, other now"):
        score_dataset(source, output, _with(**{name: "other"}), SMALL)


def test_another_way_to_decode_is_refused(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, output = Source((str(crops),)), tmp_path / "s.parquet"
    with pytest.raises(Stop):
        score_dataset(source, output, mean_executor, SMALL, stop_after(5))
    with pytest.raises(DifferentRun, match="max_pixels: 64000000 there, 99 now"):
        score_dataset(source, output, lambda: InProcess(MeanEngine(), CpuDecoder(99, 1)), SMALL)
    with monkeypatch.context() as patch, pytest.raises(DifferentRun, match=r"libraries: Pillow .*, Pillow 0\.1 now"):
        patch.setattr("PIL.__version__", "0.1")
        score_dataset(source, output, mean_executor, SMALL)
    assert score_dataset(source, output, mean_executor, SMALL).scored_now < 10


@pytest.fixture
def table(crops: Path, tmp_path: Path, portrait: Any) -> Path:
    good = [path.read_bytes() for path in sorted(crops.rglob("*.jpg"))]
    small = [jpeg(portrait.resize((60 + i, 60 + i))) for i in range(10)]
    pq.write_table(pa.table({"image": good, "b": small, "c": [*good[:-1], b"x"]}), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def test_another_image_column_is_refused(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    with pytest.raises(Stop):
        score_dataset(Source((str(table),)), output, mean_executor, SMALL, stop_after(5))
    with pytest.raises(DifferentRun, match="image_column: image there, b now"):
        score_dataset(Source((str(table),), image_column="b"), output, mean_executor, SMALL)
    named = Source((str(table),), image_column="image")  # which is what it is without a name
    assert score_dataset(named, output, mean_executor, SMALL).scored_now < 10
    assert {row["width"] for row in rows(output)} == {224}


def test_another_column_of_paths_is_refused(crops: Path, tmp_path: Path) -> None:
    output, files = tmp_path / "s.parquet", sorted(map(str, crops.rglob("*.jpg")))
    pq.write_table(pa.table({"file": files, "other": files}), tmp_path / "l.parquet")
    listed = str(tmp_path / "l.parquet")
    with pytest.raises(Stop):
        score_dataset(Source(list_file=listed), output, mean_executor, SMALL, stop_after(5))
    with pytest.raises(DifferentRun, match="path_column: file there, other now"):
        score_dataset(Source(list_file=listed, path_column="other"), output, mean_executor, SMALL)
    named = Source(list_file=listed, path_column="file")  # which is what it is without a name
    assert score_dataset(named, output, mean_executor, SMALL).scored_now < 10


def test_a_retry_takes_the_column_that_its_output_is_from(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    score_dataset(Source((str(table),), image_column="c"), output, mean_executor, SMALL)
    with pytest.raises(DifferentRun, match="image_column: c there, b now"):
        retry_failed(output, mean_executor, SMALL, image_column="b")
    columns = pq.read_table(table)
    mended = [*columns["c"].to_pylist()[:-1], columns["b"][-1].as_py()]
    pq.write_table(columns.set_column(2, "c", pa.array(mended)), table)
    assert retry_failed(output, mean_executor, SMALL).failed == 0
    assert rows(output)[-1]["width"] == 69


def test_a_retry_may_take_another_column_than_one_that_gave_no_score(table: Path, crops: Path, tmp_path: Path) -> None:
    """What a list names in a table without the usual column is mended by naming the right one."""
    pq.write_table(pq.read_table(table).drop_columns("image"), table)
    listing, output = tmp_path / "list.txt", tmp_path / "s.parquet"
    listing.write_text(f"{crops / 'a' / '0.jpg'}\n{table}::0\n{table}::9\n")
    found = score_dataset(Source(list_file=str(listing)), output, mean_executor, SMALL)
    assert found.statuses == {"unreadable": 2, "ok": 1}
    assert retry_failed(output, mean_executor, SMALL, image_column="c").statuses == {"ok": 2, "not_an_image": 1}
    metadata = output_metadata(output)
    assert metadata is not None
    assert metadata["fingerprint"]["image_column"] == "c"
    with pytest.raises(DifferentRun, match="image_column: c there, b now"):
        retry_failed(output, mean_executor, SMALL, image_column="b")
    assert retry_failed(output, mean_executor, SMALL).statuses == {"ok": 2, "not_an_image": 1}


def test_what_reads_scores_takes_the_column_that_they_are_from(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    score_dataset(Source((str(table),), image_column="b"), output, mean_executor, SMALL)
    wanted = pq.read_table(table)["b"].to_pylist()
    mask = np.ones(10, bool)
    for dry_run in (True, False):
        for place, way in ((tmp_path / "out", "copy"), (tmp_path / "k.tar", None)):
            assert deliver(Kept(output, mask), place, way, dry_run=dry_run).written == 10
    assert sorted(path.read_bytes() for path in (tmp_path / "out").rglob("*.jpg")) == sorted(wanted)
    with tarfile.open(tmp_path / "k-000000.tar") as archive:
        members = [archive.extractfile(member) for member in archive if member.name.endswith(".jpg")]
        assert [member.read() for member in members if member is not None] == wanted
    assert all(each.data for sheet in survey(output).sheets.values() for each in sheet)


def test_outputs_of_versions_that_recorded_less(crops: Path, tmp_path: Path) -> None:
    """An output without the columns and the facts that came later is retried as it was."""
    (crops / "a" / "0.jpg").write_bytes(b"x")
    output = tmp_path / "s.parquet"
    score_dataset(Source((str(crops),)), output, mean_executor, SMALL)
    metadata = output_metadata(output)
    assert metadata is not None
    assert metadata["fingerprint"]["version"] == __version__
    for name in ("image_column", "payload", "libraries"):
        del metadata["fingerprint"][name]
    old = pq.read_table(output).replace_schema_metadata({"fiqa_trt": json.dumps(metadata)})
    pq.write_table(old, output)
    (crops / "a" / "0.jpg").write_bytes((crops / "a" / "2.jpg").read_bytes())
    assert retry_failed(output, mean_executor, SMALL).failed == 0


def test_every_option_of_train_has_its_place() -> None:
    from fiqa_trt.training.recipe import Recipe

    recipe = {"members", "epochs", "batch", "rate", "schedule", "patience", "seed", "precision"}
    data = {
        "labels",
        "images",
        "score_range",
        "path_column",
        "score_columns",
        "group_column",
        "skip_blank",
        "init",
    }  # digests of what they lead to
    # A training may move to another device, and one with other defaults is another recipe.
    elsewhere = {"output", "config", "device", "cache", "workers", "resume", "restart", "quiet", "as_json"}
    assert {option.name for option in train_command.params} == recipe | data | elsewhere
    assert recipe <= counted(Recipe()).keys() == fields(Recipe)


def test_every_option_of_synthesize_has_its_place() -> None:
    from fiqa_trt.training.crops import Face
    from fiqa_trt.training.synthesis import _fingerprint, _Job, synthesize

    faces = {"inputs", "list_file", "path_column", "group_column", "image_column"}
    elsewhere = {"output", "workers", "restart", "quiet", "as_json"}
    found = _fingerprint(_Job([(0, Face("a"))], Path("out"), 3, 1, None, 224))
    assert {option.name for option in synthesize_command.params} == faces | elsewhere | (
        found.keys() - {"version", "faces"}
    )
    assert inspect.signature(synthesize).parameters.keys() - {"out", "workers", "restart", "report"} == found.keys() - {
        "version",
        "image_column",
    }
    assert free(_Job) == {"faces", "out"}


def test_a_delivery_is_continued_only_by_the_same(scores: Path, mask: Any, tmp_path: Path, crops: Path) -> None:
    taken = inspect.signature(check_folder).parameters.keys()
    assert inspect.signature(fill_folder).parameters.keys() - taken == {"report"}
    output = tmp_path / "out"

    def stop(progress: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        fill_folder(Kept(scores, mask), output, "copy", report=stop)
    other = mask.copy()
    other[-1] = not other[-1]
    call: dict[str, Any] = {"kept": Kept(scores, mask), "output": output, "way": "copy"}
    changes: list[dict[str, Any]] = [{"way": "symlink"}, {"root": str(tmp_path)}]
    changes += [{"kept": kept} for kept in (Kept(scores, mask, "b"), Kept(scores, other))]
    for change in changes:
        with pytest.raises(OutputError, match="was being filled by another call"):
            fill_folder(**{**call, **change})
    assert fill_folder(**call).already == 1


def test_a_delivery_is_continued_where_it_began(crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Relative paths lead elsewhere from another folder."""
    monkeypatch.chdir(tmp_path)
    score_dataset(Source(("crops",)), tmp_path / "s.parquet", mean_executor)
    mask = pa.array([True] * 10).to_numpy(zero_copy_only=False)

    def stop(progress: object) -> None:
        raise Stop

    with pytest.raises(Stop):
        fill_folder(Kept(tmp_path / "s.parquet", mask), tmp_path / "out", "copy", report=stop)
    monkeypatch.chdir(crops)
    with pytest.raises(OutputError, match="was being filled by another call"):
        fill_folder(Kept(tmp_path / "s.parquet", mask), tmp_path / "out", "copy")
