"""JPEG 2000: faces as passports keep them, and the kinds that are decoded wrongly and so refused."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.outcomes import Status
from tests.decoding.images import encode, grey, outcome, over_white, pixels


@pytest.fixture(scope="module")
def small(portrait: Image.Image) -> Image.Image:
    return portrait.resize((60, 44))


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("options", [{}, {"tile_size": (32, 32)}, {"num_resolutions": 2}, {"mct": 0}])
def test_lossless(small: Image.Image, bare: bool, options: dict[str, object]) -> None:
    data = encode(small, "JPEG2000", no_jp2=bare, **options)
    assert np.array_equal(pixels(data), np.asarray(small))
    data = encode(small.convert("L"), "JPEG2000", no_jp2=bare)
    assert np.array_equal(pixels(data), grey(np.asarray(small.convert("L")).astype(int)))
    sixteen = Image.fromarray(np.asarray(small.convert("L")).astype(np.uint16) * 257)
    data = encode(sixteen, "JPEG2000", no_jp2=bare)
    assert np.array_equal(pixels(data), grey(np.asarray(small.convert("L")).astype(int)))


def test_lossy_as_passports_have_it(small: Image.Image) -> None:
    data = encode(small, "JPEG2000", irreversible=True, quality_mode="dB", quality_layers=[40])
    assert np.abs(pixels(data) - np.asarray(small)).mean() < 4


def test_transparency(small: Image.Image) -> None:
    alpha = np.tile(np.arange(60) * 4, (44, 1))
    rgba = small.copy()
    rgba.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    assert np.abs(pixels(encode(rgba, "JPEG2000")) - over_white(np.asarray(small), alpha)).max() <= 1
    la = small.convert("L").convert("LA")
    la.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    expected = over_white(grey(np.asarray(small.convert("L"))), alpha)
    assert np.abs(pixels(encode(la, "JPEG2000")) - expected).max() <= 1
    # Four components without a word on what they are.
    assert outcome(encode(rgba, "JPEG2000", no_jp2=True)).status is Status.UNSUPPORTED


def changed(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


def test_kinds_that_are_refused(small: Image.Image) -> None:
    data = encode(small, "JPEG2000")
    stream, colours = data.index(b"\xff\x4f\xff\x51"), data.index(b"colr")
    depth = stream + 42
    refused = {
        "4 bits": changed(data, depth, b"\3\1\1\3\1\1\3\1\1"),
        "12 bits of RGB": changed(data, depth, b"\x0b\1\1\x0b\1\1\x0b\1\1"),
        "different bits": changed(data, depth, b"\7\1\1\5\1\1\5\1\1"),
        "halved colours": changed(data, depth, b"\7\1\1\7\2\2\7\2\2"),
        "e-sYCC": changed(data, colours + 7, struct.pack(">L", 24)),
        "CIELab": changed(data, colours + 7, struct.pack(">L", 14)),
    }
    for name, file in refused.items():
        found = outcome(file)
        assert found.status is Status.UNSUPPORTED, name
        assert "JPEG 2000" in (found.error or "")
    header = data.index(b"jp2h") - 4
    size = int.from_bytes(data[header : header + 4], "big")
    boxes = {
        "a palette": b"pclr" + bytes(8),
        "channels out of order": b"cdef" + struct.pack(">10H", 3, 0, 0, 3, 1, 0, 2, 2, 0, 1),
    }
    for name, body in boxes.items():
        more = struct.pack(">L", 4 + len(body)) + body
        inside = struct.pack(">L", size + len(more)) + data[header + 4 : header + size] + more
        assert outcome(data[:header] + inside + data[header + size :]).status is Status.UNSUPPORTED, name


@pytest.mark.slow
@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("options", [{}, {"tile_size": (32, 32)}, {"irreversible": True}])
def test_cut_anywhere(small: Image.Image, bare: bool, options: dict[str, object]) -> None:
    data = encode(small, "JPEG2000", no_jp2=bare, **options)
    for end in range(12, len(data) - 1, 11):
        assert outcome(data[:end]).status is Status.TRUNCATED, end


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_gives_a_status(data: st.DataObject) -> None:
    good = bytearray(encode(Image.linear_gradient("L").resize((20, 20)).convert("RGB"), "JPEG2000"))
    for position, value in data.draw(st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), max_size=6)):
        good[position] = value
    found = outcome(bytes(good))
    assert (found.error is None) == (found.status is Status.OK)
