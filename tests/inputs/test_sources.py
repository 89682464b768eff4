import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fiqa_trt.errors import InputError
from fiqa_trt.inputs.address import as_path
from fiqa_trt.inputs.listing import walk
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.outcomes import ImageError, Status
from tests.helpers import read_file


def paths(*inputs: str | Path, **options: object) -> list[str]:
    source = Source(tuple(str(path) for path in inputs), **options)  # type: ignore[arg-type]
    return [path for batch in list_inputs(source) for path in batch.column(0).to_pylist()]


def listed(file: Path, **options: object) -> pa.Table:
    return pa.Table.from_batches(list_inputs(Source(list_file=str(file), **options)))  # type: ignore[arg-type]


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def test_folders_are_searched_in_order_for_image_suffixes(tmp_path: Path) -> None:
    touch(
        tmp_path, "b/2.PNG", "b/1.jpg", "a.webp", "z.Tiff", "c.txt", "d.jpeg.bak", "b/deep/er/x.bmp", "y.tif", "w.JPEG"
    )
    found = [os.path.relpath(path, tmp_path) for path in paths(tmp_path)]
    assert found == ["a.webp", "b/1.jpg", "b/2.PNG", "b/deep/er/x.bmp", "w.JPEG", "y.tif", "z.Tiff"]
    assert len(paths(tmp_path, all_files=True)) == 9
    assert len(paths(tmp_path, limit=3)) == 3


def test_files_and_folders_in_the_order_given(tmp_path: Path) -> None:
    touch(tmp_path, "x.txt", "f/a.jpg")
    assert paths(tmp_path / "x.txt", tmp_path / "f", tmp_path / "x.txt") == [
        str(tmp_path / name) for name in ("x.txt", "f/a.jpg", "x.txt")
    ]


def test_symbolic_links_are_followed_and_loops_survived(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jpg", "other/b.jpg")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "up").symlink_to(tmp_path)
    (tmp_path / "data" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "data" / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "data" / "self.jpg").symlink_to(tmp_path / "data" / "self.jpg")
    found = [os.path.relpath(path, tmp_path / "data") for path in paths(tmp_path / "data")]
    assert found == ["a.jpg", "gone.jpg", "link/b.jpg", "self.jpg", "up/other/b.jpg"]


@pytest.mark.slow
def test_very_deep_folders(tmp_path: Path) -> None:
    here = Path.cwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            Path("d").mkdir()
            os.chdir("d")
        Path("a.jpg").touch()
    finally:
        os.chdir(here)
    assert len(list(walk(str(tmp_path)))) == 1
    subprocess.run(["rm", "-r", tmp_path / "d"], check=True)  # too deep for pytest's own cleaning


def test_a_folder_that_cannot_be_listed_gets_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jpg", "locked/b.jpg")
    real = os.scandir

    def scandir(path: str) -> "os._ScandirIterator[str]":
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [os.path.basename(path) for path in paths(tmp_path)] == ["a.jpg", "locked"]
    with pytest.raises(ImageError, match="could not be listed"):
        read_file(str(tmp_path / "locked"))


def test_the_runs_own_output_is_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "out.parquet.partial/parts/x.jpg", "out.parquet")
    own = (str(tmp_path / "out.parquet"), str(tmp_path / "out.parquet.partial"))
    assert paths(tmp_path, all_files=True, exclude=own) == [str(tmp_path / "a.jpg")]


@pytest.mark.slow
def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/caf\xe9.jpg"
    Path(os.fsdecode(raw)).write_bytes(b"x")
    (recorded,) = paths(tmp_path)
    recorded.encode()
    assert os.fsencode(as_path(recorded)) == raw
    text = tmp_path / "list.txt"
    text.write_bytes(raw + b"\n" + recorded.encode() + b"\n")
    table = tmp_path / "list.csv"
    table.write_bytes(b"path,id\n" + raw + b",1\n" + recorded.encode() + b",2\n")
    for file in (text, table):
        assert [os.fsencode(as_path(path)) for path in listed(file)["path"].to_pylist()] == [raw, raw]


def test_text_list(tmp_path: Path) -> None:
    file = tmp_path / "l.txt"
    file.write_bytes("\ufeffa b.jpg\r\n\n ß.jpg\nlast".encode())
    assert listed(file)["path"].to_pylist() == ["a b.jpg", " ß.jpg", "last"]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one.jpg\ntwo.jpg\n")))
    assert paths("-") == ["one.jpg", "two.jpg"]


def test_csv_carries_other_columns_as_text(tmp_path: Path) -> None:
    file = tmp_path / "l.csv"
    file.write_text('person,path,score,note\n007,a.jpg,1,"x, y"\n008,"b\nc.jpg",2,\n', encoding="utf-8-sig")
    table = listed(file, reserved=("path", "score"))
    assert table.column_names == ["path", "person", "input_score", "note"]
    assert table.to_pylist()[0] == {"path": "a.jpg", "person": "007", "input_score": "1", "note": "x, y"}
    assert table["path"].to_pylist()[1] == "b\nc.jpg"


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.binary()])
def test_parquet_carries_other_columns_with_their_types(tmp_path: Path, kind: pa.DataType) -> None:
    file = tmp_path / "l.parquet"
    content = {"id": pa.array([1, 2]), "path": pa.array(["a.jpg", None]).cast(kind), "tags": [["x"], []]}
    pq.write_table(pa.table(content), file)
    table = listed(file)
    assert table["path"].to_pylist() == ["a.jpg", ""]
    assert table.schema.field("id").type == pa.int64()
    assert table["tags"].to_pylist() == [["x"], []]


def test_parquet_with_a_dictionary(tmp_path: Path) -> None:
    file = tmp_path / "l.parquet"
    pq.write_table(pa.table({"path": pa.array(["a.jpg", "b.jpg"]).dictionary_encode()}), file)
    assert listed(file)["path"].to_pylist() == ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", b"name,id\na.jpg,1\n", "has no column `path`, only: name, id"),
        ("l.csv", b"", "has no column `path`, only: none"),
        ("l.csv", b"path,path\na,b\n", "more than one column named path"),
        ("l.csv", b"path,id\na.jpg,1,2\n", "as csv"),
        ("l.csv", b"path,id\na.jpg,\xff\n", "as csv"),
        ("l.csv", b"path\n", "no paths in"),
        ("l.txt", b"\n\n", "no paths in"),
        ("l.parquet", b"garbage", "as parquet"),
        ("l.xlsx", b"x", "save it as .csv first"),
    ],
)
def test_bad_lists(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        listed(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_inputs_that_hold_nothing_are_named(tmp_path: Path) -> None:
    full, empty = tmp_path / "full", tmp_path / "empty"
    full.mkdir()
    empty.mkdir()
    touch(full, "a.jpg")
    for name in ("t.parquet", "u.arrow"):
        pq.write_table(pa.table({"image": [b"x"]}), full / name)
    with tarfile.open(full / "nothing.tar", "w"):
        pass
    said = list[str]()
    found = list(list_inputs(Source((str(empty), str(full))), said.append))
    assert [path for batch in found for path in batch.column(0).to_pylist()] == [f"{full}/a.jpg"]
    assert said == [
        f"no images in {empty}",
        f"left out in {full}: 2 tables (--image-column scores the images in them), "
        "1 shard without an image (nothing.tar)",
    ]


def test_bad_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    with pytest.raises(InputError, match=r"no paths in standard input$"):
        paths("-")
    for call in (
        lambda: paths(tmp_path / "gone"),
        lambda: listed(tmp_path / "gone.txt"),
        lambda: listed(tmp_path / "gone.csv"),
        lambda: listed(tmp_path / "gone.parquet"),
    ):
        with pytest.raises(InputError, match="No such file"):
            call()
    with pytest.raises(InputError, match="--all-files"):
        paths(tmp_path)
    file = tmp_path / "l.parquet"
    pq.write_table(pa.table({"path": [1, 2]}), file)
    with pytest.raises(InputError, match="holds int64"):
        listed(file)


def test_reading(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "good").write_bytes(b"abc")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.truncate(tmp_path / "empty", 0)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(1 << 40)
    assert read_file(str(tmp_path / "good")) == b"abc"
    expected = {
        "empty": Status.EMPTY,
        "gone": Status.MISSING,
        "good/below": Status.MISSING,
        "pipe.jpg": Status.UNREADABLE,
        "": Status.UNREADABLE,
        "huge": Status.TOO_LARGE,
        "nul\0": Status.MISSING,
        "x" * 300: Status.UNREADABLE,
    }
    for name, status in expected.items():
        with pytest.raises(ImageError) as caught:
            read_file(str(tmp_path / name) if name else str(tmp_path))
        assert caught.value.outcome.status is status, name
    with pytest.raises(ImageError):
        read_file("")


names = st.text(st.characters(codec="utf-8", exclude_characters="/\0\r\n"), min_size=1, max_size=20)


@pytest.mark.slow
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names, min_size=1, max_size=30), st.integers(1, 40))
def test_a_list_is_kept_row_for_row(tmp_path: Path, rows: list[str], limit: int) -> None:
    file = tmp_path / "l.parquet"
    pq.write_table(pa.table({"path": rows, "n": list(range(len(rows)))}), file)
    table = listed(file, limit=limit)
    assert table["path"].to_pylist() == rows[:limit]
    assert table["n"].to_pylist() == list(range(len(rows)))[:limit]
