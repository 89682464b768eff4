"""The check of structure: whole plain files pass with their size, what is cut, forged or of another kind does not."""

from __future__ import annotations

import io
import random
import struct
import zlib

import pytest
from PIL import Image

from benchmarks.common import damage
from fiqa_trt.decoding.cpu import decode_image
from fiqa_trt.decoding.structure import _MARKER, _NEXT_MARKER, dimensions
from fiqa_trt.outcomes import ImageError
from tests.helpers import jpeg


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture
def picture(portrait: Image.Image) -> Image.Image:
    return portrait.resize((150, 97))


def test_whole_files(picture: Image.Image) -> None:
    files = [
        jpeg(picture),
        jpeg(picture, quality=5),
        jpeg(picture, optimize=True),
        jpeg(picture, progressive=True),
        jpeg(picture, subsampling=0),
        jpeg(picture, restart_marker_rows=1),
        jpeg(picture.convert("L")),
        jpeg(picture, comment=b"hello", icc_profile=bytes(70_000)),
        jpeg(picture) + bytes(60),
        encode(picture, "PNG"),
        encode(picture.convert("L"), "PNG"),
        encode(picture.quantize(200), "PNG"),
        encode(picture, "WEBP"),
        encode(picture, "WEBP", lossless=True),
    ]
    for number, data in enumerate(files):
        assert dimensions(data) == (150, 97), number


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_files_cut_anywhere(picture: Image.Image, kind: str) -> None:
    data = encode(picture, kind)
    for size in range(0, len(data) - 1, 7):
        assert dimensions(data[:size]) is None


def test_forged_jpegs(picture: Image.Image) -> None:
    good = jpeg(picture)
    frame, table, scan, coder = (good.index(bytes([0xFF, kind])) for kind in (0xC0, 0xDB, 0xDA, 0xC4))
    forgeries = {
        "12 bits": (frame + 4, b"\x0c"),
        "no height": (frame + 5, b"\0\0"),
        "four components": (frame + 9, b"\4"),
        "sampling of 0": (frame + 11, b"\0"),
        "a quantiser that is not there": (frame + 12, b"\3"),
        "two components of one name": (frame + 13, good[frame + 10 : frame + 11]),
        "an arithmetic coder": (frame + 1, b"\xc9"),
        "a fourth kind of quantiser": (table + 4, b"\x24"),
        "an impossible Huffman table": (coder + 5, b"\xff"),
        "a segment of no length": (coder + 2, b"\0\0"),
        "a scan of a component that is not there": (scan + 5, b"\x77"),
        "a scan with a coder that is not there": (scan + 6, b"\x33"),
        "a scan that is not baseline": (scan + 11, b"\1"),
        "a marker in the data": (scan + 300, b"\xff\x16"),
        "an end in the data": (scan + 300, b"\xff\xd9"),
    }
    for name, (at, value) in forgeries.items():
        assert dimensions(good[:at] + value + good[at + len(value) :]) is None, name
    assert dimensions(good[: scan + 200] + good[scan:]) is None, "a scan that comes twice"
    twice = good[scan : scan + 5] + good[scan + 5 : scan + 7] * 2 + good[scan + 9 :]
    assert dimensions(good[:scan] + twice) is None, "a component twice in a scan"


@pytest.mark.parametrize("lossless", [False, True])
def test_forged_webps(picture: Image.Image, lossless: bool) -> None:
    good = encode(picture, "WEBP", lossless=lossless)
    assert dimensions(good) == (150, 97)
    assert dimensions(good + b"xx") is None
    for at in (4, 16):
        for difference in (-128, -2, 2, 128):
            length = int.from_bytes(good[at : at + 4], "little") + difference
            assert dimensions(good[:at] + length.to_bytes(4, "little") + good[at + 4 :]) is None


def test_forged_pngs(picture: Image.Image) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    good = encode(picture, "PNG")
    assert dimensions(good[:33] + chunk(b"tEXt", b"a\0b") + good[33:]) == (150, 97)
    assert dimensions(good[:33] + chunk(b"tRNS", b"\0" * 6) + good[33:]) is None
    assert dimensions(good[:33] + chunk(b"IHDR", good[16:29]) + good[33:]) is None
    assert dimensions(good[:8] + chunk(b"IEND", b"")) is None
    assert dimensions(good[:60] + b"\x55" + good[61:]) is None


def test_the_quick_search_finds_the_same_markers() -> None:
    rng, found = random.Random(2), 0
    table = (b"\xff\xff\xff\xff\x00\xd0\xd7\xd8\xd9\x0a\x01\xfe\x00\x00\x00\x00" * 16)[:256]
    for _ in range(200_000):
        data = rng.randbytes(rng.randrange(12)).translate(table)
        at = rng.randrange(len(data) + 1)
        slow, quick = _MARKER.search(data, at), _NEXT_MARKER.search(data, at)
        assert (slow and (slow[1], slow.end())) == (quick and (quick[1], quick.end()))
        found += slow is not None
    assert found > 20_000


def test_what_passes_can_be_decoded(picture: Image.Image) -> None:
    rng, passed = random.Random(0), 0
    for kind in ("JPEG", "PNG", "WEBP"):
        good = encode(picture, kind)
        for _ in range(300):
            bad = bytearray(good)
            for _ in range(rng.choice((1, 3, 20))):
                bad[rng.randrange(len(bad))] = rng.randrange(256)
            size = dimensions(bytes(bad))
            if size is None:
                continue
            passed += 1
            try:
                assert decode_image(bytes(bad)).size == size
            except ImageError:
                if kind == "JPEG":  # compressed data of the others may still be impossible
                    raise
    assert passed > 50
    data = jpeg(picture)
    assert all(
        dimensions(damage(data, random.Random(seed))) in (None, (150, 97), (60_000, 60_000)) for seed in range(99)
    )


def test_what_may_turn_an_image_or_change_it(picture: Image.Image) -> None:
    """Only an orientation that every reader finds is left to another decoder, and no part that nobody knows."""
    good = jpeg(picture)

    def exif(kind: int, count: int, value: int) -> bytes:
        body = b"Exif\0\0II*\0" + struct.pack("<LHHHLHHL", 8, 1, 0x112, kind, count, value, 0, 0)
        return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body

    plain = exif(3, 1, 6)
    assert dimensions(good[:2] + plain + good[2:]) == (150, 97)
    for block in (plain * 2, exif(4, 1, 6), exif(3, 2, 6), exif(1, 1, 6), plain[:10] + b"XX" + plain[12:]):
        assert dimensions(good[:2] + block + good[2:]) is None

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    good = encode(picture, "PNG")
    for part in (chunk(b"acTL", bytes(8)), chunk(b"tEXt", b"Raw profile type exif\0x"), chunk(b"NEWx", b"")):
        assert dimensions(good[:33] + part + good[33:]) is None
