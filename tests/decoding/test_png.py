"""PNG of every colour type and depth, and what its other parts must not do to its pixels."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.decoding.metadata import bare_png
from fiqa_trt.outcomes import Status
from tests.decoding.images import chunk, encode, grey, outcome, over_white, pixels, png

W, H = 11, 6
DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
KINDS = [(colours, bits) for colours, all_bits in DEPTHS.items() for bits in all_bits]
WHOLE = png(np.random.default_rng(0).integers(0, 256, (H, W, 3)), 8, 2)
ANCILLARY = [
    b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"tEXt", b"zTXt", b"iTXt", b"bKGD", b"pHYs", b"sBIT", b"hIST", b"tIME", b"eXIf",
    b"acTL", b"fcTL", b"fdAT", b"cICP", b"mDCV", b"sTER", b"oFFs", b"sPLT", b"prVt", b"juNk",
]  # fmt: skip


@pytest.mark.parametrize(("colours", "bits"), KINDS)
@pytest.mark.parametrize("key", [False, True])
def test_every_kind(colours: int, bits: int, key: bool) -> None:
    """With a transparent colour, palette entry or sample, and without."""
    rng = np.random.default_rng(bits)
    samples = rng.integers(0, 1 << bits, (H, W, SAMPLES[colours]))
    samples[0, 0] = 1  # the key, and a colour that equals it but for its lower byte
    samples[0, 1] = 1 if bits < 16 else 2
    palette = rng.integers(0, 256, (1 << min(bits, 8), 3))
    before = chunk(b"PLTE", palette.astype(np.uint8).tobytes()) if colours == 3 else b""
    levels = samples >> 8 if bits == 16 else samples * 255 // ((1 << bits) - 1)
    alpha = np.full((H, W), 255)
    if colours in (4, 6):
        alpha = levels[..., -1]
    elif key and colours == 3:
        before += chunk(b"tRNS", b"\xff\x40")
        alpha = np.where(samples[..., 0] == 1, 0x40, 255)
    elif key:
        before += chunk(b"tRNS", struct.pack(">H", 1) * SAMPLES[colours])
        alpha = np.where((samples == 1).all(axis=2), 0, 255)
    rgb = palette[samples[..., 0]] if colours == 3 else levels[..., :3] if colours in (2, 6) else grey(levels[..., 0])
    data = png(samples, bits, colours, before=before)
    assert np.abs(pixels(data) - over_white(rgb, alpha)).max() <= 1


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(
    kind=st.sampled_from(ANCILLARY),
    body=st.one_of(
        st.binary(max_size=60),
        st.sampled_from([b"transparency\0\1", b"interlace\0\1", b"bbox\0\1", b"exif\0xx", b"duration\0x", b"mode\0L"]),
        st.binary(max_size=40).map(lambda text: b"name\0\0" + zlib.compress(text)),
    ),
    sound=st.booleans(),
    last=st.booleans(),
)
def test_nothing_but_pixels_counts(kind: bytes, body: bytes, sound: bool, last: bool) -> None:
    """Whatever another part holds, with a right sum or a wrong one, before the pixels or behind them."""
    part = chunk(kind, body)
    part = part if sound else part[:-1] + bytes([part[-1] ^ 1])
    at = len(WHOLE) - 12 if last else 33
    data = WHOLE[:at] + part + WHOLE[at:]
    assert np.array_equal(pixels(data), pixels(WHOLE)) or kind == b"eXIf"  # which may ask for the image to be turned
    assert outcome(data).status is Status.OK


@pytest.mark.slow
@pytest.mark.parametrize("size", [2 << 20, 80 << 20])
@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt", b"tEXt"])
def test_texts_and_profiles_of_any_size(kind: bytes, size: int) -> None:
    if kind == b"tEXt":
        size = min(size, 2 << 20)
    packed = zlib.compress(bytes(size), 1)
    bodies = {
        b"iCCP": b"ICC\0\0" + packed,
        b"zTXt": b"a\0\0" + packed,
        b"iTXt": b"a\0\1\0\0\0" + packed,
        b"tEXt": b"a\0" + b"x" * size,
    }
    data = WHOLE[:33] + chunk(kind, bodies[kind]) * 2 + WHOLE[33:]
    assert np.array_equal(pixels(data), pixels(WHOLE))


def test_transparency_that_does_not_fit_is_ignored_as_libpng_does() -> None:
    for body in (b"", b"\0", bytes(5), bytes(7)):
        assert np.array_equal(pixels(WHOLE[:33] + chunk(b"tRNS", body) + WHOLE[33:]), pixels(WHOLE))
    key = chunk(b"tRNS", b"".join(struct.pack(">H", int(level)) for level in pixels(WHOLE)[0, 0]))
    assert (pixels(WHOLE[:33] + key + WHOLE[33:])[0, 0] == 255).all()
    assert np.array_equal(pixels(WHOLE[:33] + key[:-1] + bytes([key[-1] ^ 1]) + WHOLE[33:]), pixels(WHOLE))
    assert np.array_equal(pixels(WHOLE[:-12] + key + WHOLE[-12:]), pixels(WHOLE))  # out of place


def exif(orientation: int) -> bytes:
    return b"II*\0" + struct.pack("<LHHHLHHL", 8, 1, 0x112, 3, 1, orientation, 0, 0)


def test_orientation_is_that_of_exif(portrait: Image.Image) -> None:
    turned = np.rot90(pixels(WHOLE), -1)
    assert np.array_equal(pixels(WHOLE[:33] + chunk(b"eXIf", exif(6)) + WHOLE[33:]), turned)
    assert np.array_equal(pixels(WHOLE[:-12] + chunk(b"eXIf", exif(6)) + WHOLE[-12:]), turned)
    digits = b"\nexif\n%8d\n" % len(exif(6)) + exif(6).hex().encode() + b"\n"
    for part in (
        chunk(b"tEXt", b"Raw profile type exif\0" + digits),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(digits)),
    ):
        assert np.array_equal(pixels(WHOLE[:33] + part + WHOLE[33:]), turned)
    for part in (
        chunk(b"tEXt", b"Raw profile type exif\0\nexif\n 9\nzz"),
        chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<a tiff:Orientation="6"/>'),
    ):
        assert np.array_equal(pixels(WHOLE[:33] + part + WHOLE[33:]), pixels(WHOLE))


def test_an_animation_counts_by_its_still_image(portrait: Image.Image) -> None:
    small = portrait.resize((40, 30))
    whole = encode(small, "PNG", save_all=True, append_images=[Image.new("RGB", small.size, "red")])
    assert np.array_equal(pixels(whole), np.asarray(small))
    for kind in (b"acTL", b"fcTL", b"fdAT"):
        at = whole.index(kind)
        broken = bytearray(whole)
        broken[at + 4 : at + 8] = b"\xff\xff\xff\xff"
        assert np.array_equal(pixels(bytes(broken)), np.asarray(small)), kind


def test_parts_that_are_needed() -> None:
    for data, status in (
        (WHOLE[:33] + chunk(b"NEWx", b"abc") + WHOLE[33:], Status.UNSUPPORTED),
        (WHOLE[:8] + chunk(b"CgBI", bytes(4)) + WHOLE[8:], Status.UNSUPPORTED),
        (WHOLE[:29] + bytes([WHOLE[29] ^ 1]) + WHOLE[30:], Status.CORRUPT),
        (png(np.zeros((H, W, 1), int), 8, 3), Status.CORRUPT),
    ):
        assert outcome(data).status is status


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_anything_can_be_stripped(rest: bytes) -> None:
    start = WHOLE[:8]
    assert bare_png(start + rest).data.startswith(start)
    once = bare_png(WHOLE + rest).data
    assert bare_png(once).data == once


def test_cut_within_a_text(portrait: Image.Image) -> None:
    data = WHOLE[:33] + chunk(b"tEXt", b"a\0" + bytes(500)) + WHOLE[33:]
    assert outcome(data[:300]).status is Status.TRUNCATED
