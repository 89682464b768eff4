"""What a program may hand to a `Scorer` as an image, and what it is told of everything else."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from io import IOBase
from typing import Any, Union

import numpy as np
import numpy.typing as npt
from PIL import Image

from fiqa_trt.decoding.cpu import ORIENTATION, fit, turned
from fiqa_trt.errors import UsageError
from fiqa_trt.models.spec import PreprocessSpec
from fiqa_trt.outcomes import ImageError, Outcome, Status

Picture = Image.Image | npt.NDArray[np.uint8]
Item = Union[str, "os.PathLike[str]", bytes, bytearray, memoryview, Picture]

PIXELS = (np.ndarray, Image.Image)
"""Classes of the items that need no decoder."""
_KINDS = "a path, the bytes of a file, a PIL image, or a uint8 array: RGB [H, W, 3] or grey [H, W]"
_TABLES = ("DataFrame", "LazyFrame", "RecordBatch", "Table")
# Pillow reads a file when its image is first used, and not for two threads at once.
_loading = threading.Lock()
# Not while another thread holds it, who would hold it for ever in the child.
os.register_at_fork(before=_loading.acquire, after_in_parent=_loading.release, after_in_child=_loading.release)


def each_item(items: Iterable[Item]) -> Iterator[Item]:
    """The items one by one, checked; all of them before the first is given out, where they are at hand already.

    Raises:
        UsageError: one thing instead of several (not even one path: a rule without exceptions is easier to keep in
            mind), things without an order, or an item that is not an image; its message says what to give instead.
    """
    if isinstance(items, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)):
        raise UsageError(f"one {_name(items)} instead of a list of images: give [it]")
    if isinstance(items, np.ndarray) and (items.ndim != 1 or items.dtype.kind not in "OUST"):
        raise UsageError(
            f"one array of {items.dtype} {items.shape} instead of a list of images: give [array] for one image, "
            "list(array) for a batch of them"
        )
    if _of(items, "torch"):
        raise UsageError(f"one {_name(items)} instead of a list of images: {_tensor('tensor')}")
    if isinstance(items, (Mapping, AbstractSet)) or _of(items, "pandas", "polars", "pyarrow", kinds=_TABLES):
        raise UsageError(f"a {_name(items)} instead of a list of images: give list() of what is to be scored in it")
    if isinstance(items, IOBase) or not hasattr(items, "__iter__"):
        raise UsageError(f"a {_name(items)} instead of a list of images: give [x], where x is {_KINDS}")
    known = list(items) if hasattr(items, "__len__") else None
    for index, item in enumerate(known or ()):
        check_item(item, f"item {index}")
    for index, item in enumerate(items if known is None else known):
        if known is None:
            check_item(item, f"item {index}")
        yield item


def check_item(item: object, what: str) -> None:
    """Raise UsageError, in a line that begins with `what`, unless it is an `Item`."""
    if isinstance(item, np.ndarray):
        if (problem := _problem(item)) is not None:
            raise UsageError(f"{what} is an array of {item.dtype} {item.shape}: {problem}")
    elif _of(item, "torch"):
        raise UsageError(f"{what} is a {_name(item)}: {_tensor('item')}")
    elif isinstance(item, Image.Image) and 0 in item.size:
        raise UsageError(f"{what} is a PIL image of {item.width} x {item.height}: it holds no pixels")
    elif isinstance(item, memoryview) and (item.ndim != 1 or item.itemsize != 1):
        raise UsageError(
            f"{what} is a memoryview of {item.format} {item.shape}, not of a file's bytes: "
            "numpy.asarray(x) makes an array of pixels"
        )
    elif not isinstance(item, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image)):
        hint = "; numpy.asarray(x) may make one of it" if hasattr(item, "__array__") else ""
        hint = "; give what its read() gives" if callable(getattr(item, "read", None)) else hint
        raise UsageError(f"{what} is a {_name(item)}, not {_KINDS}{hint}")


def _problem(array: npt.NDArray[Any]) -> str | None:
    """What is wrong with an array as an image, and what to give instead; None if nothing is."""
    shape, last = array.shape, array.shape[-1] if array.ndim else 0
    if isinstance(array, np.ma.MaskedArray):
        return "masked pixels have no value; give array.filled(0), or what they are to be"
    if 0 in shape:
        return "it holds no pixels"
    if array.ndim == 4:
        return "a batch; give list(array), an item for each image"
    if array.ndim not in (2, 3):
        return "give RGB [H, W, 3] or grey [H, W]"
    if array.ndim == 3 and last not in (1, 3):
        if last == 4:
            return "give array[..., :3], or the image without its transparency"
        return "give array.transpose(1, 2, 0)" if shape[0] in (1, 3) else "give RGB [H, W, 3] or grey [H, W]"
    if array.dtype == np.uint8:
        return None
    if array.dtype == bool:
        return "give array.astype('uint8') * 255"
    if array.dtype == np.uint16:
        return "give (array >> 8).astype('uint8') if it uses all 16 bits"
    if array.dtype.kind == "f":
        return "give (array * 255).round().clip(0, 255).astype('uint8') if it is from 0 to 1"
    return "give it as uint8, from 0 to 255"


def _tensor(name: str) -> str:
    return f"give {name}.cpu().numpy() of uint8 RGB [H, W, 3] (.permute(1, 2, 0) if the channels come first), in a list"


def _name(thing: object) -> str:
    kind = type(thing)
    return kind.__qualname__ if kind.__module__ in ("builtins", "numpy") else f"{kind.__module__}.{kind.__qualname__}"


def _of(thing: object, *packages: str, kinds: tuple[str, ...] = ("Tensor", "Parameter")) -> bool:
    """Whether it is of a class of these packages, whose name ends so, without importing them."""
    return any(
        base.__module__.partition(".")[0] in packages and base.__name__.endswith(kinds) for base in type(thing).__mro__
    )


def path_of(item: Item) -> str | None:
    """The path that an item is, as Python has it; None for others."""
    return os.fsdecode(item) if isinstance(item, (str, os.PathLike)) else None


def pixels_of(item: Picture, max_pixels: int) -> tuple[Outcome, npt.NDArray[np.uint8]]:
    """What an engine takes of such an item, uint8 [224, 224, 3], and its outcome: what a file of it would give.

    The pixels are of no meaning unless the outcome is `ok`.
    """
    size = PreprocessSpec().size
    try:
        if isinstance(item, Image.Image):
            if item.width * item.height > max_pixels:
                error = f"{item.width} x {item.height} pixels, more than {max_pixels}"
                raise ImageError(Status.TOO_LARGE, error, *item.size)
            with _loading:
                image = _upright(item)
        else:
            grey = item[..., 0] if item.ndim == 3 and item.shape[2] == 1 else item
            image = Image.fromarray(np.ascontiguousarray(grey)).convert("RGB")
        return Outcome(Status.OK, *image.size), fit(image, size)
    except ImageError as exc:
        return exc.outcome, np.zeros((size, size, 3), np.uint8)


def _upright(image: Image.Image) -> Image.Image:
    """In mode RGB, as the decoder gives the one of a file. Raises ImageError."""
    try:
        image.load()
        return turned(_rgb(image), _orientation(image))
    except ImageError:
        raise
    except Exception as exc:  # of a file that is read only now
        status = Status.TRUNCATED if "truncated" in str(exc).lower() else Status.CORRUPT
        raise ImageError(status, str(exc) or type(exc).__name__, *image.size) from exc


def _rgb(image: Image.Image) -> Image.Image:
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


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # a broken EXIF block says nothing about the pixels
        return 1
