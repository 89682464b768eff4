"""What kind of JPEG 2000 a file is, by its boxes and the head of its code stream; which kinds are decoded rightly."""

from __future__ import annotations

import struct
from collections.abc import Iterator

_STREAM = b"\xff\x4f\xff\x51"
_END = b"\xff\xd9"
_COLOURS = {12: (4,), 16: (3, 4), 17: (1, 2), 18: (3, 4)}
"""Components by enumerated colour space: CMYK, sRGB, grey, sYCC."""


def unsupported(data: bytes) -> str | None:
    """Why a file is of a kind that Pillow does not decode, or decodes wrongly; None if not, or if it is damaged.

    What passes was compared with OpenJPEG's own decoder, by way of imagecodecs.
    """
    try:
        stream, colours, palette = 0, None, False
        channels = tuple[tuple[int, int, int], ...]()
        if not data.startswith(_STREAM):
            header = _first_boxes(data, 0, len(data))
            stream = header[b"jp2c"][0]
            inner = _first_boxes(data, *header[b"jp2h"])
            colours, channels, palette = _colours(data, inner), _channels(data, inner), b"pclr" in inner
        if not data.startswith(_STREAM, stream):
            return None
        (count,) = struct.unpack_from(">H", data, stream + 40)
        parts = [data[stream + 42 + 3 * n : stream + 45 + 3 * n] for n in range(count)]
    except (KeyError, struct.error):
        return None
    depths = {(part[0] & 0x7F) + 1 for part in parts}
    what = f"a JPEG 2000 of {count} x {', '.join(map(str, sorted(depths)))} bits"
    if palette:
        return "a JPEG 2000 with a palette"
    if any(part[1:] != b"\1\1" for part in parts):
        return "a JPEG 2000 with components of different resolution"
    if len(depths) != 1 or not 8 <= max(depths) <= 16 or (max(depths) > 8 and count > 1):
        return what
    if channels not in ((), tuple((n, 0, n + 1) for n in range(count)), _with_alpha(count)):
        return what + " with channels out of order"
    # A bare code stream and a colour profile tell nothing but the number of components.
    if count not in ((1, 3) if colours is None else _COLOURS.get(colours, ())):
        return what + (f" in colour space {colours}" if colours else " without a colour space")
    return None


def ends_early(data: bytes) -> bool:
    """Whether the code stream lacks its end."""
    if data.startswith(_STREAM):
        return _END not in data[-64:]
    try:
        for kind, (start, end) in _boxes(data, 0, len(data)):
            if kind == b"jp2c":
                return end > len(data) or _END not in data[start:end][-64:]
    except struct.error:
        pass
    return True


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, tuple[int, int]]]:
    """Kind of each box, and where its content begins and is said to end."""
    while at + 8 <= end:
        length, kind = struct.unpack_from(">L4s", data, at)
        start = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, start)
            start += 8
        stop = end if length == 0 else at + length
        yield kind, (start, stop)
        if stop <= at:
            return
        at = stop


def _first_boxes(data: bytes, at: int, end: int) -> dict[bytes, tuple[int, int]]:
    found = dict[bytes, tuple[int, int]]()
    for kind, place in _boxes(data, at, end):
        found.setdefault(kind, place)
    return found


def _colours(data: bytes, boxes: dict[bytes, tuple[int, int]]) -> int | None:
    """Number of the enumerated colour space; None if there is a profile instead, or nothing."""
    start, _ = boxes[b"colr"]
    return int(struct.unpack_from(">L", data, start + 3)[0]) if data[start] == 1 else None


def _channels(data: bytes, boxes: dict[bytes, tuple[int, int]]) -> tuple[tuple[int, int, int], ...]:
    """Component, kind (0 colour, 1 alpha) and colour of each channel; empty where the file leaves it at the order."""
    if b"cdef" not in boxes:
        return ()
    start, _ = boxes[b"cdef"]
    (count,) = struct.unpack_from(">H", data, start)
    return tuple(sorted(struct.unpack_from(">HHH", data, start + 2 + 6 * n) for n in range(count)))


def _with_alpha(count: int) -> tuple[tuple[int, int, int], ...]:
    return (*((n, 0, n + 1) for n in range(count - 1)), (count - 1, 1, 0))
