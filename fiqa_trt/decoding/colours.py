"""Pixels of every kind as RGB of 8 bits."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from fiqa_trt.decoding import pillow, tiff
from fiqa_trt.outcomes import ImageError, Status

if TYPE_CHECKING:
    import numpy.typing as npt

_WITH_ALPHA = ("RGBA", "LA", "PA", "RGBa", "La")


def to_rgb(image: Any, data: bytes) -> Any:
    """An image in mode RGB, transparent pixels over white.

    Args:
        image: of our own Pillow, loaded.
        data: its file, whose header says what Pillow's modes leave out.

    Raises:
        ImageError: `unsupported`, its pixels have no defined range; `corrupt`, its palette is missing.
    """
    key = image.info.get("transparency")
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        return pillow.Image.fromarray(_levels(image, data, key)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(Status.UNSUPPORTED, f"32-bit pixels (mode {image.mode}) have no defined range", *image.size)
    if image.mode == "RGB" and key is None:
        return image
    if image.format == "PNG" and image.mode == "P" and data.find(b"PLTE", 33, data.find(b"IDAT")) < 0:
        raise ImageError(Status.CORRUPT, "a palette is missing", *image.size)
    if image.format == "PNG" and isinstance(key, int) and image.mode == "L":
        # The key is a sample as it is stored, which may have fewer bits than what Pillow makes of it.
        depth = data[24]
        image.info["transparency"] = (key & (1 << depth) - 1) * 255 // ((1 << depth) - 1)
    if image.format == "PNG" and isinstance(key, tuple):
        return _without_colour(image, data, key)
    if image.mode == "RGBA" and not _alpha_is_told(image.format, data) and not image.getextrema()[3][1]:
        return image.convert("RGB")  # a fourth sample that nobody filled
    if image.format == "TIFF" and image.mode == "P" and (short := tiff.short_palette(data)):
        image.putpalette(bytes(value for colour in zip(*_thirds(short), strict=True) for value in colour))
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in _WITH_ALPHA or key is not None:
        colours = image.convert("RGBA")
        white = pillow.Image.new("RGBA", colours.size, "white")
        return pillow.Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def _without_colour(image: Any, data: bytes, key: tuple[int, int, int]) -> Any:
    """RGB whose pixels of one colour are transparent. With 16 bits all of them have to match."""
    levels = np.array(image)
    values = levels.astype(np.uint16)
    if data[24] == 16:
        low = pillow.PLUGINS["PNG"](io.BytesIO(data))
        low.tile = [(*tile[:3], "RGB;16L") for tile in low.tile]  # the second byte of each sample instead of the first
        low.load()
        values = values << 8 | np.asarray(low)
    levels[(values == np.array(key) & (1 << data[24]) - 1).all(axis=2)] = 255
    return pillow.Image.fromarray(levels)


def _alpha_is_told(name: str, data: bytes) -> bool:
    """Whether the file says that its fourth sample is transparency, as BMP and old TIFF writers do not."""
    return name != "BMP" and not (name == "TIFF" and tiff.extra_is_untold(data))


def _thirds(values: bytes) -> tuple[bytes, bytes, bytes]:
    third = len(values) // 3
    return values[:third], values[third : 2 * third], values[2 * third :]


def _levels(image: Any, data: bytes, key: Any) -> npt.NDArray[np.uint8]:
    """Grey of 16 bits, or of as many as the file says, as grey of 8."""
    bits, white_first = 16, False
    if image.format == "TIFF":
        bits, white_first = tiff.grey(data)
    values = np.asarray(image).astype(np.uint16)
    levels = (values >> (bits - 8)).astype(np.uint8)
    if white_first:
        levels = 255 - levels
    if image.format == "PNG" and isinstance(key, int):
        levels[values == key] = 255
    return levels
