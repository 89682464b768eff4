"""Pillow of our own: its Python modules once more, beside those that the embedding program sees as `PIL`.

Pillow is steered by globals: how many pixels are too many, whether half an image will do, how long a text may be, who
opens what. A library may neither change them for the program around it nor be changed by them, and several threads
decode at once, so they cannot be switched for a moment either. Here they are our own; the compiled code, which knows no
such switches, is shared. Warnings about metadata stay inside as well, so that a program that makes errors of warnings
gets the same statuses.

Images of this Pillow stay within the decoder; what leaves it is a plain `PIL.Image`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
import threading
from typing import TYPE_CHECKING, Any

import PIL
from PIL import Image as PublicImage
from PIL import _imaging

from fiqa_trt.errors import UsageError, one_line

if TYPE_CHECKING:
    from PIL.Image import Image as _Image

_NAME = "fiqa_trt._pillow"


class TooManyPixelsError(Exception):
    """A frame that Pillow is about to make room for is larger than `limit` allows."""

    def __init__(self, width: int, height: int) -> None:
        super().__init__(f"{width} x {height} pixels")
        self.size = width, height


class _Silence:
    """Stands where Pillow's modules have `warnings`."""

    @staticmethod
    def warn(*args: object, **options: object) -> None:
        pass


def _load() -> Any:
    origin = PIL.__file__
    spec = importlib.util.spec_from_file_location(_NAME, origin, submodule_search_locations=list(PIL.__path__))
    if spec is None or spec.loader is None:
        raise ImportError("its modules are not files")
    package = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = package
    spec.loader.exec_module(package)
    package._imaging = _imaging  # type: ignore[attr-defined]
    for name in ("_avif", "_webp"):
        with contextlib.suppress(ImportError):  # Pillow was built without it
            setattr(package, name, importlib.import_module(f"PIL.{name}"))
    for name in ("ImageFile", *(f"{plugin}ImagePlugin" for plugin in _PLUGINS)):
        importlib.import_module(f"{_NAME}.{name}")
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{_NAME}.") and hasattr(module, "warnings"):
            module.warnings = _Silence  # type: ignore[attr-defined]
    return package


_PLUGINS = ("Jpeg", "Png", "WebP", "Bmp", "Tiff", "Gif", "Ppm", "Avif", "Jpeg2K")
_NEEDS = {
    "JPEG": "jpeg_decoder",
    "PNG": "zip_decoder",
    "WEBP": "_webp",
    "TIFF": "libtiff_decoder",
    "AVIF": "_avif",
    "JPEG2000": "jpeg2k_decoder",
}
"""Compiled parts by format; a Pillow that was built without one has the format's plugin nevertheless."""
try:
    _package = _load()
except Exception as exc:  # whatever a Pillow that is older, or another's, or not all there makes of it
    raise UsageError(
        f"Pillow {PIL.__version__} at {PIL.__file__} cannot be used ({one_line(exc)}); "
        "pip install --force-reinstall 'pillow>=11.3'"
    ) from exc
_limits = threading.local()


def check(size: tuple[int, int], **options: object) -> None:
    """Raise TooManyPixelsError for a size beyond this thread's limit. Pillow asks here too before it makes room."""
    if size[0] * size[1] > getattr(_limits, "pixels", 0):
        raise TooManyPixelsError(*size)


_package.Image._decompression_bomb_check = check
# Nobody asks for the resolution, and to find it in EXIF a JPEG's whole block is read as it is opened.
_package.JpegImagePlugin.JpegImageFile._read_dpi_from_exif = lambda image: None

Image: Any = _package.Image
VERSION = tuple(int(part) for part in PIL.__version__.split(".")[:2])
PLUGINS: dict[str, Any] = {
    plugin.format: plugin
    for plugin in (getattr(getattr(_package, f"{name}ImagePlugin"), f"{name}ImageFile") for name in _PLUGINS)
    if any(hasattr(compiled, _NEEDS.get(plugin.format, "new")) for compiled in (_imaging, _package))
}
"""Format to the class that reads it, of those that this Pillow can read."""


def limit(pixels: int) -> None:
    """Let this thread make room for no more than so many pixels a frame."""
    _limits.pixels = pixels


def public(image: Any) -> _Image:
    """The same pixels, not copied, as an image of the program's Pillow."""
    return PublicImage.new("RGB", (1, 1))._new(image.im)
