"""Which format a file is of, and what is said of whole images that are not decoded."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, features

from fiqa_trt.inputs.formats import DECODED, SUFFIXES, find_format
from fiqa_trt.outcomes import Status
from tests.decoding.images import bmp, encode, grey, outcome, over_white, pixels
from tests.helpers import jpeg

MADE = {"JPEG": "JPEG", "PNG": "PNG", "WEBP": "WEBP", "BMP": "BMP", "TIFF": "TIFF", "GIF": "GIF", "PPM": "PPM",
        "AVIF": "AVIF", "JPEG2000": "JPEG2000"}  # fmt: skip


@pytest.mark.parametrize("kind", MADE)
def test_what_is_decoded_is_found_by_its_start(portrait: Image.Image, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encode(portrait, kind)
    found = find_format(data[:64])
    assert found is not None
    assert found.name == kind
    assert outcome(data).status is Status.OK


def test_suffixes() -> None:
    assert len(set(SUFFIXES)) == len(SUFFIXES)
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    assert {each.name for each in DECODED} == set(MADE)


OTHERS: dict[str, bytes] = {
    "Photoshop": b"8BPS\0\1" + bytes(200),
    "ICO": b"\0\0\1\0\1\0" + bytes(200),
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "PDF": b"%PDF-1.7\n",
    "JPEG XL": b"\xff\x0a" + bytes(50),
    "JPEG XR": b"II\xbc\1" + bytes(50),
    "HEIF": b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic" + bytes(200),
    "ISO media": b"\0\0\0\x18ftypqt  " + bytes(200),
    "DICOM": bytes(128) + b"DICM" + bytes(50),
    "QOI": b"qoif" + bytes(50),
    "DDS": b"DDS " + bytes(124),
    "OpenEXR": b"\x76\x2f\x31\x01" + bytes(50),
    "Radiance HDR": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 1 +X 1\n",
    "PFM": b"PF\n2 2\n-1.0\n" + bytes(48),
    "PAM": b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nENDHDR\n\0\0\0",
    "JBIG2": b"\x97JB2\r\n\x1a\n" + bytes(50),
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(50),
    "EMF": b"\1\0\0\0" + bytes(36) + b" EMF" + bytes(50),
    "Panasonic raw": b"IIU\0" + bytes(50),
    "XBM": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {1};\n",
    "XPM": b"/* XPM */\nstatic char * a[] = {};",
    "SVG": b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- x -->\n<!DOCTYPE svg PUBLIC "a" "b">\n<svg xmlns="x"/>',
    "FITS": b"SIMPLE  =                    T",
}


@pytest.mark.parametrize("name", OTHERS)
def test_images_that_are_not_decoded(name: str) -> None:
    found = outcome(OTHERS[name])
    assert found.status is Status.UNSUPPORTED
    assert (found.error or "").startswith(name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["PCX", "TGA", "SGI", "ICO", "DDS", "ICNS"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_what_pillow_writes_and_we_do_not_read(portrait: Image.Image, kind: str, mode: str) -> None:
    for options in ({}, {"compression": "tga_rle"}) if kind == "TGA" else ({},):
        image = portrait.resize((32, 32)).convert(mode)
        if (kind, mode) in {("SGI", "P"), ("DDS", "P")}:
            continue
        assert outcome(encode(image, kind, **options)).status is Status.UNSUPPORTED


@pytest.mark.parametrize(
    "data",
    [
        b"<!DOCTYPE html><html><body><svg></svg></body></html>",
        b"<html><svg/></html>",
        b"This is not an image.\n" * 99,
        b"P5 is a fine format",
        b"P1 5 apples, 3 pears",
        b"P3rsonal notes",
        b"BM",
        b"BMW\n",
        b"BMP is a fine format too, and has been for long",
        b"GIF8 is no version",
        bytes(5000),
        b"\1" * 5000,
        b"{}" * 400,
        b"PK\3\4" + bytes(400),
        b"\x7fELF" + bytes(400),
        b"RIFF\0\0\0\0AVI LIST" + bytes(400),
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(400),
    ],
)
def test_what_is_no_image_is_not_called_one(data: bytes) -> None:
    assert outcome(data).status is Status.NOT_AN_IMAGE


@given(st.sampled_from([b"BM", *(b"P%d" % n for n in range(1, 7))]), st.text(" \n#abcdefxyz,.", max_size=60))
def test_no_text_without_numbers_is_an_image(start: bytes, text: str) -> None:
    data = start + text.encode()
    nothing_but_comments = start != b"BM" and not re.sub(r"#.*", "", text).strip()  # a Netpbm header may be cut in one
    assert outcome(data).status is (Status.TRUNCATED if nothing_but_comments and text else Status.NOT_AN_IMAGE)


@pytest.mark.parametrize(("kind", "begun"), [("BMP", 14), ("PPM", 3), ("GIF", 6)])
def test_cut_headers_are_of_images(portrait: Image.Image, kind: str, begun: int) -> None:
    data = encode(portrait.resize((32, 32)), kind)
    assert {outcome(data[:length]).status for length in range(begun, 100)} == {Status.TRUNCATED}


def test_random_bytes_are_no_image() -> None:
    rng = np.random.default_rng(0)
    statuses = [outcome(rng.bytes(2000)).status for _ in range(500)]
    assert statuses.count(Status.NOT_AN_IMAGE) >= 498


@pytest.mark.parametrize("frame", [0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7])
def test_jpegs_of_other_kinds(portrait: Image.Image, frame: int) -> None:
    good = jpeg(portrait)
    start = good.index(b"\xff\xc0")
    found = outcome(good[: start + 1] + bytes([frame]) + good[start + 2 :])
    assert found.status is Status.UNSUPPORTED
    assert "JPEG" in (found.error or "")


@pytest.mark.parametrize(("at", "value"), [(4, 12), (4, 16), (4, 2), (9, 2), (9, 5)], ids=str)
def test_jpegs_of_other_depths_and_components(portrait: Image.Image, at: int, value: int) -> None:
    good = bytearray(jpeg(portrait))
    good[good.index(b"\xff\xc0") + at] = value
    assert outcome(bytes(good)).status is Status.UNSUPPORTED


def test_a_jpeg_whose_height_is_told_later(portrait: Image.Image) -> None:
    good = bytearray(jpeg(portrait))
    start = good.index(b"\xff\xc0")
    good[start + 5 : start + 7] = b"\0\0"
    assert outcome(bytes(good)).status is Status.UNSUPPORTED


@pytest.mark.parametrize("maxval", [1, 15, 100, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_netpbm_of_any_range(maxval: int, kind: int) -> None:
    count = 3 if kind in (3, 6) else 1
    samples = np.random.default_rng(0).integers(0, maxval + 1, (7, 9, count))
    head = b"P%d\n# a comment\n9 7\n%d\n" % (kind, maxval)
    if kind < 4:
        body = b" ".join(b"%d" % value for value in samples.ravel()) + b"\n"
    else:
        body = samples.astype(">u2" if maxval > 255 else "u1").tobytes()
    expected = np.rint(samples / maxval * 255).astype(int)
    assert np.abs(pixels(head + body) - np.broadcast_to(expected, (7, 9, 3))).max() <= 1
    assert outcome((head + body)[:-9]).status is not Status.OK


def test_netpbm_in_black_and_white() -> None:
    samples = np.random.default_rng(0).integers(0, 2, (7, 9))
    packed = np.packbits(samples.astype(np.uint8), axis=1).tobytes()
    for data in (b"P4 9 7\n" + packed, b"P1\n9 7\n" + b" ".join(b"%d" % value for value in samples.ravel())):
        assert np.array_equal(pixels(data), grey(255 - samples * 255))


def bgra(rgb: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], alpha: int) -> bytes:
    return np.dstack([rgb[..., ::-1], np.full(rgb.shape[:2], alpha, np.uint8)])[::-1].tobytes()


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("alpha", [0, 90, 255])
def test_bmp_with_a_fourth_byte(header: int, alpha: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)
    masks = struct.pack("<LLLL", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    told = header >= 56
    masks = (masks if told else masks[:12]).ljust(max(12, header - 40), b"\0")
    data = bmp(8, 6, 32, bgra(rgb, alpha), header=header, compression=3, more=masks)
    seen = over_white(rgb, np.full((6, 8), alpha)) if told and alpha else rgb.astype(int)
    assert np.abs(pixels(data) - seen).max() <= 1
    assert np.array_equal(pixels(bmp(8, 6, 32, bgra(rgb, alpha))), rgb)


def test_bmp_masks_that_are_not_known() -> None:
    for bits, masks in ((16, (0xF00, 0xF0, 0xF)), (32, (0x3FF00000, 0xFFC00, 0x3FF)), (32, (0xFF, 0xFF00, 0xFF0000))):
        found = outcome(bmp(8, 6, bits, bytes(8 * 6 * bits // 8), compression=3, more=struct.pack("<LLL", *masks)))
        assert found.status is Status.UNSUPPORTED
    for compression in (4, 5, 6):
        assert outcome(bmp(8, 6, 32, bytes(192), compression=compression)).status is Status.UNSUPPORTED


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("colours", [2, 3, 16, 200])
@pytest.mark.parametrize("grey_levels", [False, True])
def test_bmp_with_a_palette(bits: int, colours: int, grey_levels: bool) -> None:
    """A palette of levels must not be taken for the lack of one."""
    if colours > 1 << bits:
        return
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (colours, 3))
    if grey_levels:
        palette = np.repeat(np.array([0, 255] if colours == 2 else range(colours))[:, None], 3, 1)
    indices = rng.integers(0, colours, (6, 8))
    rows = np.packbits((indices[..., None] >> np.arange(bits - 1, -1, -1) & 1).reshape(6, -1).astype(np.uint8), axis=1)
    rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
    table = np.pad(palette[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
    data = bmp(8, 6, bits, rows[::-1].tobytes(), more=table, colours=colours)
    found = outcome(data)
    assert found.status in (Status.OK, Status.UNSUPPORTED)
    if found.status is Status.OK:
        assert np.array_equal(pixels(data), palette[indices])
    else:
        assert grey_levels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_avif_turned_and_of_more_bits(portrait: Image.Image, orientation: int) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    exif = Image.Exif()
    exif[0x112] = orientation
    small = portrait.resize((64, 48))
    data = encode(small, "AVIF", quality=95, subsampling="4:4:4", exif=exif)
    upright = Image.fromarray(pixels(data).astype(np.uint8))
    assert upright.size == ((64, 48) if orientation < 5 else (48, 64))
    plain = pixels(encode(small, "AVIF", quality=95, subsampling="4:4:4"))
    turned = {1: plain, 3: plain[::-1, ::-1], 6: np.rot90(plain, -1), 8: np.rot90(plain)}
    if orientation in turned:
        assert np.array_equal(pixels(data), turned[orientation])


def test_a_container_whose_brand_says_little(portrait: Image.Image) -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encode(portrait.resize((64, 48)), "AVIF")
    renamed = data[:8] + b"mif1" + data[12:]
    assert b"avif" in renamed[16:40]
    assert np.array_equal(pixels(renamed), pixels(data))


def test_the_first_frame_of_a_gif_on_its_canvas() -> None:
    first = Image.new("P", (10, 8), 1)
    first.putpalette([255, 0, 0, 0, 0, 255])
    first.paste(0, (0, 0, 5, 8))
    for disposal in range(4):
        data = encode(
            first, "GIF", save_all=True, append_images=[Image.new("P", (10, 8), 0)], transparency=0, disposal=disposal
        )
        image = pixels(data)
        assert (image[:, :5] == 255).all()
        assert (image[:, 5:] == (0, 0, 255)).all()
