"""Tar shards and tables of images: what they list, what is read from them, and every kind of damage to them."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fiqa_trt.errors import InputError
from fiqa_trt.inputs.address import Address, record_path
from fiqa_trt.inputs.containers.tables import TableContainer
from fiqa_trt.inputs.containers.tar import TarContainer
from fiqa_trt.inputs.reader import ContainerReader, open_container, read_recorded
from fiqa_trt.inputs.source import Source
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.runs.retry import retry_failed
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.storage.base import MAX_BYTES
from tests.helpers import listed, mean_executor, scored, tar


@pytest.fixture
def images(crops: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(crops.rglob("*.jpg"))]


@pytest.mark.slow
def test_members_are_listed_in_order_and_score_as_files_do(crops: Path, images: list[bytes], tmp_path: Path) -> None:
    members = [(f"{index:03}{suffix}", data) for index, data in enumerate(images) for suffix in (".jpg", ".json")]
    shard = tar(tmp_path / "shard.tar", members)
    assert listed(shard) == [f"{shard}::{index:03}.jpg" for index in range(10)]
    assert len(listed(shard, all_files=True)) == 20
    inside, outside = scored(tmp_path, shard), scored(tmp_path, crops)
    assert [row["score"] for row in inside] == [row["score"] for row in outside]


def test_shards_in_folders_between_files(images: list[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(images[0])
    tar(folder / "b.tar", [("x.jpg", images[1])])
    (folder / "c.jpg").write_bytes(images[2])
    pq.write_table(pa.table({"image": images[:2]}), folder / "d.parquet")
    names = [f"{folder}/a.jpg", f"{folder}/b.tar::x.jpg", f"{folder}/c.jpg"]
    assert listed(folder) == names
    assert listed(folder, image_column="image") == [*names, f"{folder}/d.parquet::0", f"{folder}/d.parquet::1"]
    assert [row["status"] for row in scored(tmp_path, folder, image_column="image")] == ["ok"] * 5


def test_names_of_all_kinds(images: list[bytes], tmp_path: Path) -> None:
    long = "d/" * 80 + "x" * 90 + ".jpg"
    names = ["a.jpg", "a.jpg", "b::c.jpg", long, "ü ß.jpg", "caf\udce9.jpg", "a.jpg"]
    shard = tar(tmp_path / "odd::name.tar", [(name, images[index]) for index, name in enumerate(names)])
    paths = listed(shard)
    keys = ["a.jpg", "a.jpg::2", "b::c.jpg", long, "ü ß.jpg", "caf\udce9.jpg", "a.jpg::3"]
    assert paths == [record_path(f"{shard}::{key}") for key in keys]
    reader = ContainerReader()
    for path, data in zip(paths, images, strict=False):
        address = Address.parse(path)
        assert address.key is not None
        assert address.recorded == path
        assert reader.read(address) == data
    reader.close()


def test_a_plain_file_whose_name_looks_like_a_members(tmp_path: Path, images: list[bytes]) -> None:
    (tmp_path / "x.tar::a.jpg").write_bytes(images[0])
    assert Address.parse(str(tmp_path / "x.tar::a.jpg")) == Address(str(tmp_path / "x.tar::a.jpg"))
    assert [row["status"] for row in scored(tmp_path, tmp_path / "x.tar::a.jpg")] == ["ok"]


def test_links_within_a_shard(images: list[bytes], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "l.tar", "w") as archive:
        entry = tarfile.TarInfo("d/a.jpg")
        entry.size = len(images[0])
        archive.addfile(entry, io.BytesIO(images[0]))
        links = [
            ("hard.jpg", tarfile.LNKTYPE, "d/a.jpg"),
            ("d/soft.jpg", tarfile.SYMTYPE, "a.jpg"),
            ("out.jpg", tarfile.SYMTYPE, "/x"),
        ]
        for name, kind, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    rows = scored(tmp_path, tmp_path / "l.tar")
    assert [row["status"] for row in rows] == ["ok", "ok", "ok", "unreadable"]
    assert rows[0]["score"] == rows[1]["score"] == rows[2]["score"]


@pytest.mark.slow
def test_every_place_where_a_shard_may_be_cut(images: list[bytes], tmp_path: Path) -> None:
    whole = tar(tmp_path / "whole.tar", [(f"{i}.jpg", data) for i, data in enumerate(images)]).read_bytes()
    expected = [row["score"] for row in scored(tmp_path, tmp_path / "whole.tar")]
    cut = tmp_path / "cut.tar"
    end = sum(512 + -(-len(data) // 512) * 512 for data in images)
    for size in [*range(0, end, 4999), 511, 512, 513, end - 512, end - 1, end]:
        cut.write_bytes(whole[:size])
        rows = scored(tmp_path, cut)
        good = [row["score"] for row in rows if row["status"] == "ok"]
        assert good == expected[: len(good)], size
        assert rows[-1]["path"] == str(cut), size
        assert rows[-1]["status"] in ("truncated", "corrupt", "empty"), size
        assert all(row["status"] in ("truncated", "empty") for row in rows[len(good) : -1]), size
        assert len(rows) - len(good) <= 2, size


def test_a_damaged_header_between_members(images: list[bytes], tmp_path: Path) -> None:
    shard = tar(tmp_path / "s.tar", [(f"{i}.jpg", images[0]) for i in range(4)])
    data = bytearray(shard.read_bytes())
    step = 512 + -(-len(images[0]) // 512) * 512
    data[2 * step : 2 * step + 512] = b"\xab" * 512
    shard.write_bytes(data)
    rows = scored(tmp_path, shard)
    assert [(str(row["path"])[-5:], row["status"]) for row in rows[:-1]] == [(f"{i}.jpg", "ok") for i in (0, 1, 3)]
    assert rows[-1]["status"] == "corrupt"
    assert f"at byte {2 * step}: what stands from there to byte {3 * step}" in str(rows[-1]["error"])


def test_what_is_no_tar(tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("hello" * 1000)
    (tmp_path / "none.tar").touch()
    rows = scored(tmp_path, tmp_path / "text.tar", tmp_path / "none.tar")
    assert [row["status"] for row in rows] == ["corrupt", "empty"]
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(InputError, match="compressed"):
        listed(tmp_path / "x.tar.gz")
    with pytest.raises(InputError, match="No such file"):
        listed(tmp_path / "gone.tar")
    with pytest.raises(InputError, match="no images in"):
        listed(tar(tmp_path / "e.tar", [("a.txt", b"x")]))


def test_a_shard_as_a_row_of_a_list(images: list[bytes], tmp_path: Path) -> None:
    shard = tar(tmp_path / "s.tar", [("a.jpg", images[0])])
    file = tmp_path / "l.txt"
    file.write_text(f"{shard}::a.jpg\n{shard}\n{shard}::b.jpg\n{tmp_path}/gone.tar::a.jpg\n")
    score_dataset(Source(list_file=str(file)), tmp_path / "s.parquet", mean_executor)
    statuses = [row["status"] for row in pq.read_table(tmp_path / "s.parquet").to_pylist()]
    assert statuses == ["ok", "unsupported", "missing", "missing"]
    tar(tmp_path / "gone.tar", [("a.jpg", images[0])])
    assert retry_failed(tmp_path / "s.parquet", mean_executor).statuses == {"ok": 2, "unsupported": 1, "missing": 1}


def test_sizes_of_members(tmp_path: Path) -> None:
    shard = TarContainer(str(tar(tmp_path / "s.tar", [("a.jpg", b"12345"), ("b.jpg", b"")])))
    with pytest.raises(ImageError, match="5 bytes, more than 4"):
        shard.read("a.jpg", 4)
    with pytest.raises(ImageError, match="0 bytes"):
        shard.read("b.jpg", 4)
    shard.close()


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["parquet", "arrow", "stream.arrow"])
@pytest.mark.parametrize("kind", ["binary", "large_binary", "struct"])
def test_tables(images: list[bytes], tmp_path: Path, suffix: str, kind: str) -> None:
    (tmp_path / "beside.jpg").write_bytes(images[3])
    values: list[object] = [*images[:3], None, b"x", *images[4:]]
    if kind == "struct":
        values = [{"bytes": value, "path": f"{index}.jpg"} for index, value in enumerate(values)]
        values[3] = {"bytes": None, "path": "beside.jpg"}
        column = pa.array(values)
    else:
        column = pa.array(values, pa.binary() if kind == "binary" else pa.large_binary())
    table = pa.table({"label": range(len(values)), "face": column})
    path = tmp_path / f"t.{suffix}"
    if suffix == "parquet":
        pq.write_table(table, path, row_group_size=4)
    else:
        new = pa.ipc.new_stream if suffix == "stream.arrow" else pa.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=4)
    rows = scored(tmp_path, path, image_column="face")
    assert [row["path"] for row in rows] == [f"{path}::face::{index}" for index in range(len(values))]
    expected = ["ok"] * len(values)
    expected[4] = "not_an_image"
    if kind != "struct":
        expected[3] = "empty"
    assert [row["status"] for row in rows] == expected
    shard = TableContainer(str(path), "face")
    for row in (0, 9, 5, 6, 1, 8):  # in any order
        assert shard.read(str(row), MAX_BYTES) == images[row if row < 4 else row - 1]
    for key in ("11", "-1", "a", ""):
        with pytest.raises(ImageError, match="has no row"):
            shard.read(key, MAX_BYTES)
    shard.close()


@pytest.mark.slow
def test_a_row_group_is_not_held_as_a_whole(tmp_path: Path) -> None:
    blob = os.urandom(100_000)
    # A page is the least that can be read; the writer fills it by so many values.
    table = pa.table({"image": [blob] * 2000})
    pq.write_table(table, tmp_path / "t.parquet", use_dictionary=False, write_batch_size=16)
    shard = open_container(str(tmp_path / "t.parquet"))
    before = pa.total_allocated_bytes()
    for row in range(200):
        assert len(shard.read(str(row), MAX_BYTES)) == len(blob)
        assert pa.total_allocated_bytes() - before < 60_000_000
    shard.close()


@pytest.mark.slow
def test_damaged_tables(images: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    noise = [os.urandom(20_000) for _ in range(40)]
    pq.write_table(pa.table({"image": noise}), path, row_group_size=10, use_dictionary=False, write_page_checksum=True)
    whole = path.read_bytes()
    spoilt = bytearray(whole)
    spoilt[250_000:260_000] = os.urandom(10_000)  # in the second row group of four
    path.write_bytes(spoilt)
    shard = TableContainer(str(path))
    for row in (*range(10), *range(20, 40)):
        assert shard.read(str(row), MAX_BYTES) == noise[row]
    path.write_bytes(whole[:300_000])
    rows = scored(tmp_path, path)
    assert [(row["path"], row["status"]) for row in rows] == [(str(path), "corrupt")]
    stream = tmp_path / "t.arrow"
    table = pa.table({"image": images})
    with pa.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    stream.write_bytes(stream.read_bytes()[: stream.stat().st_size // 2])
    statuses = [row["status"] for row in scored(tmp_path, stream)]
    assert statuses[-1] == "corrupt"
    assert statuses[:-1]
    assert set(statuses[:-1]) == {"ok"}


def test_tables_of_paths_alone(images: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(images[0])
    table = pa.table({"image": [{"bytes": None, "path": "a.jpg"}, {"bytes": None, "path": "gone.jpg"}]})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [row["status"] for row in scored(tmp_path, tmp_path / "t.parquet")] == ["ok", "missing"]


@pytest.mark.slow
def test_damaged_offsets_in_a_table(images: list[bytes], tmp_path: Path) -> None:
    table, good = pa.table({"image": pa.array(images, pa.binary())}), tmp_path / "good.jpg"
    good.write_bytes(images[0])
    whole, path = tmp_path / "whole.arrow", tmp_path / "t.arrow"
    with pa.OSFile(str(whole), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    data = whole.read_bytes()
    offsets = data.find(table["image"].chunk(0).buffers()[1].to_pybytes()[:40])
    for value in (-5, 2**31 - 1):
        path.write_bytes(data[: offsets + 16] + value.to_bytes(4, "little", signed=True) + data[offsets + 20 :])
        statuses = [row["status"] for row in scored(tmp_path, path, good)]
        assert statuses == ["corrupt"] * len(images) + ["ok"]
    for name in (b"image", b"\xff\xfe"):
        path.write_bytes(data.replace(b"image", name.ljust(5, b"\xff")))
        assert scored(tmp_path, path, good)[-1]["status"] == "ok"


def test_tables_without_rows(images: list[bytes], tmp_path: Path) -> None:
    table, good = pa.table({"image": pa.array([], pa.binary())}), tmp_path / "good.jpg"
    good.write_bytes(images[0])
    pq.write_table(table, tmp_path / "t.parquet")
    for name, new in (("t.arrow", pa.ipc.new_file), ("u.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as file, new(file, table.schema):
            pass
    assert listed(tmp_path / "t.parquet", tmp_path / "t.arrow", tmp_path / "u.arrow", good) == [str(good)]


def test_a_table_that_has_become_shorter(images: list[bytes], tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": images}), path)
    reader = ContainerReader()
    assert reader.read(Address(str(path), "5")) == images[5]
    pq.write_table(pa.table({"image": images[1:2]}), path)
    assert reader.read(Address(str(path), "0")) == images[1]
    for _ in range(2):
        with pytest.raises(ImageError) as caught:
            reader.read(Address(str(path), "5"))
        assert caught.value.outcome.status is Status.MISSING
    reader.close()


def test_members_named_like_the_numbered_ones(images: list[bytes], tmp_path: Path) -> None:
    names = ["a.jpg", "a.jpg::2", "a.jpg", "a.jpg::2", "a.jpg"]
    shard = tar(tmp_path / "s.tar", [(name, images[index]) for index, name in enumerate(names)])
    found = listed(shard, all_files=True)
    assert len(set(found)) == 5
    assert [read_recorded(path, ContainerReader()) for path in found] == images[:5]


@pytest.mark.slow
def test_a_mended_shard_when_retried(images: list[bytes], tmp_path: Path) -> None:
    shard = tar(tmp_path / "s.tar", [("a.jpg", images[0]), ("b.jpg", images[1])])
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(images[0]) // 512 * 512 + 1024])
    assert [row["status"] for row in scored(tmp_path, shard)] == ["ok", "truncated"]
    shard.write_bytes(whole)
    retry_failed(tmp_path / "s.parquet", mean_executor)
    assert "gets rows where it is INPUT of a run" in str(pq.read_table(tmp_path / "s.parquet")["error"][1])


def test_tables_without_images(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": ["text"], "n": [1]}), path)
    with pytest.raises(InputError, match="has no column `face`, only: image, n"):
        listed(path, image_column="face")
    with pytest.raises(InputError, match="holds string, not the bytes"):
        listed(path)
    with pytest.raises(ImageError) as caught:
        ContainerReader().read(Address(str(path), "0", "face"))
    assert caught.value.outcome.status is Status.UNREADABLE
