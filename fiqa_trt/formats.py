"""Formats of image files: how they are named, how they begin, and which of them are decoded."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Format:
    """A format that is decoded.

    Attributes:
        name: as Pillow calls it.
        suffixes: of its files; the first is what a file without one is given.
        starts: what its files begin with, at the offset given.
    """

    name: str
    suffixes: tuple[str, ...]
    starts: tuple[tuple[int, bytes], ...]


DECODED = (
    Format("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif"), ((0, b"\xff\xd8"),)),
    Format("PNG", (".png", ".apng"), ((0, b"\x89PNG"),)),
    Format("WEBP", (".webp",), ((8, b"WEBP"),)),
    Format("BMP", (".bmp", ".dib"), ((0, b"BM"),)),
    Format("TIFF", (".tif", ".tiff"), ((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+"))),
    Format("GIF", (".gif",), ((0, b"GIF8"),)),
    Format("PPM", (".ppm", ".pgm", ".pbm", ".pnm"), tuple((0, b"P%d" % number) for number in range(1, 7))),
    Format("AVIF", (".avif",), ((4, b"ftypavif"), (4, b"ftypavis"))),
    Format(
        "JPEG2000", (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), ((0, b"\0\0\0\x0cjP  "), (0, b"\xff\x4f\xff\x51"))
    ),
)
SUFFIXES = tuple(suffix for each in DECODED for suffix in each.suffixes)


def find_format(data: bytes) -> Format | None:
    """The format that a file begins like, from its first bytes; None for all that are not decoded."""
    for each in DECODED:
        if any(data.startswith(start, at) for at, start in each.starts):
            return each
    return None
