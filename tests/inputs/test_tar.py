"""Tar shards against Python's tarfile: random archives of every format, links, joined archives, damage, compression."""

from __future__ import annotations

import bz2
import functools
import gzip
import io
import lzma
import os
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fiqa_trt.inputs.containers.tar import TarContainer, plain_file
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import MAX_BYTES
from tests.helpers import read_members

_PARTS = st.sampled_from(["a", "b", "c.jpg", "ü", "caf\udce9", "..", ".", "", "x" * 90, "y" * 160])
_NAMES = st.lists(_PARTS, min_size=1, max_size=4).map("/".join)
_KINDS = {
    "file": tarfile.REGTYPE,
    "old file": tarfile.AREGTYPE,
    "contiguous": tarfile.CONTTYPE,
    "unknown": b"Q",
    "hard": tarfile.LNKTYPE,
    "soft": tarfile.SYMTYPE,
    "folder": tarfile.DIRTYPE,
    "pipe": tarfile.FIFOTYPE,
    "device": tarfile.CHRTYPE,
}
_ENTRIES = st.lists(
    st.tuples(st.sampled_from(sorted(_KINDS)), _NAMES, _NAMES, st.integers(0, 1100)), min_size=1, max_size=12
)
_FORMATS = st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
Entries = list[tuple[str, str, str, int]]


def build(entries: Entries, form: int, salt: int = 0, headers: dict[str, str] | None = None) -> bytes:
    """An archive; names that a format cannot hold are left out, as a real writer would refuse them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=headers, encoding="utf-8") as archive:
        for number, (kind, name, target, size) in enumerate(entries):
            # tarfile takes an old one for a folder if its name, as far as the header holds it, ends with a slash.
            entry = tarfile.TarInfo(name[:30].rstrip("/") if kind == "old file" else name)
            entry.type = _KINDS[kind]
            if kind in ("hard", "soft"):
                entry.linkname = target
            holds = kind in ("file", "old file", "contiguous", "unknown")
            entry.size = size if holds else 0
            data = bytes((salt + 31 * number + i) % 251 + 1 for i in range(size)) if holds else b""
            try:
                archive.addfile(entry, io.BytesIO(data))
            except ValueError:
                continue
    return buffer.getvalue()


def by_tarfile(data: bytes) -> list[tuple[str, bytes | None]]:
    """Name and bytes of each member but folders, in order; None where tarfile reads none."""
    found = list[tuple[str, bytes | None]]()
    options = {"encoding": "utf-8", "errors": "surrogateescape", "ignore_zeros": True}
    with tarfile.open(fileobj=io.BytesIO(data), **options) as archive:  # type: ignore[call-overload]
        for entry in archive.getmembers():
            if not entry.isdir():
                try:
                    file = archive.extractfile(entry)
                except (KeyError, RecursionError):
                    file = None
                found.append((entry.name, None if file is None else file.read()))
    return found


by_us = functools.partial(read_members, ".tar")


def assert_same(data: bytes) -> None:
    """Every member that tarfile reads, and no other, has the same bytes; every key is of its own member."""
    expected, (found, _) = by_tarfile(data), by_us(data)
    keys = [key for key, _ in found]
    assert len(set(keys)) == len(keys)
    assert "" not in keys
    for (name, content), (key, value) in zip(expected, found, strict=True):
        assert key == name or key.startswith(f"{name}::")
        if content is None:
            assert value is Status.UNREADABLE, (name, value)
        else:
            assert value == (content or Status.EMPTY), name


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(_ENTRIES, _FORMATS, st.booleans())
def test_random_archives_read_as_tarfile_reads_them(entries: Entries, form: int, globally: bool) -> None:
    headers = {"comment": "c" * 600} if globally else None
    data = build(entries, form, headers=headers)
    if any(data):
        assert_same(data)
        assert by_us(data)[1] is None


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_ENTRIES, _FORMATS), min_size=2, max_size=3), st.integers(0, 5))
def test_joined_archives(parts: list[tuple[Entries, int]], more: int) -> None:
    joined = b"".join(build(entries, form, salt) + bytes(512 * more) for salt, (entries, form) in enumerate(parts))
    if any(joined):
        assert_same(joined)
        assert by_us(joined)[1] is None


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(_ENTRIES, _FORMATS, st.data())
def test_wherever_it_is_damaged_the_rest_is_read_and_the_place_is_named(
    entries: Entries, form: int, draw: st.DataObject
) -> None:
    whole = build(entries, form)
    intact, error = by_us(whole)
    assert error is None
    used = len(whole.rstrip(b"\0"))
    if not used:
        return
    block = draw.draw(st.integers(0, (used - 1) // 512))
    spoilt = whole[: 512 * block] + b"\xab" * 512 + whole[512 * (block + 1) :]
    found, error = by_us(spoilt)
    assert "" not in [key for key, _ in found]
    if error is not None and block:
        assert f"at byte {512 * block}" in str(error) or "damaged header" in str(error)
    # Either the block was data, and all members are still listed, or the shard has a row of its own.
    assert error is not None or len(found) == len(intact)


_EDITS = st.lists(st.tuples(st.integers(0, 511), st.sampled_from(b"\0 /07891ax\xff")), max_size=4)


@settings(max_examples=500, deadline=None)
@given(
    st.text(st.characters(max_codepoint=0x17F), min_size=1, max_size=110),
    st.integers(0, 1 << 34),
    st.sampled_from([*_KINDS.values(), tarfile.GNUTYPE_SPARSE, b"L"]),
    st.sampled_from([tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]),
    _EDITS,
    st.sampled_from(["kept", "summed", "in another way"]),
)
def test_a_header_that_is_read_in_short_is_read_as_tarfile_reads_it(
    name: str, size: int, kind: bytes, form: int, edits: list[tuple[int, int]], checksum: str
) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.type, entry.mtime = size, kind, size
    try:
        header = bytearray(entry.tobuf(form, "utf-8", "surrogateescape")[-512:])  # type: ignore[arg-type]
    except ValueError:  # what USTAR cannot say
        return
    for place, byte in edits:
        header[place] = byte
    if checksum != "kept":
        total = 256 + sum(header[:148]) + sum(header[156:])
        header[148:156] = (b"%06o\0 " if checksum == "summed" else b"%07o ") % total
    short = plain_file(bytes(header))
    if short is not None:
        expected = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "surrogateescape")
        assert short == (expected.name.encode("utf-8", "surrogateescape"), expected.size)
        assert expected.type == tarfile.REGTYPE
    if (
        not edits
        and kind == tarfile.REGTYPE
        and name.isascii()
        and len(name) <= 100
        and "\0" not in name
        and checksum != "in another way"
        and size < 8**11
    ):
        assert short is not None


def test_a_tar_of_one_member_whose_own_header_is_damaged() -> None:
    """What announces it, its long name, is whole: so it is a tar."""
    whole = build([("contiguous", "ü", "a", 0)], tarfile.PAX_FORMAT)
    found, error = by_us(whole[:1024] + b"\xab" * 512 + whole[1536:])
    assert (found, "a damaged header" in str(error)) == ([], True)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(_ENTRIES, _FORMATS, st.data())
def test_wherever_it_is_cut_something_says_so(entries: Entries, form: int, draw: st.DataObject) -> None:
    whole = build(entries, form)
    used = len(whole.rstrip(b"\0"))
    intact = dict(by_us(whole)[0])
    size = draw.draw(st.integers(0, used))
    found, error = by_us(whole[:size])
    assert error is not None
    assert error.outcome.status in (Status.EMPTY, Status.TRUNCATED, Status.CORRUPT)
    for key, value in found:
        if isinstance(value, bytes):
            # A link may lead to an earlier member where the later one is cut off; its bytes are those of a member.
            assert value in intact.values(), key


@pytest.mark.parametrize("junk", [b"\n", b"junk", b"\xff" * 511, b"\xff" * 512, b"garbage" * 300])
def test_bytes_behind_the_end_mark_are_named(junk: bytes) -> None:
    whole = build([("file", "a.jpg", "", 700)], tarfile.GNU_FORMAT)
    found, error = by_us(whole + junk)
    assert [key for key, _ in found] == ["a.jpg"]
    assert error is not None
    assert error.outcome.status is Status.CORRUPT
    assert f"at byte {len(whole)}" in str(error)
    assert f"to byte {len(whole) + len(junk)}" in str(error)


@pytest.mark.parametrize("padding", [0, 1, 511, 512, 10_000, 3 << 20])
def test_padding_of_any_length_is_fine(padding: int) -> None:
    whole = build([("file", "a.jpg", "", 700)], tarfile.GNU_FORMAT)
    one_block = whole[: len(whole.rstrip(b"\0")) // 512 * 512 + 1024]
    for data in (whole, one_block):
        found, error = by_us(data + bytes(padding))
        assert [key for key, _ in found] == ["a.jpg"]
        assert error is None


def test_numbers_go_on_across_joined_archives() -> None:
    part = build([("file", "a.jpg", "", 5)] * 2, tarfile.GNU_FORMAT)
    keys = [key for key, _ in by_us(part + part)[0]]
    assert keys == ["a.jpg", "a.jpg::2", "a.jpg::3", "a.jpg::4"]


def test_links_that_lead_in_circles_or_nowhere() -> None:
    links: Entries = [
        ("soft", "a", "b", 0),
        ("soft", "b", "a", 0),
        ("soft", "c", "c", 0),
        ("hard", "d", "e", 0),
        ("file", "e", "", 9),
        ("soft", "f", "g", 0),
        ("soft", "g", "./e", 0),
        ("folder", "h", "", 0),
        ("soft", "i", "h", 0),
    ]
    data = build(links, tarfile.PAX_FORMAT)
    found = dict(by_us(data)[0])
    assert {key for key, value in found.items() if isinstance(value, bytes)} == {"e", "f", "g"}
    assert {value for value in found.values() if not isinstance(value, bytes)} == {Status.UNREADABLE}
    with tempfile.NamedTemporaryFile(suffix=".tar") as file:
        file.write(data)
        file.flush()
        shard = TarContainer(file.name)
        for key, reason in (("a", "leads back"), ("d", "not before it"), ("i", "a folder")):
            with pytest.raises(ImageError, match=reason):
                shard.read(key, MAX_BYTES)


def sparse(form: str, minor: int | None, folder: Path) -> bytes:
    """An archive of a sparse file by GNU tar."""
    with (folder / "s.jpg").open("wb") as file:
        file.write(b"begin" * 100)
        file.seek(1 << 20)
        file.write(b"middle" * 1000)
        file.truncate(3 << 20)
    command = ["tar", f"--format={form}", "-S", "-cf", "-", "-C", str(folder), "s.jpg"]
    if minor is not None:
        command.insert(1, f"--sparse-version={minor // 10}.{minor % 10}")
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize(("form", "minor"), [("gnu", None), ("posix", 0), ("posix", 1), ("posix", 10)])
def test_sparse_members(tmp_path: Path, form: str, minor: int | None) -> None:
    data = sparse(form, minor, tmp_path)
    found, error = by_us(data)
    assert error is None
    assert found == [("s.jpg", (tmp_path / "s.jpg").read_bytes())]
    # With a member cut off there is a status, never other bytes.
    for size in range(512, len(data.rstrip(b"\0")), 512):
        values = [value for _, value in by_us(data[:size])[0]]
        assert all(isinstance(value, Status) for value in values), size


@pytest.mark.skipif(shutil.which("tar") is None, reason="needs GNU tar")
@pytest.mark.parametrize("form", ["gnu", "oldgnu", "posix", "ustar", "v7"])
def test_what_gnu_tar_writes(tmp_path: Path, form: str) -> None:
    tree = tmp_path / "d"
    (tree / "sub").mkdir(parents=True)
    for number in range(3):
        (tree / f"{number}.jpg").write_bytes(bytes([number + 1]) * (600 * number + 1))
    os.link(tree / "0.jpg", tree / "sub" / "hard.jpg")
    (tree / "sub" / "soft.jpg").symlink_to("../1.jpg")
    (tree / "twice.jpg").symlink_to("sub//./soft.jpg")
    (tree / "gone.jpg").symlink_to("/nowhere/x.jpg")
    for options in ([], ["-b1"], ["-b", "100"]):
        run = subprocess.run(
            ["tar", f"--format={form}", *options, "-C", tree, "-cf", "-", "."], check=True, capture_output=True
        )
        assert_same(run.stdout)
        found, error = by_us(run.stdout)
        assert error is None
        assert sum(isinstance(value, bytes) for _, value in found) == 6


def test_compressed_or_other_archives_by_the_name_of_a_tar(tmp_path: Path) -> None:
    tar = build([("file", "a.jpg", "", 700)], tarfile.GNU_FORMAT)
    with zipfile.ZipFile(tmp_path / "z", "w") as archive:
        archive.writestr("a.jpg", b"x")
    others = {"gzip": gzip.compress(tar), "bzip2": bz2.compress(tar), "xz": lzma.compress(tar)}
    others |= {"zstd": b"\x28\xb5\x2f\xfd" + bytes(99), "lz4": b"\x04\x22\x4d\x18" + bytes(99)}
    for name, data in others.items():
        found, error = by_us(data)
        assert not found
        assert error is not None
        assert error.outcome.status is Status.UNSUPPORTED
        assert "is compressed" in str(error)
        assert f"{name} -dc" in str(error)
    _, error = by_us((tmp_path / "z").read_bytes())
    assert error is not None
    assert error.outcome.status is Status.UNSUPPORTED
    assert "a ZIP archive" in str(error)


def test_what_is_no_file_or_is_not_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.tar")
    for name, status in (("p.tar", Status.UNREADABLE), ("gone.tar", Status.MISSING)):
        shard = TarContainer(str(tmp_path / name))
        assert shard.error is not None
        assert shard.error.outcome.status is status
        blob = shard.read_all(["a.jpg"])[0]
        assert isinstance(blob, ImageError)
        assert blob.outcome.status is status


@pytest.mark.slow
def test_an_index_takes_little_memory(tmp_path: Path) -> None:
    names = [f"{number:09}.jpg" for number in range(5000)]
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    shard = TarContainer(str(tmp_path / "t.tar"))
    assert list(shard.keys()) == names
    assert shard.weight < 100 * len(names)
    assert [shard.position(name) for name in names] == sorted(shard.position(name) for name in names)
    assert shard.position("none.jpg") == -1


def test_a_key_with_the_hash_of_another_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fiqa_trt.inputs.containers.members.hash", len, raising=False)
    path = tmp_path / "t.tar"
    path.write_bytes(build([("file", name, "", 9) for name in ("a.jpg", "b.jpg", "a.jpg", "long.jpg")], 1))
    shard = TarContainer(str(path))
    assert list(shard.keys()) == ["a.jpg", "b.jpg", "a.jpg::2", "long.jpg"]
    blobs = shard.read_all(["a.jpg", "b.jpg", "a.jpg::2", "long.jpg"])
    assert len(set(map(bytes, blobs))) == 4  # type: ignore[arg-type]
    for key in ("c.jpg", "a.jpg::3", "none.jpg"):
        with pytest.raises(ImageError, match="no such member"):
            shard.read(key)
