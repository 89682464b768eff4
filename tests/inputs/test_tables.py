"""Tables of images: every form of column, what is refused and how, paths in tables, damage that pyarrow finds late."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_trt.errors import InputError, NoColumn
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.containers.columns import find_column
from fiqa_trt.inputs.containers.tables import TableContainer
from fiqa_trt.inputs.reader import ContainerReader, open_container
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import MAX_BYTES

BLOBS = [b"first", None, b"third", b"", b"fifth" * 100, b"first"]
SUFFIXES = ("parquet", "arrow", "stream.arrow")


def write(path: Path, table: pa.Table, rows: int = 4, **options: Any) -> str:
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows, **options)
    else:
        new = pa.ipc.new_stream if path.name.endswith("stream.arrow") else pa.ipc.new_file
        with (
            pa.OSFile(str(path), "wb") as file,
            new(file, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as w,
        ):
            w.write_table(table, max_chunksize=rows)
    return str(path)


def read(path: str, column: str = "image") -> dict[str, bytes | str]:
    """What a table holds by key: bytes, or the status of the row."""
    shard = TableContainer(path, column)
    keys = list(shard.keys())
    blobs = shard.read_all(keys)
    values = [blob.outcome.status.value if isinstance(blob, ImageError) else blob for blob in blobs]
    shard.close()
    return dict(zip(keys, values, strict=True))


def structs(values: list[bytes | None], kind: pa.DataType, *, last: bool = False) -> pa.Array:
    fields = [("bytes", pa.array(values, kind)), ("path", pa.array([None] * len(values), pa.string()))]
    fields.append(("more", pa.array([7] * len(values))))
    fields = fields[::-1] if last else fields
    return pa.StructArray.from_arrays([array for _, array in fields], [name for name, _ in fields])


class Mark(pa.ExtensionType):  # type: ignore[misc]
    """Like those that a program registers for its own."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "test.mark")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Mark:
        return cls()


def forms() -> dict[str, pa.Array]:
    plain = pa.array(BLOBS, pa.binary())
    return {
        "binary": plain,
        "large_binary": pa.array(BLOBS, pa.large_binary()),
        "binary_view": pa.array(BLOBS, pa.binary_view()),
        "dictionary": plain.dictionary_encode(),
        "dictionary of large_binary": pa.array(BLOBS, pa.large_binary()).dictionary_encode(),
        "opaque": pa.ExtensionArray.from_storage(pa.opaque(pa.binary(), "img", "me"), plain),
        "extension": pa.ExtensionArray.from_storage(Mark(), plain),
        "struct": structs(BLOBS, pa.binary()),
        "struct, path first": structs(BLOBS, pa.large_binary(), last=True),
        "struct of dictionary": pa.StructArray.from_arrays([plain.dictionary_encode()], ["bytes"]),
        "struct with null structs": pa.array([None if blob is None else {"bytes": blob} for blob in BLOBS]),
    }


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("form", sorted(forms()))
def test_every_form_of_a_column(tmp_path: Path, suffix: str, form: str) -> None:
    column = forms()[form]
    path = write(tmp_path / f"t.{suffix}", pa.table({"n": range(len(BLOBS)), "image": column}))
    expected = {str(row): blob or "empty" for row, blob in enumerate(BLOBS)}
    assert read(path) == expected
    if form == "binary_view" and suffix == "parquet":
        return  # pyarrow does not write it within structs
    nested = pa.StructArray.from_arrays([column, pa.array(range(len(BLOBS)))], ["picture", "id"])
    path = write(tmp_path / f"n.{suffix}", pa.table({"sample": nested}))
    assert read(path, "sample.picture") == expected


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_values_of_one_size(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"t.{suffix}", pa.table({"image": pa.array([b"abc", None, b"def"], pa.binary(3))}))
    assert read(path) == {"0": b"abc", "1": "empty", "2": b"def"}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [pa.list_, pa.large_list])
@pytest.mark.parametrize("struct", [False, True])
def test_lists_of_images(tmp_path: Path, suffix: str, kind: Any, *, struct: bool) -> None:
    values = [[b"a", b"b"], [], None, [None, b"c"], [b"d"], [b""]] * 30
    item = pa.struct([("bytes", pa.binary()), ("path", pa.string())]) if struct else pa.binary()
    rows = [None if row is None else [{"bytes": b} if struct else b for b in row] for row in values]
    path = write(tmp_path / f"t.{suffix}", pa.table({"images": pa.array(rows, kind(item))}), rows=70)
    expected = dict[str, bytes | str]()
    for number, row in enumerate(values):
        for index, blob in enumerate(row or []):
            expected[f"{number}/{index}"] = blob or "empty"
        if not row:
            expected[str(number)] = "empty"
    assert read(path, "images") == expected
    assert list(read(path, "images")) == list(expected)  # in order
    shard = TableContainer(path, "images")
    for key in ("0", "0/2", "4/1", "180/0", "0/", "/0", "0/0/0", "-1", "", "x", "9" * 30):
        with pytest.raises(ImageError) as caught:
            shard.read(key, MAX_BYTES)
        assert caught.value.outcome.status is Status.MISSING
    shard.close()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.binary(max_size=40)), max_size=4)), max_size=20),
    st.integers(1, 7),
    st.sampled_from(SUFFIXES),
)
def test_no_row_of_lists_is_lost(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[bytes | None] | None], group: int, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("t") / f"t.{suffix}"
    found = read(write(path, pa.table({"image": pa.array(rows, pa.list_(pa.binary()))}), rows=group))
    assert {int(key.partition("/")[0]) for key in found} == set(range(len(rows)))
    assert len(found) == sum(max(1, len(row or [])) for row in rows)
    for key, value in found.items():
        row, _, item = key.partition("/")
        assert value == ((rows[int(row)] or [])[int(item)] or "empty" if item else "empty")


def test_names_with_dots(tmp_path: Path) -> None:
    table = pa.table(
        {
            "image.bytes": [1, 2],
            "image": [{"bytes": b"x", "path": "p"}, {"bytes": b"y", "path": "q"}],
            "a.b": [b"literal", b"name"],
            "a": [{"b": b"nested", "c.d": {"e": b"deep"}}] * 2,
        }
    )
    for suffix in SUFFIXES:
        path = write(tmp_path / f"t.{suffix}", table)
        assert read(path) == {"0": b"x", "1": b"y"}
        assert read(path, "a.b") == {"0": b"literal", "1": b"name"}
        assert read(path, "a.c.d.e") == {"0": b"deep", "1": b"deep"}
        with pytest.raises(NoColumn, match=r"no column `a\.x`"):
            open_container(path, "a.x")
        with pytest.raises(InputError, match="holds int64"):
            open_container(path, "image.bytes")


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array(["aGVsbG8="]), "base64 has to be stored decoded"),
        (pa.array(["data:image/png;base64,iVBOR"], pa.large_string()), "base64"),
        (pa.array(["a.jpg"]).dictionary_encode(), "a table of paths goes to --list"),
        (pa.array([["aGVsbG8="]]), "base64"),
        (pa.array([[1, 2, 3]], pa.list_(pa.uint8())), "raw arrays of numbers"),
        (pa.array([[1, 2, 3]], pa.list_(pa.uint8(), 3)), "raw arrays of numbers"),
        (pa.array([[[[1, 2, 3]]]], pa.list_(pa.list_(pa.list_(pa.float32())))), "raw arrays of numbers"),
        (
            pa.ExtensionArray.from_storage(
                pa.fixed_shape_tensor(pa.uint8(), [2]), pa.array([[1, 2]], pa.list_(pa.uint8(), 2))
            ),
            "raw arrays of numbers",
        ),
        (pa.array([{"bytes": "text", "path": "x"}]), "not the bytes of images"),
        (pa.array([{"path": "x"}]), "not the bytes of images"),
        (pa.array([[[b"x"]]]), "not the bytes of images"),
        (pa.array([1]), "--image-column"),
        (pa.array([None]), "not the bytes of images"),
    ],
)
def test_what_is_refused_and_how(tmp_path: Path, column: pa.Array, reason: str) -> None:
    path = write(tmp_path / "t.arrow", pa.table({"image": column}))
    with pytest.raises(InputError, match=reason) as caught:
        open_container(path)
    assert "\n" not in str(caught.value)
    assert "`image`" in str(caught.value)


def test_two_columns_of_one_name() -> None:
    twice = pa.schema([("image", pa.binary()), ("image", pa.binary()), ("other", pa.binary())])
    with pytest.raises(InputError, match="more than one column `image`"):
        find_column(twice, "image", "t")
    assert find_column(twice, "other", "t").steps == ("other",)
    inner = pa.schema([("s", pa.struct([("image", pa.binary()), ("image", pa.binary())]))])
    with pytest.raises(InputError, match="more than one"):
        find_column(inner, "s.image", "t")


def test_two_columns_of_another_name_do_not_matter(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([b"x"]), pa.array([2])], names=["n", "image", "n"])
    for suffix in SUFFIXES:
        assert read(write(tmp_path / f"t.{suffix}", table)) == {"0": b"x"}


def test_paths_in_a_table(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a b.jpg").write_bytes(b"image")
    paths = ["d/a b.jpg", str(tmp_path / "d/a b.jpg"), f"file://{tmp_path}/d/a%20b.jpg", "d/gone.jpg", "d", "", None]
    paths += ["zip://a.jpg::/x/y.zip", "https://example.invalid/a.jpg", "s3://bucket/a.jpg", "hf://datasets/a.jpg"]
    column = pa.array([{"bytes": None, "path": path} for path in paths])
    for suffix in SUFFIXES:
        path = write(tmp_path / f"t.{suffix}", pa.table({"image": column}))
        good, failed = [b"image"] * 3, ["missing", "unreadable", "empty", "empty"]
        assert list(read(path).values()) == good + failed + ["unsupported"] * 4
        with pytest.raises(ImageError, match="not read from https://; fetch"):
            TableContainer(path).read("8", MAX_BYTES)
        with pytest.raises(ImageError, match=r"the table names d/gone\.jpg: No such file"):
            TableContainer(path).read("3", MAX_BYTES)


def test_a_table_that_pyarrow_cannot_open(tmp_path: Path) -> None:
    cases = {
        "empty": (b"", Status.EMPTY),
        "text": (b"hello" * 100, Status.CORRUPT),
        "encrypted": (b"PARE" + bytes(100) + b"PARE", Status.UNSUPPORTED),
    }
    for name, (data, status) in cases.items():
        path = tmp_path / f"{name}.parquet"
        path.write_bytes(data)
        error = open_container(str(path)).error
        assert error is not None
        assert error.outcome.status is status, error
    (tmp_path / "gone.parquet").mkdir()
    error = open_container(str(tmp_path / "gone.parquet")).error
    assert error is not None
    assert error.outcome.status is Status.UNREADABLE


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(st.data())
def test_bytes_flipped_anywhere_in_a_table_never_raise(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    suffix = data.draw(st.sampled_from(SUFFIXES))
    path = tmp_path_factory.mktemp("t") / f"t.{suffix}"
    blobs = [bytes([number]) * 50 for number in range(20)]
    whole = Path(write(path, pa.table({"image": blobs}), rows=5)).read_bytes()
    spoilt = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        spoilt[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(spoilt)
    reader = ContainerReader()
    assert len(reader.read_all([Address(str(path), str(number)) for number in range(20)])) == 20
    reader.close()
    with contextlib.suppress(InputError):  # where the name of the column is damaged
        assert len(list(open_container(str(path)).keys())) <= 20


@pytest.mark.slow
def test_a_table_that_claims_more_rows_than_it_has(tmp_path: Path) -> None:
    """A footer with a bit too many must not become millions of rows, nor go without a word."""
    path = Path(write(tmp_path / "t.parquet", pa.table({"image": [b"x"] * 20}), rows=5))
    whole, seen = path.read_bytes(), set[int]()
    for at in range(len(whole) // 2, len(whole)):
        for bit in range(8):
            spoilt = bytearray(whole)
            spoilt[at] ^= 1 << bit
            path.write_bytes(spoilt)
            with contextlib.suppress(InputError):  # where the name of the column is damaged
                container = TableContainer(str(path))
                found = len(list(container.keys()))
                assert found <= 20
                assert found == 20 or container.error is not None
                seen.add(found)
    assert len(seen) > 1


def test_a_damaged_row_group_costs_only_itself_in_any_order(tmp_path: Path) -> None:
    blobs = [bytes([number]) * 3000 for number in range(40)]
    path = tmp_path / "t.parquet"
    write(path, pa.table({"image": blobs}), rows=10, use_dictionary=False, write_page_checksum=True, compression="none")
    data = bytearray(path.read_bytes())
    at = data.find(bytes([15]) * 3000)
    data[at : at + 100] = bytes(100)
    path.write_bytes(data)
    shard = TableContainer(str(path))
    for row in (39, 0, 15, 25, 3, 19, 30, 9, 15):
        if row in (15, 19):
            with pytest.raises(ImageError, match="cannot be read here") as caught:
                shard.read(str(row), MAX_BYTES)
            assert caught.value.outcome.status is Status.CORRUPT
        else:
            assert shard.read(str(row), MAX_BYTES) == blobs[row]
    shard.close()


def test_rows_kept_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiqa_trt.inputs.containers.tables.HELD_BYTES", 10_000)
    blobs = [bytes([number % 256]) * 100 for number in range(2000)]
    for suffix in SUFFIXES:
        shard = TableContainer(write(tmp_path / f"t.{suffix}", pa.table({"image": blobs}), rows=300))
        for row in (*range(0, 2000, 7), *range(1999, 0, -113)):
            assert shard.read(str(row), MAX_BYTES) == blobs[row]
        assert shard._held <= 10_000 + 64 * 110
        shard.close()


def test_a_column_that_is_not_there_is_said_for_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", pa.table({"indices": [1]}))
    with pytest.raises(NoColumn, match="has no column `image`, only: indices"):
        open_container(path)
    with pytest.raises(ImageError) as caught:
        ContainerReader().read(Address(path, "0"))
    assert caught.value.outcome.status is Status.UNREADABLE
