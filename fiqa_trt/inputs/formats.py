"""Formats of image files: how they are named, how they begin, and which of them are decoded."""

from __future__ import annotations

import dataclasses
import re


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
    Format(
        "TIFF",
        (".tif", ".tiff"),
        tuple((0, start) for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"II\0*", b"MM*\0")),
    ),
    Format("GIF", (".gif",), ((0, b"GIF87a"), (0, b"GIF89a"))),
    Format(
        "PPM",
        (".ppm", ".pgm", ".pbm", ".pnm"),
        tuple((0, b"P%d" % number + after) for number in range(1, 7) for after in (b" ", b"\n", b"\r", b"\t", b"#")),
    ),
    Format("AVIF", (".avif",), ((4, b"ftypavif"), (4, b"ftypavis"))),
    Format(
        "JPEG2000", (".jp2", ".j2k", ".jpf", ".jpx", ".j2c", ".jpc"), ((0, b"\0\0\0\x0cjP  "), (0, b"\xff\x4f\xff\x51"))
    ),
)
SUFFIXES = tuple(suffix for each in DECODED for suffix in each.suffixes)

_BY_NAME = {each.name: each for each in DECODED}

# Whole images as a rule, but of formats that are not decoded: who deletes what is no image must not lose them.
_OTHERS: tuple[tuple[str, int, bytes], ...] = (
    ("Photoshop", 0, b"8BPS"),
    ("ICO", 0, b"\0\0\1\0"),
    ("CUR", 0, b"\0\0\2\0"),
    ("PostScript", 0, b"%!PS"),
    ("PostScript", 0, b"\xc5\xd0\xd3\xc6"),
    ("PDF", 0, b"%PDF-"),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("JPEG XL", 0, b"\0\0\0\x0cJXL "),
    ("JPEG XR", 0, b"II\xbc"),
    ("JPEG XS", 0, b"\xff\x10\xff\x50"),
    ("HEIF", 4, b"ftyphei"),
    ("HEIF", 4, b"ftyphev"),
    ("HEIF", 4, b"ftypmif"),
    ("HEIF", 4, b"ftypmsf"),
    ("ISO media", 4, b"ftyp"),
    ("DICOM", 128, b"DICM"),
    ("QOI", 0, b"qoif"),
    ("DDS", 0, b"DDS "),
    ("OpenEXR", 0, b"\x76\x2f\x31\x01"),
    ("Radiance HDR", 0, b"#?RADIANCE"),
    ("Radiance HDR", 0, b"#?RGBE"),
    ("PFM", 0, b"PF\n"),
    ("PFM", 0, b"Pf\n"),
    ("PFM", 0, b"PF "),
    ("PFM", 0, b"Pf "),
    ("PAM", 0, b"P7\n"),
    ("PAM", 0, b"P7 "),
    ("JBIG2", 0, b"\x97JB2\r\n\x1a\n"),
    ("JNG", 0, b"\x8bJNG"),
    ("MNG", 0, b"\x8aMNG"),
    ("WMF", 0, b"\xd7\xcd\xc6\x9a"),
    ("EMF", 40, b" EMF"),
    ("SGI", 0, b"\x01\xda\0"),
    ("SGI", 0, b"\x01\xda\1"),
    ("Sun raster", 0, b"\x59\xa6\x6a\x95"),
    ("FITS", 0, b"SIMPLE  ="),
    ("XPM", 0, b"/* XPM */"),
    ("XCF", 0, b"gimp xcf"),
    ("BPG", 0, b"BPG\xfb"),
    ("FLIF", 0, b"FLIF"),
    ("DjVu", 0, b"AT&TFORM"),
    ("ICNS", 0, b"icns"),
    ("BLP", 0, b"BLP1"),
    ("BLP", 0, b"BLP2"),
    ("KTX", 0, b"\xabKTX "),
    ("DPX", 0, b"SDPX"),
    ("DPX", 0, b"XPDS"),
    ("Cineon", 0, b"\x80\x2a\x5f\xd7"),
    ("farbfeld", 0, b"farbfeld"),
    ("MIFF", 0, b"id=ImageMagick"),
    ("MIFF", 0, b"Id=ImageMagick"),
    ("FujiFilm raw", 0, b"FUJIFILMCCD-RAW"),
    ("Olympus raw", 0, b"IIRO"),
    ("Olympus raw", 0, b"IIRS"),
    ("Olympus raw", 0, b"MMOR"),
    ("Panasonic raw", 0, b"IIU\0"),
    ("Canon raw", 6, b"HEAPCCDR"),
    ("Sigma raw", 0, b"FOVb"),
    ("Minolta raw", 0, b"\0MRM"),
    ("Windows cursor", 8, b"ACON"),
    ("DCX", 0, b"\xb1\x68\xde\x3a"),
    ("FLI", 4, b"\x11\xaf"),
    ("FLC", 4, b"\x12\xaf"),
    ("FTEX", 0, b"FTEX"),
    ("FTEX", 0, b"FTC\0"),
    ("GIMP brush", 20, b"GIMP"),
    ("IM", 0, b"Image type: "),
    ("McIDAS", 0, b"\0\0\0\0\0\0\0\4"),
    ("MSP", 0, b"DanM"),
    ("MSP", 0, b"LinS"),
    ("Photo CD", 2048, b"PCD_"),
    ("Pixar", 0, b"\x80\xe8\0\0"),
)
# What begins these formats begins words as well. No text has the zeros of a BMP's header, and few have the sizes that
# Netpbm's begins with.
_GAP = rb"(?:\s|#[^\r\n]*(?:[\r\n]|\Z))+"
_PLAUSIBLE = {
    "BMP": re.compile(rb".{2,17}\0", re.S),
    "PPM": re.compile(rb"P\d%s(?:\Z|-?\d+(?:\Z|%s(?:\Z|-?\d+(?:\s|#|\Z))))" % (_GAP, _GAP)),
}
_SVG = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml.*?\?>\s*|<!--.*?-->\s*|<!DOCTYPE\s+svg.*?>\s*)*<(?:\w+:)?svg[\s>]", re.S | re.I
)
_TGA_TYPES = {1: (8, 15, 16), 2: (15, 16, 24, 32), 3: (1, 8, 16), 9: (8, 15, 16), 10: (15, 16, 24, 32), 11: (1, 8, 16)}


def find_format(data: bytes) -> Format | None:
    """The format that a file begins like, from its header; None for all that are not decoded."""
    for each in DECODED:
        if any(data.startswith(start, at) for at, start in each.starts):
            header = _PLAUSIBLE.get(each.name)
            return each if header is None or header.match(data) else None
    # A brand that says nothing but "an image in this container"; those behind it name the codec.
    if data[4:12] in (b"ftypmif1", b"ftypmsf1"):
        brands = data[16 : int.from_bytes(data[:4], "big")]
        if any(brands[at : at + 4] in (b"avif", b"avis") for at in range(0, len(brands), 4)):
            return _BY_NAME["AVIF"]
    return None


def find_other(data: bytes) -> str | None:
    """Name of the format of an image that is not decoded; None if it is not known to be an image at all."""
    for name, at, start in _OTHERS:
        if data.startswith(start, at):
            return name
    if _SVG.match(data[:4096]):
        return "SVG"
    if re.match(rb"#define\s+\w+\s+\d+\s+#define", data):
        return "XBM"
    if data[1:4] == b"\0\0\0" and data[0] in (12, 40, 108, 124) and data[8 if data[0] == 12 else 12] == 1:
        return "DIB"
    if _is_pcx(data):
        return "PCX"
    if data[-18:] == b"TRUEVISION-XFILE.\0" or _is_tga(data):
        return "TGA"
    return None


def _is_pcx(data: bytes) -> bool:
    left, top, right, bottom = (int.from_bytes(data[at : at + 2], "little") for at in (4, 6, 8, 10))
    return (
        len(data) > 128
        and data[0] == 10
        and data[1] in (0, 2, 3, 4, 5)
        and data[2] <= 1
        and data[3] in (1, 2, 4, 8)
        and left <= right
        and top <= bottom
    )


def _is_tga(data: bytes) -> bool:
    """TGA has no magic: a header that is possible in all its fields, and room for what it promises."""
    if len(data) < 18 or data[1] > 1 or data[16] not in _TGA_TYPES.get(data[2], ()):
        return False
    mapped, kind, depth = data[1], data[2], data[16]
    width, height, colours = (int.from_bytes(data[at : at + 2], "little") for at in (12, 14, 5))
    if not width or not height or mapped != (kind in (1, 9)):
        return False
    if mapped and (data[7] not in (8, 15, 16, 24, 32) or not colours):
        return False
    if not mapped and any(data[3:8]):
        return False
    room = len(data) - 18 - data[0] - mapped * colours * ((data[7] + 7) // 8)
    pixels = width * height * ((depth + 7) // 8)
    return room >= (pixels if kind < 8 else height)
