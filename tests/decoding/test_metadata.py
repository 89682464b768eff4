"""Metadata of JPEG and WebP, whole or broken in any way, must not cost the image or change its pixels."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.decoding.cpu import decode_image
from fiqa_trt.decoding.metadata import bare
from fiqa_trt.outcomes import UNFORESEEN, Status
from tests.decoding.images import encode, outcome, pixels, segment
from tests.helpers import jpeg

SMALL = Image.radial_gradient("L").resize((40, 30))
RGB = Image.merge("RGB", (SMALL, SMALL.rotate(90), SMALL.rotate(180)))
NAMES = (
    b"JFIF\0", b"JFXX\0", b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0",
    b"MPF\0", b"MPF\0II*\0\x08\0\0\0", b"FPXR\0", b"Photoshop 3.0\0", b"Photoshop 3.0\x008BIM\x04\x04", b"Adobe",
    b"Ducky", b"",
)  # fmt: skip


def inserted(data: bytes, part: bytes, *, first: bool = True) -> bytes:
    """A part behind the start, or before the frame."""
    at = 2 if first else data.index(b"\xff\xc0")
    return data[:at] + part + data[at:]


@pytest.mark.slow
@settings(max_examples=500, deadline=None)
@given(
    mode=st.sampled_from(["RGB", "L"]),
    marker=st.sampled_from([*range(0xE0, 0xEF), 0xEF, 0xFE]),
    name=st.sampled_from(NAMES),
    body=st.binary(max_size=40),
    first=st.booleans(),
)
def test_no_segment_harms_a_jpeg(mode: str, marker: int, name: bytes, body: bytes, first: bool) -> None:
    whole = jpeg(RGB.convert(mode), subsampling=0)
    if marker == 0xEE and name == b"Adobe" and len(body) >= 7:
        return  # it says how the colours are stored
    data = inserted(whole, segment(marker, name + body), first=first)
    found = outcome(data)
    assert found.status is Status.OK, found
    if marker != 0xE1:  # where the image may be told to be turned
        assert np.array_equal(pixels(data), pixels(whole))


@pytest.mark.parametrize(
    "part",
    [
        segment(0xE0, b"JFIF\0"),
        segment(0xEE, b"Adobe\0"),
        segment(0xE2, b"ICC_PROFILE\0"),
        segment(0xE2, b"ICC_PROFILE\0\0\0" + bytes(50)),
        segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(50)),
        segment(0xED, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\xff\xff"),
        segment(0xE2, b"MPF\0II*\0\x08\0\0\0\3\0"),
        segment(0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        segment(0xE1, b"") + segment(0xE2, b"") + segment(0xFE, b""),
    ],
)
@pytest.mark.parametrize("instead", [False, True])
def test_cut_segments(part: bytes, instead: bool) -> None:
    """Beside the JFIF segment, and instead of it."""
    whole = jpeg(RGB, subsampling=0)
    data = whole[:2] + part + whole[20:] if instead else inserted(whole, part)
    assert np.array_equal(pixels(data), pixels(whole))


def exif(orientation: int, rest: bytes = b"") -> bytes:
    """An EXIF segment; `rest` follows the orientation in its directory."""
    count = 1 + len(rest) // 12
    entries = struct.pack("<HHLHH", 0x112, 3, 1, orientation, 0) + rest
    return segment(0xE1, b"Exif\0\0II*\0" + struct.pack("<LH", 8, count) + entries + bytes(4))


def test_a_broken_block_keeps_its_orientation() -> None:
    whole = jpeg(RGB, subsampling=0)
    turned = np.rot90(pixels(whole), -1)
    beyond = struct.pack("<HHLL", 0x11A, 5, 1, 0xFFFFFF)  # a resolution whose place is behind the end
    endless = struct.pack("<HHLL", 0x8769, 4, 1, 8)  # a directory that leads to itself
    for rest in (b"", beyond, endless, beyond + endless):
        for more in (b"", segment(0xE2, b"ICC_PROFILE\0"), segment(0xE2, b"MPF\0")):
            data = inserted(whole, exif(6, rest) + more)
            assert np.array_equal(pixels(data), turned)
            assert np.array_equal(np.asarray(decode_image(data, reference=True)), turned)


def test_an_orientation_in_xmp_alone_is_ignored_as_in_browsers() -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    whole = jpeg(RGB, subsampling=0)
    assert np.array_equal(pixels(inserted(whole, segment(0xE1, xmp))), pixels(whole))


def test_colours_survive_without_metadata() -> None:
    """How the colours are stored stands in segments too."""
    files = [jpeg(RGB), jpeg(RGB.convert("L")), jpeg(RGB.convert("CMYK")), encode(RGB, "JPEG", keep_rgb=True)]
    for number, whole in enumerate(files):
        stripped = bare("JPEG", inserted(whole, segment(0xE5, b"anything") + segment(0xFE, b"a comment")))
        assert stripped is not None
        assert np.array_equal(pixels(stripped.data), pixels(whole)), number


def riff(chunks: bytes) -> bytes:
    return b"RIFF" + struct.pack("<L", 4 + len(chunks)) + b"WEBP" + chunks


def part(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<L", len(body)) + body + bytes(len(body) % 2)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    kind=st.sampled_from([b"EXIF", b"XMP ", b"ICCP", b"abcd"]),
    body=st.binary(max_size=50),
    flags=st.integers(0, 255),
    first=st.booleans(),
    beyond=st.integers(0, 3),
)
def test_no_chunk_harms_a_webp(kind: bytes, body: bytes, flags: int, first: bool, beyond: int) -> None:
    """Announced or not, before the pixels or behind them, longer than the file or not."""
    plain = encode(RGB, "WEBP")
    header = part(b"VP8X", bytes([flags & ~0x12, 0, 0, 0]) + struct.pack("<L", 39)[:3] + struct.pack("<L", 29)[:3])
    extra = part(kind, body)
    if beyond and not first:
        extra = extra[:4] + struct.pack("<L", len(body) + 2 * beyond) + extra[8:]
    data = riff(header + (extra + plain[12:] if first else plain[12:] + extra))
    assert outcome(data).status is Status.OK
    if kind != b"EXIF":
        assert np.array_equal(pixels(data), pixels(plain))


def test_a_webp_keeps_its_transparency_and_its_frames() -> None:
    alpha = RGB.copy()
    alpha.putalpha(SMALL)
    moving = encode(alpha, "WEBP", save_all=True, append_images=[alpha.rotate(90)], lossless=True)
    for whole in (encode(alpha, "WEBP", lossless=True), moving):
        stripped = bare("WEBP", encode(Image.open(io.BytesIO(whole)), "WEBP", lossless=True, xmp=b"<x/>"))
        assert stripped is not None
        assert np.array_equal(pixels(stripped.data), pixels(whole))


@pytest.mark.slow
@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "TIFF"]),
    at=st.integers(2, 400),
    instead=st.binary(max_size=8),
    gone=st.integers(0, 12),
    end=st.integers(2, 600),
)
def test_nothing_unforeseen_in_damage(kind: str, at: int, instead: bytes, gone: int, end: int) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    whole = encode(RGB, kind, exif=exif, icc_profile=b"profile")
    for data in (whole[:end], whole[:at] + instead + whole[at + gone :]):
        bare(kind, data)
        assert UNFORESEEN not in (outcome(data).error or "")


def test_a_cut_header_of_a_webp() -> None:
    whole = encode(RGB, "WEBP", exif=b"Exif\0\0")
    for end in range(12, 60):
        assert outcome(whole[:end]).status is Status.TRUNCATED
