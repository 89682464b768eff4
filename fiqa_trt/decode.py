"""From the bytes of a file to the pixels that an engine takes.

The reference is Pillow: decode, apply the EXIF orientation, resize the short edge with the antialiased bilinear filter,
crop the centre. JPEG takes a faster way to the same pixels (libjpeg-turbo through simplejpeg); whenever that way finds
anything to object to, Pillow decides.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Union

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from fiqa_trt.records import ImageError, Outcome, Status
from fiqa_trt.spec import PreprocessSpec

if TYPE_CHECKING:
    from torch import Tensor

Pixels = npt.NDArray[np.uint8]
Images = Union[Pixels, "Tensor"]
"""A batch where it was decoded: in memory as NumPy's, on a GPU as PyTorch's."""

# Formats that Pillow decodes by itself; its other plugins start programs (EPS) or hold no photographs. Imported here,
# because Pillow registers most of them only on demand.
FORMATS: tuple[str, ...] = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        GifImagePlugin.GifImageFile,
        PpmImagePlugin.PpmImageFile,
        AvifImagePlugin.AvifImageFile,
    )
)
DEFAULT_MAX_PIXELS = 64_000_000

_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# First bytes of the formats above, and of others that are images but that we do not decode.
_OURS = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"BM", b"II*\0", b"MM\0*", b"GIF8", b"P5", b"P6")
_FOREIGN = (
    b"8BPS",
    b"\0\0\1\0",
    b"%!PS",
    b"\xff\x0a",
    b"\0\0\0\x0cJXL ",
    b"\0\0\0\x0cjP  ",
    b"\xff\x4f\xff\x51",
    b"qoif",
)


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A batch of inputs, decoded.

    Attributes:
        outcomes: N, in the order of the inputs.
        pixels: uint8 RGB [batch, size, size, 3], batch >= N; row k is input k if its outcome is `ok`, and of no meaning
            otherwise.
    """

    outcomes: list[Outcome]
    pixels: Images


class Decoder(Protocol):
    """Turns the bytes of several files into one batch of pixels."""

    name: str
    max_pixels: int
    """Larger images are refused."""
    threads: int
    """How many calls may run at once."""

    def decode(self, blobs: Sequence[bytes | ImageError], batch: int) -> Decoded:
        """Decode `blobs`, the bytes of up to `batch` files or why there are none. What is in one raises nothing.

        Raises:
            RunError: the device failed.
        """
        ...


class CpuDecoder:
    """Pillow, and libjpeg-turbo for JPEG. Safe to use from several threads."""

    name = "cpu"

    def __init__(self, max_pixels: int = DEFAULT_MAX_PIXELS, threads: int = 1) -> None:
        # Pillow's own limit only warns, and an explicit --max-pixels must be able to exceed it; ours is checked
        # before anything is decoded.
        Image.MAX_IMAGE_PIXELS = None
        self.max_pixels = max_pixels
        self.threads = threads

    def decode(self, blobs: Sequence[bytes | ImageError], batch: int) -> Decoded:
        """See `Decoder.decode`."""
        size = PreprocessSpec().size
        pixels = np.zeros((batch, size, size, 3), np.uint8)
        return Decoded([self.decode_into(row, blob) for row, blob in zip(pixels, blobs, strict=False)], pixels)

    def decode_into(self, row: Pixels, blob: bytes | ImageError) -> Outcome:
        """Decode one image into uint8 [size, size, 3], which stays as it is if that fails."""
        try:
            if isinstance(blob, ImageError):
                raise blob
            image = decode_image(blob, self.max_pixels)
            row[...] = fit(image, len(row))
        except ImageError as exc:
            return exc.outcome
        return Outcome(Status.OK, *image.size)


def decode_image(data: bytes, max_pixels: int = DEFAULT_MAX_PIXELS, *, reference: bool = False) -> Image.Image:
    """The whole image, upright, in mode RGB.

    Args:
        data: the bytes of a file; of an animation the first frame counts.
        max_pixels: an image whose header promises more is refused before it is decoded.
        reference: use nothing but Pillow.

    Raises:
        ImageError: `not_an_image`, `unsupported`, `truncated`, `corrupt` or `too_large`.
    """
    image = _open(data)
    width, height = image.size
    if width * height > max_pixels:
        error = f"{width} x {height} pixels, more than {max_pixels} (--max-pixels)"
        raise ImageError(Status.TOO_LARGE, error, width, height)
    try:
        upright = None if reference else _turbo(image, data)
        if upright is None:
            image.load()
            upright = _to_rgb(image)
        method = _UPRIGHT.get(_orientation(image))
        return upright if method is None else upright.transpose(method)
    except ImageError:
        raise
    except MemoryError as exc:
        raise ImageError(Status.TOO_LARGE, "not enough memory to decode it", width, height) from exc
    except Exception as exc:
        # Pillow's plugins raise whatever a malformed file makes them stumble over; none of it may end a run.
        status = Status.TRUNCATED if _ends_early(data) or "truncated" in str(exc).lower() else Status.CORRUPT
        raise ImageError(status, str(exc) or type(exc).__name__, width, height) from exc


def _open(data: bytes) -> ImageFile.ImageFile:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as exc:  # as above
        if data.startswith(_OURS) or data[4:12] == b"ftypavif":
            if _ends_early(data):
                raise ImageError(Status.TRUNCATED, "ends within its header") from exc
            raise ImageError(Status.CORRUPT, "its header cannot be read") from exc
        if data.startswith(_FOREIGN) or data[4:8] == b"ftyp" or data[:512].lstrip().startswith(b"<svg"):
            raise ImageError(Status.UNSUPPORTED, "an image format that is not supported") from exc
        raise ImageError(Status.NOT_AN_IMAGE, "no known image format") from exc


def _ends_early(data: bytes) -> bool:
    """Whether a file lacks the end that its format prescribes."""
    if data.startswith(b"\xff\xd8"):
        return b"\xff\xd9" not in data[-64:]
    if data.startswith(b"\x89PNG"):
        return b"IEND" not in data[-64:]
    if data.startswith(b"GIF8"):
        return b";" not in data[-8:]
    if data.startswith(b"RIFF"):
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if data.startswith(b"BM"):
        return len(data) < int.from_bytes(data[2:6], "little")
    return False


def _turbo(image: ImageFile.ImageFile, data: bytes) -> Image.Image | None:
    """The JPEG's pixels as Pillow would give them, or None where only Pillow can tell."""
    if image.format not in ("JPEG", "MPO") or image.mode not in ("RGB", "L"):
        return None
    try:
        # `strict` (the default) objects to everything that libjpeg so much as warns about.
        return Image.fromarray(simplejpeg.decode_jpeg(data, "RGB"))
    except ValueError:
        return None


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image.copy()
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint16) >> 8
        return Image.fromarray(levels.astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ImageError(Status.UNSUPPORTED, f"32-bit pixels (mode {image.mode}) have no defined range", *image.size)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        colours = image.convert("RGBA")
        white = Image.new("RGBA", colours.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return image.convert("RGB")


def upright_rgb(image: Image.Image) -> Image.Image:
    """An image that Pillow opened or made, as `decode_image` gives the one of a file. Raises ImageError likewise."""
    try:
        image.load()
        upright, method = _to_rgb(image), _UPRIGHT.get(_orientation(image))
        return upright if method is None else upright.transpose(method)
    except ImageError:
        raise
    except Exception as exc:  # as in `decode_image`: a file that is read only now
        status = Status.TRUNCATED if "truncated" in str(exc).lower() else Status.CORRUPT
        raise ImageError(status, str(exc) or type(exc).__name__, *image.size) from exc


def fit(image: Image.Image, size: int) -> Pixels:
    """Short edge to `size` with the antialiased bilinear filter, then the centre: uint8 [size, size, 3].

    One call does both: the box is the centre square of the source, so the scale is exact and nothing outside the crop
    is computed.
    """
    width, height = image.size
    if (width, height) != (size, size):
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.asarray(image)
