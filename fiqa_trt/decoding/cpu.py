"""From the bytes of a file to the pixels that an engine takes.

The reference is Pillow: decode, apply the EXIF orientation, resize the short edge with the antialiased bilinear filter,
crop the centre. JPEG takes a faster way to the same pixels (libjpeg-turbo through simplejpeg); whenever that way finds
anything to object to, Pillow decides.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg
from PIL import Image

from fiqa_trt.decoding import pillow, tiff
from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS, Decoded, Pixels
from fiqa_trt.decoding.colours import to_rgb
from fiqa_trt.decoding.kinds import announced_size, ends_early, incomplete, unsupported, unsupported_as_it_failed
from fiqa_trt.decoding.metadata import Bare, bare, bare_png
from fiqa_trt.errors import one_line
from fiqa_trt.inputs.formats import find_format, find_other
from fiqa_trt.models.spec import PreprocessSpec
from fiqa_trt.outcomes import ImageError, Outcome, Status, unforeseen
from fiqa_trt.progress import Say

if TYPE_CHECKING:
    from PIL import ImageFile


ORIENTATION = 0x0112
_CROP = (PreprocessSpec().size,) * 2
_SHORT = re.compile("truncated|not enough image data", re.IGNORECASE)
"""What Pillow says of a file that ends before its pixels do."""
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class CpuDecoder:
    """Pillow, and libjpeg-turbo for JPEG. Safe to use from several threads."""

    name = "cpu"

    def __init__(self, max_pixels: int = DEFAULT_MAX_PIXELS, threads: int = 1) -> None:
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
            found = _decoded(blob, self.max_pixels)
            if isinstance(found, np.ndarray) and found.shape == row.shape:
                row[...] = found
                return Outcome(Status.OK, *row.shape[1::-1])
            image = _as_image(found)
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
    return _as_image(_decoded(data, max_pixels, reference))


def _as_image(found: Image.Image | Pixels) -> Image.Image:
    return Image.fromarray(found) if isinstance(found, np.ndarray) else found


def _decoded(data: bytes, max_pixels: int, reference: bool = False) -> Image.Image | Pixels:
    """See `decode_image`; an array if that is a crop already, as Pillow would copy it twice to no end."""
    try:
        return _decode_file(data, max_pixels, reference)
    except ImageError:
        raise
    except Exception as exc:  # the last net: what is wrong with one image ends no run
        raise unforeseen(exc) from exc


def _decode_file(data: bytes, max_pixels: int, reference: bool) -> Image.Image | Pixels:
    kind = find_format(data)
    if kind is None:
        other = find_other(data)
        if other is None:
            raise ImageError(Status.NOT_AN_IMAGE, "no known image format")
        raise ImageError(Status.UNSUPPORTED, f"{other}, an image format that is not supported")
    # A text in a PNG can take the place of anything that Pillow knows of the image, so it never gets to see one.
    file = bare_png(data) if kind.name == "PNG" else Bare(data)
    if kind.name == "TIFF" and tiff.overfull(data):
        file = bare("TIFF", data) or file
    try:
        return _decode(kind.name, file, max_pixels, reference)
    except ImageError as exc:
        plain = bare(kind.name, data) if exc.outcome.status in (Status.CORRUPT, Status.TRUNCATED) else None
        if plain is None or plain.data == file.data:
            raise
        try:
            return _decode(kind.name, plain, max_pixels, reference)
        except ImageError as still:
            raise (exc if still.outcome.status in (Status.CORRUPT, Status.TRUNCATED) else still) from None


def _decode(name: str, file: Bare, max_pixels: int, reference: bool) -> Image.Image | Pixels:
    """Here bytes become pixels: by libjpeg-turbo or one of Pillow's plugins. Raises ImageError."""
    data, opened = file.data, False
    width, height = announced_size(name, data) or (None, None)
    pillow.limit(max_pixels)
    try:
        if incomplete(name, data):
            raise ImageError(Status.TRUNCATED, "ends early", width, height)
        if reason := unsupported(name, data):
            raise ImageError(Status.UNSUPPORTED, f"{reason} is not supported", width, height)
        if name not in pillow.PLUGINS:
            raise ImageError(Status.UNSUPPORTED, f"this Pillow was built without {name}", width, height)
        if width and height:
            pillow.check((width, height))
        image = pillow.PLUGINS[name](io.BytesIO(data))
        opened = True
        width, height = image.size
        pillow.check(image.size)
        found: Image.Image | Pixels | None = None if reference else _turbo(image, data)
        if found is None:
            image.info.pop("xmp", None)  # an orientation counts in EXIF alone
            image.load()
            found = pillow.public(to_rgb(image, data))
        orientation = _orientation(file.exif or image.info.get("exif"))
        if isinstance(found, np.ndarray) and found.shape[:2] == _CROP and orientation not in _UPRIGHT:
            return found
        return turned(_as_image(found), orientation)
    except ImageError:
        raise
    except pillow.TooManyPixelsError as exc:
        error = f"{exc}, more than {max_pixels} (--max-pixels)"
        raise ImageError(Status.TOO_LARGE, error, *exc.size) from exc
    except MemoryError as exc:
        raise ImageError(Status.TOO_LARGE, "not enough memory to decode it", width, height) from exc
    except Exception as exc:
        # Pillow's plugins raise whatever a malformed file makes them stumble over; none of it may end a run.
        if reason := unsupported_as_it_failed(name, data, opened=opened):
            raise ImageError(Status.UNSUPPORTED, f"{reason} is not supported", width, height) from exc
        if ends_early(name, data) or _SHORT.search(str(exc)):
            error = one_line(exc) if opened else "ends within its header"
            raise ImageError(Status.TRUNCATED, error, width, height) from exc
        error = one_line(exc) if opened else f"its header cannot be read: {one_line(exc)}"
        raise ImageError(Status.CORRUPT, error, width, height) from exc


def _turbo(image: ImageFile.ImageFile, data: bytes) -> Pixels | None:
    """The JPEG's pixels as Pillow would give them, or None where only Pillow can tell."""
    if image.format != "JPEG" or image.mode not in ("RGB", "L"):
        return None
    try:
        # `strict` (the default) objects to everything that libjpeg so much as warns about.
        pixels: Pixels = simplejpeg.decode_jpeg(data, "RGB")
        return pixels
    except ValueError:
        return None


def _orientation(exif: bytes | None) -> int:
    if not exif:
        return 1
    try:
        exif = exif.removeprefix(b"Exif\0\0")
        block = pillow.Image.Exif()
        block.load(tiff.without_metadata(exif) if tiff.overfull(exif) else exif)
        return int(block.get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Upright, from what EXIF says of how it lies."""
    method = _UPRIGHT.get(orientation)
    return image if method is None else image.transpose(method)


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


def opened(place: str, max_pixels: int, threads: int, say: Say) -> CpuDecoder:
    """See `registry.DECODERS`. Its pixels are in memory, wherever the engine is."""
    return CpuDecoder(max_pixels, threads)


def libraries() -> str:
    """See `registry.DECODERS`."""
    import PIL

    return f"Pillow {PIL.__version__}"
