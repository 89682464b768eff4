"""What the header of a file tells before it is decoded: that its kind is not, that it is cut, how large it will be."""

from __future__ import annotations

import re

from fiqa_trt.decoding import jpeg2000, pillow, tiff

_NOT_FRAMES = (0xC4, 0xC8, 0xCC)
_FRAMES = (0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA)
"""Baseline, extended, progressive and lossless with Huffman's codes; extended and progressive with arithmetic ones."""
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)
_BMP_MASKS = {
    16: [(0xF800, 0x7E0, 0x1F, 0), (0x7C00, 0x3E0, 0x1F, 0)],
    24: [(0xFF0000, 0xFF00, 0xFF, 0)],
    32: [
        (0xFF0000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0),
        (0xFF000000, 0xFF00, 0xFF, 0),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF),
        (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF0000, 0xFF00, 0xFF, 0xFF000000),
        (0xFF000000, 0xFF00, 0xFF, 0xFF0000),
    ],
}


def unsupported(name: str, data: bytes) -> str | None:
    """Why a file of a format that is decoded is nevertheless of a kind that is not; None if it may well be.

    A JPEG is asked after it failed alone: there is none that is decoded wrongly, and most files are JPEGs.
    """
    try:
        if name == "PNG":
            return _png(data)
        if name == "BMP":
            return _bmp(data)
        if name == "TIFF":
            return tiff.unsupported(data)
        if name == "JPEG2000":
            return jpeg2000.unsupported(data)
    except IndexError:  # ends before it could tell
        pass
    return None


def unsupported_as_it_failed(name: str, data: bytes, *, opened: bool) -> str | None:
    """The same of a file that could not be opened, or that was opened and could not be decoded."""
    try:
        if name == "JPEG":
            return _jpeg(data)
        if name == "TIFF":
            return tiff.unsupported_as_it_failed(data, opened=opened)
    except IndexError:
        pass
    return None


def incomplete(name: str, data: bytes) -> bool:
    """Whether a file lacks an end without which Pillow may take it for another, or for whole."""
    if name == "TIFF":
        return tiff.header_ends_early(data)
    return name == "JPEG2000" and jpeg2000.ends_early(data)


def ends_early(name: str, data: bytes) -> bool:
    """Whether a file lacks the end that its format prescribes."""
    if name == "JPEG":
        return b"\xff\xd9" not in data[-64:]
    if name == "PNG":
        return b"IEND" not in data[-64:]
    if name == "GIF":
        return b";" not in data[-8:]
    if name == "WEBP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if name == "BMP":
        return len(data) < int.from_bytes(data[2:6], "little")
    if name == "PPM":
        return len(re.sub(rb"#[^\r\n]*", b"", data).split(maxsplit=4)) < (3 if data[:2] in (b"P1", b"P4") else 4)
    if name == "JPEG2000":
        return jpeg2000.ends_early(data)
    if name == "TIFF":
        return tiff.ends_early(data)
    return False


def announced_size(name: str, data: bytes) -> tuple[int, int] | None:
    """Width and height by the header of a format whose reader makes room as soon as it opens a file, or of which many
    kinds are not even opened.
    """
    if name == "TIFF":
        return tiff.announced_size(data)
    if name == "GIF" and len(data) >= 10:
        return int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
    if name == "WEBP" and len(data) >= 30:
        if data[12:16] == b"VP8X":
            return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
        if data[12:16] == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def _jpeg(data: bytes) -> str | None:
    at = 2
    while (marker := _MARKER.search(data, at)) is not None:
        kind, at = marker[1][0], marker.end()
        if kind in (0xD8, 0x01) or 0xD0 <= kind <= 0xD7:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        if kind == 0xF7:
            return "JPEG-LS"
        if kind == 0xDE:
            return "a hierarchical JPEG"
        if 0xC0 <= kind <= 0xCF and kind not in _NOT_FRAMES:
            bits, height, layers = data[at + 2], int.from_bytes(data[at + 3 : at + 5], "big"), data[at + 7]
            if kind not in _FRAMES:
                return "a hierarchical or arithmetically coded lossless JPEG"
            if bits != 8:
                return f"a JPEG of {bits} bits"
            if layers not in (1, 3, 4):
                return f"a JPEG of {layers} components"
            if height == 0:
                return "a JPEG whose height is told behind its pixels"
            return None
        if kind in (0xD9, 0xDA) or length < 2:
            return None
        at += length
    return None


def _png(data: bytes) -> str | None:
    if data[12:16] != b"IHDR":
        return "a PNG as iPhone applications have it (CgBI)" if data[12:16] == b"CgBI" else None
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind.isalpha() and kind[0] & 0x20 == 0 and kind not in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            return f"a PNG with a part {kind.decode()} that it cannot be read without"
        if kind == b"IDAT":
            break
        at += 12 + length
    return None


def _bmp(data: bytes) -> str | None:
    header = int.from_bytes(data[14:18], "little")
    if header not in _BMP_HEADERS:
        return f"a BMP with a header of {header} bytes" if 12 < header <= 64 else None
    if header == 12:
        return None
    bits, kind, colours = (int.from_bytes(data[at : at + n], "little") for at, n in ((28, 2), (30, 4), (46, 4)))
    if header == 64 and kind in (3, 4):
        return "a BMP of OS/2 with Huffman or 24-bit run-length coding"
    if kind in (1, 2) and pillow.VERSION < (13, 0):
        return f"a run-length coded BMP, which Pillow {pillow.VERSION[0]} decodes wrongly,"
    if kind > 3:
        return f"a BMP with compression {kind}"
    if kind == 3:
        masks = tuple(int.from_bytes(data[at : at + 4], "little") for at in (54, 58, 62))
        masks += (int.from_bytes(data[66:70], "little") if header >= 56 else 0,)
        if masks not in _BMP_MASKS.get(bits, ()):
            return f"a BMP with {bits} bits and the masks {', '.join(f'{mask:x}' for mask in masks)}"
    if bits in (1, 2, 4, 8):
        return _bmp_palette(data, header, bits, kind, colours)
    return None


def _bmp_palette(data: bytes, header: int, bits: int, kind: int, colours: int) -> str | None:
    if bits == 2:
        return "a BMP of 2 bits"
    # Pillow takes such a palette for a sign that the pixels are levels already, of 1 or 8 bits.
    # Run-length coded ones it unpacks itself, one byte for each, and only those of 1 bit cannot be.
    count = colours or 1 << bits
    if count > 256:
        return f"a BMP with a palette of {count} colours" if count <= 65536 else None
    palette = [data[14 + header + 4 * n : 14 + header + 4 * n + 3] for n in range(count)]
    levels = (0, 255) if count == 2 else range(count)
    fits = bits == (1 if count <= 2 else 8) if kind == 0 else count > 2
    if not fits and palette == [bytes([level]) * 3 for level in levels]:
        return f"a BMP of {bits} bits with a palette of {count} grey levels"
    return None
