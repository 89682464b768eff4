"""Decoding against Pillow's plain way, every kind of image that occurs, and every kind of damage."""

import io
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fiqa_trt.decoding.cpu import CpuDecoder, decode_image, fit
from fiqa_trt.outcomes import ImageError, Status
from tests.helpers import jpeg


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def status_of(data: bytes) -> Status:
    (outcome,) = CpuDecoder().decode([data], 1).outcomes
    assert (outcome.error is None) == (outcome.status is Status.OK)
    return outcome.status


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = b"IEND"
    body = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return b"\x89PNG\r\n\x1a\n" + body + struct.pack(">I", 0) + end + struct.pack(">I", zlib.crc32(end))


@pytest.mark.parametrize("size", [(224, 224), (224, 300), (640, 427), (37, 53), (1, 900), (1024, 1024)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_rows": 1}])
def test_fast_jpeg_equals_pillow(portrait: Image.Image, size: tuple[int, int], options: dict[str, object]) -> None:
    data = jpeg(portrait.resize(size), **options)
    fast, slow = decode_image(data), decode_image(data, reference=True)
    assert np.array_equal(np.asarray(fast), np.asarray(slow))


@pytest.mark.parametrize("size", [(224, 448), (448, 224), (672, 448), (112, 336)])
def test_fit_equals_resize_then_crop(portrait: Image.Image, size: tuple[int, int]) -> None:
    image = portrait.resize(size)
    scale = 224 / min(size)
    whole = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR)
    left, top = (whole.width - 224) // 2, (whole.height - 224) // 2
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224))).astype(int)
    assert np.abs(fit(image, 224).astype(int) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(portrait: Image.Image, orientation: int, kind: str) -> None:
    upright = portrait.resize((120, 80))
    # The stored image is the upright one transformed by the inverse of what the tag asks for.
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(inverse[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    image = decode_image(encode(stored, kind, exif=exif, **options))
    assert image.size == upright.size
    assert np.abs(np.asarray(image).astype(int) - np.asarray(upright)).mean() < 1.5


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_lossless_formats(portrait: Image.Image, kind: str) -> None:
    image = portrait.quantize(64).convert("RGB") if kind == "GIF" else portrait
    assert np.array_equal(np.asarray(decode_image(encode(image, kind))), np.asarray(image))


def test_modes(portrait: Image.Image) -> None:
    rgb = np.asarray(portrait).astype(int)
    grey = np.asarray(portrait.convert("L")).astype(int)

    def pixels(data: bytes) -> npt.NDArray[np.int64]:
        return np.asarray(decode_image(data)).astype(int)

    assert np.abs(pixels(jpeg(portrait.convert("L"))) - grey[..., None]).mean() < 3
    assert np.array_equal(pixels(encode(portrait.convert("L"), "PNG")), np.repeat(grey[..., None], 3, 2))
    sixteen = Image.fromarray((grey * 257).astype(np.uint16))
    for kind in ("PNG", "TIFF"):
        assert np.array_equal(pixels(encode(sixteen, kind)), np.repeat(grey[..., None], 3, 2))
    assert np.abs(pixels(encode(portrait.convert("CMYK"), "JPEG", quality=100)) - rgb).mean() < 3
    assert np.abs(pixels(encode(portrait.convert("CMYK"), "TIFF")) - rgb).max() <= 1
    assert np.abs(pixels(encode(portrait.quantize(256), "PNG")) - rgb).mean() < 6
    assert set(np.unique(pixels(encode(portrait.convert("1"), "PNG")))) == {0, 255}
    assert np.array_equal(pixels(encode(portrait.convert("LA"), "PNG"))[..., 0], grey)


def test_transparent_pixels_lie_over_white(portrait: Image.Image) -> None:
    rgba = portrait.convert("RGBA")
    alpha = Image.new("L", rgba.size, 255)
    alpha.paste(0, (0, 0, 50, 50))
    rgba.putalpha(alpha)
    for kind in ("PNG", "TIFF"):
        image = np.asarray(decode_image(encode(rgba, kind)))
        assert (image[:50, :50] == 255).all()
        assert np.array_equal(image[50:], np.asarray(portrait)[50:])
    palette = portrait.quantize(16)
    key = palette.getpixel((0, 0))
    image = np.asarray(decode_image(encode(palette, "PNG", transparency=key)))
    assert (image[0, 0] == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_an_animation(portrait: Image.Image, kind: str) -> None:
    second = Image.new("RGB", portrait.size, "red")
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode_image(encode(portrait, kind, save_all=True, append_images=[second], **options))
    assert np.abs(np.asarray(image).astype(int) - np.asarray(portrait)).mean() < 8


def test_avif_where_pillow_has_it(portrait: Image.Image) -> None:
    from PIL import features

    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    assert decode_image(encode(portrait, "AVIF")).size == portrait.size


def test_what_is_no_image() -> None:
    assert status_of(b"This is not an image.\n") is Status.NOT_AN_IMAGE
    assert status_of(bytes(1000)) is Status.NOT_AN_IMAGE
    assert status_of(b"\x89PNG\r\n\x1a\n") is Status.TRUNCATED
    assert status_of(b"\xff\xd8\xff") is Status.TRUNCATED
    assert status_of(b"8BPS" + bytes(200)) is Status.UNSUPPORTED
    assert status_of(b"\0\0\0\x18ftypheic" + bytes(200)) is Status.UNSUPPORTED
    assert status_of(b'<svg xmlns="x"/>') is Status.UNSUPPORTED
    assert status_of(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n") is Status.UNSUPPORTED
    assert status_of(encode(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF")) is Status.UNSUPPORTED


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_truncated_anywhere(portrait: Image.Image, kind: str) -> None:
    data = encode(portrait, kind)
    for share in (0.02, 0.1, 0.3, 0.5, 0.8, 0.95):
        assert status_of(data[: int(len(data) * share)]) is Status.TRUNCATED, share


def test_bombs_are_refused_by_their_header(portrait: Image.Image) -> None:
    (outcome,) = CpuDecoder().decode([png_header(60_000, 60_000)], 1).outcomes
    assert (outcome.status, outcome.width, outcome.height) == (Status.TOO_LARGE, 60_000, 60_000)
    bomb = bytearray(jpeg(portrait))
    start = bomb.index(b"\xff\xc0")
    bomb[start + 5 : start + 9] = struct.pack(">HH", 60_000, 60_000)
    assert status_of(bytes(bomb)) is Status.TOO_LARGE
    with pytest.raises(ImageError, match="more than 50175 "):
        decode_image(jpeg(portrait), max_pixels=224 * 224 - 1)
    assert decode_image(jpeg(portrait), max_pixels=224 * 224).size == (224, 224)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_escapes_as_an_exception(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"]))
    good = bytearray(encode(Image.linear_gradient("L").convert("RGB").resize((48, 40)), kind))
    for position, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), max_size=20)
    ):
        good[position] = value
    end = data.draw(st.integers(0, len(good)))
    status_of(bytes(good[:end]))


def test_every_image_is_in_its_own_row(portrait: Image.Image) -> None:
    good = jpeg(portrait)
    blobs: list[bytes | ImageError] = [b"x", good, ImageError(Status.MISSING, "gone"), good[:99], good]
    decoded = CpuDecoder().decode(blobs, 6)
    statuses = [outcome.status.value for outcome in decoded.outcomes]
    assert statuses == ["not_an_image", "ok", "missing", "truncated", "ok"]
    pixels = np.asarray(decoded.pixels)
    assert pixels.shape == (6, 224, 224, 3)
    assert np.array_equal(pixels[1], fit(decode_image(good), 224))
    assert np.array_equal(pixels[1], pixels[4])


def test_threads_do_not_disturb_each_other(portrait: Image.Image) -> None:
    decoder = CpuDecoder()
    blobs = [jpeg(portrait.rotate(angle)) for angle in range(0, 320, 10)]
    expected = decoder.decode(blobs, 32).pixels
    wrong = list[int]()

    def work() -> None:
        if not np.array_equal(np.asarray(decoder.decode(blobs, 32).pixels), np.asarray(expected)):
            wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_pixels_of_the_shared_photographs_equal_pillows() -> None:
    folder = Path(__file__).parents[3] / "shared" / "faces" / "portraits"
    if not folder.is_dir():
        pytest.skip("needs ../shared/faces")
    for path in sorted(folder.glob("*.jpg"))[::97]:
        fast, slow = decode_image(path.read_bytes()), decode_image(path.read_bytes(), reference=True)
        assert np.array_equal(np.asarray(fast), np.asarray(slow)), path.name
