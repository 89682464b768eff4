"""Whether a file is whole and plain, from its structure alone: what may be handed to a decoder that forgives too much.

Nothing is decoded. The checks are those that libjpeg-turbo, libpng and libwebp make before and between the compressed
data; a file that fails one is not necessarily damaged, but then the CPU decoder is the one to tell.
"""

from __future__ import annotations

import functools
import re
import zlib

from fiqa_trt.decoding.tiff import orientation_is_plain

_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE = 0xC0, 0xC1, 0xC2
_DHT, _EOI, _SOS, _DQT, _DRI, _APP1, _APP14, _COM = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xEE, 0xFE
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])", re.DOTALL)
# The same to a search, which takes the last \xff of several. Python looks quickly for its first byte.
_NEXT_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_TAIL = 64  # bytes that may follow the end of a JPEG


def dimensions(data: bytes) -> tuple[int, int] | None:
    """Width and height of a whole JPEG, PNG or WebP of a plain kind, as its header has them; None for all others.

    Plain: grey or RGB with 8 bits, without transparency, and with the end that the format prescribes.
    """
    try:
        if data.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return _png(data)
        if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
            return _webp(data)
    except IndexError:  # a segment that is shorter than it has to be
        pass
    return None


def _jpeg(data: bytes) -> tuple[int, int] | None:
    size: tuple[int, int] | None = None
    frame = b""
    quantisers, coders = set[int](), set[int]()
    scanned = set[int]()
    scans, at, turned = 0, 2, False
    while True:
        # Before the first scan markers follow each other; after it the compressed data lies between them.
        marker = _NEXT_MARKER.search(data, at) if scans else _MARKER.match(data, at)
        if marker is None:
            return None
        kind, at = marker[1][0], marker.end()
        if kind == _EOI:
            return size if scans and len(data) - at <= _TAIL else None
        length = int.from_bytes(data[at : at + 2], "big")
        body = data[at + 2 : at + length]
        if length < 2 or len(body) < length - 2:
            return None
        at += length
        if kind in (_SOF_BASELINE, _SOF_EXTENDED, _SOF_PROGRESSIVE) and size is None:
            size, frame = _frame(body, kind)
            if size is None:
                return None
        elif kind == _DQT:
            found = _quantisers(body)
            if found is None:
                return None
            quantisers |= found
        elif kind == _DHT:
            tables = _coders(body)
            if tables is None:
                return None
            coders |= tables
        elif kind == _SOS:
            if size is None or not _scan(body, frame, quantisers, coders):
                return None
            parts = body[1 : 1 + 2 * body[0] : 2]
            if len(set(parts)) < len(parts) or (frame[0] != _SOF_PROGRESSIVE and scanned & set(parts)):
                return None
            scanned |= set(parts)
            scans += 1
        elif kind == _APP14 and body.startswith(b"Adobe"):
            if len(body) < 12 or body[11] == 0:
                return None  # RGB or CMYK that its components do not tell
        elif kind == _APP1 and body.startswith(b"Exif\0\0"):
            if turned or not orientation_is_plain(body[6:]):
                return None
            turned = True
        elif not (kind in (_DRI, _COM) or 0xE0 <= kind <= 0xEF):
            return None


# What one program writes for crops of one size is always the same.
@functools.lru_cache(256)
def _frame(body: bytes, kind: int) -> tuple[tuple[int, int] | None, bytes]:
    """Width and height, and per component four bytes: the kind of frame, its name, its sampling, its quantiser."""
    height, width, count = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big"), body[5]
    components = [body[start : start + 3] for start in range(6, len(body), 3)]
    names = bytes(component[0] for component in components)
    sampling = all(1 <= part[1] >> 4 <= 4 and 1 <= part[1] & 15 <= 4 for part in components)
    if body[0] != 8 or count not in (1, 3) or len(body) != 6 + 3 * count or not sampling:
        return None, b""
    if names == b"RGB" or len(set(names)) < count or not width or not height:
        return None, b""
    return (width, height), b"".join(bytes([kind]) + component for component in components)


@functools.lru_cache(256)
def _quantisers(body: bytes) -> frozenset[int] | None:
    """Number of each quantiser of a segment; None if one is impossible."""
    found, at = set[int](), 0
    while at < len(body):
        precision, number = body[at] >> 4, body[at] & 15
        if precision > 1 or number > 3:
            return None
        found.add(number)
        at += 1 + 64 * (precision + 1)
    return frozenset(found) if at == len(body) else None


@functools.lru_cache(256)
def _coders(body: bytes) -> frozenset[int] | None:
    """Class and number of each Huffman table of a segment; None if one is impossible."""
    found, at = set[int](), 0
    while at < len(body):
        kind, number = body[at] >> 4, body[at] & 15
        counts = body[at + 1 : at + 17]
        total = sum(counts)
        symbols = body[at + 17 : at + 17 + total]
        code = 0
        for length, count in enumerate(counts, 1):
            code = 2 * code + count
            if code > 1 << length:
                return None
        if kind > 1 or number > 3 or total > 256 or len(symbols) < total:
            return None
        if kind == 0 and any(symbol > 15 for symbol in symbols):
            return None
        found.add(body[at])
        at += 17 + total
    return frozenset(found)


def _scan(body: bytes, frame: bytes, quantisers: set[int], coders: set[int]) -> bool:
    """Whether a scan's header names what there is."""
    count = body[0]
    components = {frame[start + 1]: frame[start + 3] for start in range(0, len(frame), 4)}
    if not 1 <= count <= len(components) or len(body) != 4 + 2 * count:
        return False
    first, last, approximation = body[-3:]
    progressive = frame[0] == _SOF_PROGRESSIVE
    if progressive:
        high, low = approximation >> 4, approximation & 15
        steps = high in (0, low + 1) and low <= 13
        if not (first <= last <= 63 and steps and (last == 0 if first == 0 else count == 1)):
            return False
    elif (first, last, approximation) != (0, 63, 0):
        return False
    for start in range(1, 1 + 2 * count, 2):
        name, tables = body[start], body[start + 1]
        if components.get(name) not in quantisers:
            return False
        needs_dc = not progressive or (first == 0 and approximation >> 4 == 0)
        needs_ac = not progressive or first > 0
        if (needs_dc and tables >> 4 not in coders) or (needs_ac and 0x10 | tables & 15 not in coders):
            return False
    return True


def _png(data: bytes) -> tuple[int, int] | None:
    size, at, palette, pixels = None, 8, False, False
    colours = 0
    while True:
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + length]
        if data[at + 8 + length : at + 12 + length] != zlib.crc32(body, zlib.crc32(kind)).to_bytes(4, "big"):
            return None
        if (kind == b"IHDR") != (at == 8):
            return None
        if kind == b"IHDR":
            size, colours = (int.from_bytes(body[:4], "big"), int.from_bytes(body[4:8], "big")), body[9]
            if body[8] != 8 or colours not in (0, 2, 3) or body[10] or body[11] or body[12] > 1 or 0 in size:
                return None
        elif kind in (b"tRNS", b"eXIf", b"acTL") or body.startswith(b"Raw profile type exif\0"):
            return None
        elif kind == b"PLTE":
            palette = True
        elif kind == b"IDAT":
            pixels = True
        elif kind == b"IEND":
            return size if pixels and (palette or colours != 3) else None
        elif kind[0] & 0x20 == 0:
            return None  # nobody knows what it does to the pixels
        at += 12 + length


def _webp(data: bytes) -> tuple[int, int] | None:
    # Some readers stop where the chunk does, others where the file does.
    room, length = (int.from_bytes(data[at : at + 4], "little") for at in (4, 16))
    if not len(data) == 8 + room == 20 + length + length % 2 or len(data) < 30:
        return None
    if data[12:16] == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[n : n + 2], "little") & 0x3FFF for n in (26, 28))
        return (width, height) if width and height else None
    if data[12:16] == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return None if bits >> 28 & 1 else ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    return None
