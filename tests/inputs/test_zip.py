"""ZIP archives against Python's zipfile: random archives, damage, cuts, encryption, links, and scores as of files."""

from __future__ import annotations

import functools
import io
import os
import shutil
import stat
import struct
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_trt.inputs.containers.zip import ZipContainer
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import MAX_BYTES
from tests.helpers import listed, read_members, scored

_PARTS = st.sampled_from(["a", "b", "c.jpg", "ü", "..", ".", "x" * 90, "::2", "人"])
_NAMES = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)
_METHODS = st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
_ENTRIES = st.lists(st.tuples(_NAMES, _METHODS, st.integers(0, 1100), st.booleans()), min_size=1, max_size=12)
Entries = list[tuple[str, int, int, bool]]
pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name")


class _Stream(io.RawIOBase):
    """A pipe: writers cannot go back and say how large a member was."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        piece = bytes(data)  # type: ignore[call-overload]
        self.data += piece
        return len(piece)


def content(number: int, size: int) -> bytes:
    return bytes((31 * number + i * i) % 251 for i in range(size))


def build(entries: Entries, *, stream: bool = False, prefix: bytes = b"") -> bytes:
    buffer, pipe = io.BytesIO(), _Stream()
    buffer.write(prefix)
    with zipfile.ZipFile(pipe if stream else buffer, "w" if stream or not prefix else "a") as archive:
        for number, (name, method, size, large) in enumerate(entries):
            entry = zipfile.ZipInfo(name)
            entry.compress_type = method
            with archive.open(entry, "w", force_zip64=large) as file:
                file.write(content(number, size))
    return pipe.data if stream else buffer.getvalue()


by_us = functools.partial(read_members, ".zip")


def expected(entries: Entries) -> list[tuple[str, bytes | Status]]:
    return [(name, content(number, size) or Status.EMPTY) for number, (name, _, size, _) in enumerate(entries)]


def assert_same(entries: Entries, data: bytes) -> None:
    found, error = by_us(data)
    assert error is None
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert [entry.filename for entry in archive.infolist()] == [name for name, *_ in entries]
    keys = [key for key, _ in found]
    assert len(set(keys)) == len(keys)
    for (key, value), (name, whole) in zip(found, expected(entries), strict=True):
        assert key == name or key.startswith(f"{name}::")
        assert value == whole


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(_ENTRIES, st.booleans(), st.sampled_from([b"", b"#!/bin/sh\n" * 30]))
def test_random_archives_read_as_zipfile_reads_them(entries: Entries, stream: bool, prefix: bytes) -> None:
    assert_same(entries, build(entries, stream=stream, prefix=prefix))


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(_ENTRIES, st.booleans(), st.data())
def test_wherever_it_is_cut_what_is_before_is_read(entries: Entries, stream: bool, draw: st.DataObject) -> None:
    """Of a stream, what is stored cannot be found without the directory: it does not say how long it is."""
    if stream:
        entries = [(name, zipfile.ZIP_DEFLATED, size, large) for name, _, size, large in entries]
    data = build(entries, stream=stream)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        starts = [entry.header_offset for entry in archive.infolist()]
        ends = [*starts[1:], archive.start_dir]
    at = draw.draw(st.integers(1, len(data) - 1))
    found, error = by_us(data[:at])
    assert error is not None
    assert error.outcome.status in (Status.TRUNCATED, Status.CORRUPT)
    whole = sum(end <= at for end in ends)
    values = [value for _, value in found]
    assert values[:whole] == [value for _, value in expected(entries)[:whole]]
    assert all(isinstance(value, Status) or value in [v for _, v in expected(entries)] for value in values[whole:])


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(_ENTRIES, st.data())
def test_a_damaged_byte_costs_one_member_or_is_named(entries: Entries, draw: st.DataObject) -> None:
    data = bytearray(build(entries))
    data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
    found, error = by_us(bytes(data))
    whole = [value for _, value in expected(entries)]
    full = sum(size > 0 for _, _, size, _ in entries)  # an empty one may have become a folder, by its name
    assert error is not None or len(found) >= full
    if error is None and len(found) == len(entries):
        assert sum(value != was for (_, value), was in zip(found, whole, strict=True)) <= 1
    assert all(isinstance(value, Status) or value in whole for _, value in found)


def test_other_methods_encryption_links_and_folders(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("folder")
        archive.writestr("b.jpg", b"x" * 50, zipfile.ZIP_BZIP2)
        archive.writestr("l.jpg", b"x" * 50, zipfile.ZIP_LZMA)
        link = zipfile.ZipInfo("link.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "b.jpg")
        archive.writestr("z.jpg", b"y" * 50)
    data = bytearray(path.read_bytes())
    entry = data.rfind(b"PK\1\2")
    data[entry + 8] |= 1  # encrypted
    path.write_bytes(data)
    container = ZipContainer(str(path))
    assert list(container.keys()) == ["b.jpg", "l.jpg", "link.jpg", "z.jpg"]
    errors = [str(blob) for blob in container.read_all(list(container.keys()))]
    for error, part in zip(errors, ("by bzip2", "by lzma", "a link", "encrypted"), strict=True):
        assert part in error


@pytest.mark.skipif(shutil.which("zip") is None, reason="no zip")
def test_what_zip_writes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "ü.jpg").write_bytes(b"z" * 1000)
    subprocess.run(["zip", "-qr", "t.zip", "d"], cwd=tmp_path, check=True)
    assert by_us((tmp_path / "t.zip").read_bytes()) == ([("d/ü.jpg", b"z" * 1000)], None)


def test_what_is_no_archive_or_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "folder.zip").mkdir()
    (tmp_path / "empty.zip").touch()
    (tmp_path / "text.zip").write_bytes(b"now text" * 100)
    os.mkfifo(tmp_path / "pipe.zip")
    for name, status in (
        ("gone", Status.MISSING),
        ("folder", Status.UNREADABLE),
        ("pipe", Status.UNREADABLE),
        ("empty", Status.EMPTY),
        ("text", Status.CORRUPT),
    ):
        container = ZipContainer(str(tmp_path / f"{name}.zip"))
        assert container.error is not None
        assert container.error.outcome.status is status, name
        assert list(container.keys()) == []
        (blob,) = container.read_all(["a.jpg"])
        assert isinstance(blob, ImageError)


def test_sizes_of_members(tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.jpg", bytes(5_000_000))
        archive.writestr("a.jpg", b"12345")
    container = ZipContainer(str(path))
    assert container.read("a.jpg", 5) == b"12345"
    with pytest.raises(ImageError) as caught:
        container.read("bomb.jpg", 1_000_000)
    assert caught.value.outcome.status is Status.TOO_LARGE
    small = path.read_bytes().replace((5_000_000).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    path.write_bytes(small)  # it says that it is small
    (blob,) = ZipContainer(str(path)).read_all(["bomb.jpg"], MAX_BYTES)
    assert isinstance(blob, ImageError)
    assert blob.outcome.status is Status.CORRUPT


def test_members_are_listed_by_the_rules_for_a_folder_and_score_as_files_do(crops: Path, tmp_path: Path) -> None:
    folder, files = tmp_path / "data", sorted(crops.rglob("*.jpg"))
    folder.mkdir()
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(folder / f"{method}.zip", "w", method) as archive:
            for file in files:
                archive.write(file, file.relative_to(crops))
            archive.writestr("dataset.json", "{}")
            archive.writestr("__MACOSX/._a.jpg", b"x")
    said = list[str]()
    paths = [path for batch in list_inputs(Source((str(folder),)), said.append) for path in batch[0].to_pylist()]
    names = [str(file.relative_to(crops)) for file in files]
    assert paths == [f"{folder}/{method}.zip::{name}" for method in (0, 8) for name in names]
    assert len(listed(folder / "0.zip", all_files=True)) == len(files) + 2
    outside = [row["score"] for row in scored(tmp_path, crops)]
    assert [row["score"] for row in scored(tmp_path, folder)] == outside * 2


def test_a_cut_archive_has_a_row_of_its_own(crops: Path, tmp_path: Path) -> None:
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(crops.rglob("*.jpg")):
            archive.write(file, file.relative_to(crops))
    path.write_bytes(path.read_bytes()[:-400])
    rows = scored(tmp_path, path)
    assert [row["status"] for row in rows] == ["ok"] * 10 + ["truncated"]
    assert "lost its directory" in str(rows[-1]["error"])


@settings(max_examples=200, deadline=None)
@given(_ENTRIES, st.booleans(), st.data())
def test_whatever_is_damaged_and_cut_nothing_is_raised_and_nothing_made_up(
    entries: Entries, stream: bool, draw: st.DataObject
) -> None:
    data = bytearray(build(entries, stream=stream))
    for _ in range(draw.draw(st.integers(1, 3))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.sampled_from([0, 1, 0x7F, 0x80, 0xFF]))
    found, _ = by_us(bytes(data[: draw.draw(st.integers(len(data) // 2, len(data)))]))
    whole = [value for _, value in expected(entries)]
    assert all(isinstance(value, Status) or value in whole for _, value in found)


@pytest.mark.parametrize("more", [b"\n", bytes(512), b"PK"])
def test_bytes_behind_the_end_cost_nothing(more: bytes) -> None:
    entries = [("a.jpg", zipfile.ZIP_STORED, 50, False), ("b.jpg", zipfile.ZIP_DEFLATED, 50, True)]
    for stream in (False, True):
        assert by_us(build(entries, stream=stream) + more) == (expected(entries), None)


def test_sizes_that_cannot_be_cost_a_row_and_not_the_run(crops: Path, tmp_path: Path) -> None:
    (file, *_) = sorted(crops.rglob("*.jpg"))
    path = tmp_path / "t.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("a.jpg", "b.jpg"):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(file.read_bytes())
    data = bytearray(path.read_bytes())
    extra = data.find(b"\1\0\x10\0")
    data[extra + 11] = 0x80  # of the size that the first header tells
    path.write_bytes(data[:-30])
    rows = scored(tmp_path, path)
    assert {row["status"] for row in rows} <= {"ok", "corrupt", "truncated"}
    assert rows[-1]["path"] == str(path)


def test_a_name_in_another_field(tmp_path: Path) -> None:
    """Info-ZIP's, from which zipfile takes the name since Python 3.12."""
    name = "caf\u00e9.jpg".encode("cp437")
    field = struct.pack("<HHBL", 0x7075, 5 + 9, 1, zlib.crc32(name)) + "日本.jpg".encode()[:9]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        entry = zipfile.ZipInfo("cafe.jpg")
        entry.extra = field
        archive.writestr(entry, b"x" * 9)
    found, error = by_us(buffer.getvalue().replace(b"cafe.jpg", name))
    assert error is None
    assert [value for _, value in found] == [b"x" * 9]


def test_a_part_of_a_split_archive_says_so(tmp_path: Path) -> None:
    data = bytearray(build([("a.jpg", zipfile.ZIP_STORED, 50, False)]))
    data[data.rfind(b"PK\1\2") + 34] = 1  # it begins in the second part
    found, error = by_us(bytes(data))
    assert found == []
    assert "split" in str(error)
