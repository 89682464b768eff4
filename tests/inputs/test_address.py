"""Addresses: any image of any container is found again by what is recorded of it, and by nothing else."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_trt.analysis.report import survey
from fiqa_trt.building.calibration import read_crops
from fiqa_trt.inputs.address import DEFAULT_COLUMN, SEPARATOR, Address, with_column
from fiqa_trt.inputs.containers.registry import CONTAINERS, is_table
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import output_metadata, read_output
from fiqa_trt.scores.grouping import PARENT, grouping
from fiqa_trt.training.dataset import decode_images, read_labels
from tests.helpers import mean_executor, tar

SMALL = Options(unit_rows=4)
FILES = [f"{folder}{name}{suffix}" for folder in ("/d/", "", "a::b/", "caf\udce9/") for name in ("x", "y.tar")
         for suffix in (*CONTAINERS, ".PARQUET")]  # fmt: skip
COLUMNS = st.sampled_from(["face", "a.b", "::", "", "17", "x\ny", "\\1", "ü", "a::0", DEFAULT_COLUMN])
ROWS = st.sampled_from(["0", "17", "17/0", "17/12"])
MEMBERS = st.sampled_from(["a.jpg", "a.jpg::2", "f/b::c.jpg", "caf\udce9.jpg", "0", "\n", "x.parquet"])


@settings(deadline=None)
@given(st.sampled_from(FILES), COLUMNS, ROWS, MEMBERS)
def test_every_address_survives_the_round_trip(file: str, column: str, row: str, member: str) -> None:
    address, there = Address(file, row, column) if is_table(file) else Address(file, member), _Only({file: True})
    assert Address.parse(address.recorded, there) == address
    assert pa.array([address.recorded]).to_pylist() == [address.recorded]
    assert Address.parse(Address(file, "").recorded, there) == Address(file, "")


class _Only(dict[str, bool]):
    """Containers that are there; no other is, and the disk is not asked."""

    def __contains__(self, name: object) -> bool:
        return True

    def __missing__(self, name: str) -> bool:
        return False


@settings(deadline=None)
@given(st.sampled_from([file for file in FILES if is_table(file)]), COLUMNS, COLUMNS, ROWS)
def test_a_column_is_named_where_none_is(file: str, column: str, other: str, row: str) -> None:
    named = Address(file, row, other).recorded
    (found,) = with_column(pa.array([named]), column).to_pylist()
    expected = Address(file, row, column).recorded if other == DEFAULT_COLUMN else named
    assert found == expected


def test_other_paths_stay_as_they_are() -> None:
    paths = ["a.jpg", "x.tar::b.jpg", "x.tar::0", "t.parquet", "t.parquet::x", "t.parquet::17::jpg", "file:a%3A%3A0"]
    assert with_column(pa.array(paths), "face").to_pylist() == paths


@pytest.fixture
def table(crops: Path, tmp_path: Path) -> Path:
    good = [path.read_bytes() for path in sorted(crops.rglob("*.jpg"))]
    pq.write_table(pa.table({"image": good, "face": [*good[:-1], b"x"]}), tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def listed(source: Source) -> list[str]:
    return [path for batch in list_inputs(source) for path in batch.column(0).to_pylist()]


def test_a_list_without_columns_takes_the_one_that_is_given(table: Path, tmp_path: Path) -> None:
    list_file = tmp_path / "l.txt"
    list_file.write_text(f"{table}::0\n{table}::image::1\n{table}::face::2\na.jpg\n")
    source = Source(list_file=str(list_file), image_column="face")
    assert listed(source) == [f"{table}::face::0", f"{table}::image::1", f"{table}::face::2", "a.jpg"]


@pytest.mark.slow
def test_both_columns_of_a_table_in_one_run(table: Path, tmp_path: Path) -> None:
    paths = [f"{table}::{column}{row}" for row in range(9, -1, -1) for column in ("", "face::")]
    pacsv.write_csv(pa.table({"path": paths}), tmp_path / "l.csv")
    output = tmp_path / "s.parquet"
    summary = score_dataset(Source(list_file=str(tmp_path / "l.csv")), output, mean_executor, SMALL)
    assert summary.statuses == {"ok": 19, "not_an_image": 1}
    rows = pq.read_table(output).to_pylist()
    assert [row["path"] for row in rows] == paths
    assert rows[1]["status"] == "not_an_image"
    assert [row["score"] for row in rows[2::2]] == [row["score"] for row in rows[3::2]]


def test_a_column_is_of_tables_alone(table: Path, crops: Path, tmp_path: Path) -> None:
    """Beside archives and files in one run, and whatever an address of theirs is made with."""
    files = sorted(crops.rglob("*.jpg"))
    shard = tar(tmp_path / "s.tar", [(file.name, file.read_bytes()) for file in files])
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        for file in files:
            archive.write(file, file.name)
    inputs = (str(shard), str(tmp_path / "s.zip"), str(table), str(crops))
    output = tmp_path / "s.parquet"
    summary = score_dataset(Source(inputs, image_column="face"), output, mean_executor, SMALL)
    assert summary.statuses == {"ok": 39, "not_an_image": 1}
    assert Address("s.tar", "a.jpg", "face").recorded == "s.tar::a.jpg"


def test_the_column_is_no_folder(table: Path, tmp_path: Path) -> None:
    output = tmp_path / "s.parquet"
    score_dataset(Source((str(table),), image_column="face"), output, mean_executor, SMALL)
    rows = pa.concat_tables(read_output(output, ["path"]))
    assert set(grouping(PARENT, output)(rows).to_pylist()) == {str(table)}


@pytest.mark.slow
def test_an_output_that_names_the_column_beside_its_paths(table: Path, tmp_path: Path) -> None:
    """As versions before did; whoever reads it finds the images."""
    output = tmp_path / "s.parquet"
    score_dataset(Source((str(table),), image_column="face"), output, mean_executor, SMALL)
    now = pq.read_table(output)
    paths = [path.replace(f"{SEPARATOR}face{SEPARATOR}", SEPARATOR) for path in now["path"].to_pylist()]
    old = now.set_column(0, now.schema.field(0), pa.array(paths))
    pq.write_table(old, output)
    metadata = output_metadata(output)
    assert metadata is not None
    assert json.loads(json.dumps(metadata))["fingerprint"]["image_column"] == "face"
    read = pa.concat_tables(read_output(output, ["path"]))
    assert read["path"].to_pylist() == now["path"].to_pylist()
    assert all(image.data for image in survey(output, sheet=3).sheets["The highest scores"])
    columns = pq.read_table(table)
    pq.write_table(columns.set_column(1, "face", columns["image"]), table)
    os.utime(table)
    assert retry_failed(output, mean_executor, SMALL).failed == 0
    assert pq.read_table(output)["path"].to_pylist() == now["path"].to_pylist()
    pacsv.write_csv(old.select(["path", "score", "status"]), tmp_path / "s.csv")
    (read,) = read_output(tmp_path / "s.csv", ["path"], "face")
    assert read["path"].to_pylist() == now["path"].to_pylist()


@pytest.mark.slow
def test_labels_and_calibration_find_images_by_the_address_alone(crops: Path, tmp_path: Path) -> None:
    images = [path.read_bytes() for path in sorted(crops.rglob("*.jpg"))] * 4
    table = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 40, "face": images}), table)
    paths = [f"{table}::face::{row}" for row in range(40)]
    (tmp_path / "l.txt").write_text("\n".join(paths))
    assert len(read_crops(tmp_path / "l.txt")) == 40
    splits = ["val" if row % 4 == 0 else "train" for row in range(40)]
    labels = pa.table({"path": paths, "score": [row / 40 for row in range(40)], "split": splits})
    pacsv.write_csv(labels, tmp_path / "labels.csv")
    assert not decode_images(read_labels(tmp_path / "labels.csv"), tmp_path / "cache").skipped
