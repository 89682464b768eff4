"""Files without what their pixels do not need, so that nothing in it can harm them.

Profiles, texts, thumbnails and animations are written by everything that touches a file, and broken by some of it. What
is kept is what a decoder needs for the pixels; the EXIF block is handed over apart, for the orientation in it.
"""

from __future__ import annotations

import binascii
import dataclasses
import re
import zlib

from fiqa_trt.decoding.tiff import without_metadata

_RAW_PROFILE = b"Raw profile type exif"
_MOST_TEXT = 4 << 20
_TRANSPARENCY = {0: range(2, 3), 2: range(6, 7), 3: range(1, 257)}  # bytes of it by colour type
_WEBP_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")


@dataclasses.dataclass(frozen=True)
class Bare:
    """An image file with nothing but its pixels.

    Attributes:
        data: the file.
        exif: the EXIF block of the original, as it stood there; None without one.
    """

    data: bytes
    exif: bytes | None = None


def bare(name: str, data: bytes) -> Bare | None:
    """A file without its metadata, from the name of its format; None if that makes no difference or is not known."""
    strip = _STRIPPERS.get(name)
    found = strip(data) if strip else None
    return None if found is None or found.data == data else found


def bare_png(data: bytes) -> Bare:
    """A PNG's critical chunks and its transparency. What is behind a chunk that does not end stays as it is."""
    kept, exif, colours, began = [data[:8]], None, 0, False
    at = 8
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 12 + length
        critical = kind[0] & 0x20 == 0
        if not kind.isalpha() or (end > len(data) and critical):
            kept.append(data[at:])
            break
        if kind == b"IHDR" and length >= 13:
            colours = data[at + 17]
        fits = length in _TRANSPARENCY.get(colours, ()) and _sound(data, at, end)
        if kind in (b"IHDR", b"IDAT", b"IEND") or (not began and (critical or (kind == b"tRNS" and fits))):
            kept.append(data[at:end])
        elif kind == b"eXIf":
            exif = data[at + 8 : end - 4]
        elif exif is None and kind in (b"tEXt", b"zTXt") and data.startswith(_RAW_PROFILE + b"\0", at + 8):
            exif = _raw_profile(data[at + 9 + len(_RAW_PROFILE) : end - 4], compressed=kind == b"zTXt")
        began = began or kind == b"IDAT"
        if kind == b"IEND":
            break
        at = end
    return Bare(b"".join(kept), exif)


def _sound(data: bytes, at: int, end: int) -> bool:
    return zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")


def _raw_profile(text: bytes, *, compressed: bool) -> bytes | None:
    """EXIF as ImageMagick keeps it in a PNG: lines with a name and a length, then hexadecimal digits."""
    try:
        if compressed:
            text = zlib.decompressobj().decompress(text[1:], _MOST_TEXT)
        return binascii.unhexlify(re.sub(rb"\s", b"", b"".join(text.split(b"\n")[3:])))
    except (zlib.error, ValueError):
        return None


def _bare_jpeg(data: bytes) -> Bare | None:
    """A JPEG without application segments and comments, but for those that tell the colours."""
    kept, exif, at = [data[:2]], b"", 2
    while True:
        marker = re.compile(rb"\xff+([^\x00\xff])").match(data, at)
        if marker is None:
            return None
        kind, start = marker[1][0], marker.end()
        if kind == 0xD8:  # twice the start
            at = start
            continue
        length = int.from_bytes(data[start : start + 2], "big")
        body = data[start + 2 : start + length]
        if kind == 0xDA:
            kept.append(data[at:])
            return Bare(b"".join(kept), exif or None)
        if length < 2 or len(body) < length - 2:
            return None
        colours = (kind == 0xE0 and body.startswith(b"JFIF\0") and length >= 16) or (
            kind == 0xEE and body.startswith(b"Adobe") and length >= 14
        )
        if colours or not (0xE0 <= kind <= 0xEF or kind == 0xFE):
            kept.append(data[marker.start() : start + length])
        elif kind == 0xE1 and body.startswith(b"Exif\0\0"):
            exif += body[6:]
        at = start + length


def _bare_webp(data: bytes) -> Bare | None:
    kept, exif, at = list[bytes](), None, 12
    while at + 8 <= len(data):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        end = at + 8 + length + length % 2
        body = data[at + 8 : at + 8 + length]
        if kind == b"VP8X" and len(body) >= 10:
            # Of what it announces only transparency and animation are kept.
            kept.append(data[at : at + 8] + bytes([body[0] & 0x12]) + body[1:] + b"\0" * (length % 2))
        elif kind in _WEBP_PIXELS:
            if len(body) < length:
                return None
            kept.append(data[at : at + 8] + body + b"\0" * (length % 2))
        elif kind == b"EXIF":
            exif = body
        at = end
    chunks = b"".join(kept)
    return Bare(b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WEBP" + chunks, exif)


def _bare_tiff(data: bytes) -> Bare | None:
    found = without_metadata(data)
    return None if found is None else Bare(found)


_STRIPPERS = {"JPEG": _bare_jpeg, "PNG": bare_png, "WEBP": _bare_webp, "TIFF": _bare_tiff}
