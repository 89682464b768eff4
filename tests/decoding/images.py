"""Image files built byte by byte, of kinds that Pillow does not write; their pixels are known by construction."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fiqa_trt.decoding.cpu import CpuDecoder, decode_image
from fiqa_trt.outcomes import Outcome

Levels = npt.NDArray[np.int64]
REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
_LETTERS = {1: "B", 3: "H", 4: "L", 5: "LL"}


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def outcome(data: bytes) -> Outcome:
    (found,) = CpuDecoder().decode([data], 1).outcomes
    return found


def pixels(data: bytes) -> Levels:
    return np.asarray(decode_image(data)).astype(int)


def pack(levels: Levels, bits: int, order: str) -> bytes:
    """Rows of samples, each row from a byte of its own: [height, samples of a row]."""
    if bits in (8, 16, 32):
        return levels.astype(f"{order}u{bits // 8}").tobytes()
    shifts = np.arange(bits - 1, -1, -1)
    return np.packbits((levels[..., None] >> shifts & 1).reshape(len(levels), -1).astype(np.uint8), axis=1).tobytes()


def tiff(
    samples: Levels,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    planar: bool = False,
    reverse: bool = False,
    compression: int = 1,
    tags: dict[int, tuple[int, Sequence[int]]] | None = None,
) -> bytes:
    """A TIFF of one strip for each plane.

    Args:
        samples: [height, width, samples].
        bits: of a sample.
        photometric: what the samples mean.
        order: `<` or `>`.
        planar: one plane after the other.
        reverse: the first pixel in the lowest bits.
        compression: 1 none, 8 Deflate.
        tags: more of them, as type and values; or instead of those that follow from the rest.
    """
    height, width, count = samples.shape
    planes = [samples[..., n] for n in range(count)] if planar else [samples.reshape(height, -1)]
    strips = [pack(plane, bits, order) for plane in planes]
    strips = [zlib.compress(strip) if compression == 8 else strip for strip in strips]
    strips = [strip.translate(REVERSED) if reverse else strip for strip in strips]
    entries: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [bits] * count),
        259: (3, [compression]),
        262: (3, [photometric]),
        266: (3, [2 if reverse else 1]),
        277: (3, [count]),
        278: (4, [height]),
        279: (4, [len(strip) for strip in strips]),
        284: (3, [2 if planar else 1]),
        **(tags or {}),
        273: (4, [0] * len(strips)),
    }
    start = 8 + 2 + 12 * len(entries) + 4
    room = sum(
        size for kind, values in entries.values() if (size := struct.calcsize("<" + _LETTERS[kind]) * len(values)) > 4
    )
    places = np.cumsum([start + room, *(len(strip) for strip in strips)])[:-1]
    entries[273] = (4, [int(place) for place in places])
    directory, more = struct.pack(order + "H", len(entries)), b""
    for tag in sorted(entries):
        kind, values = entries[tag]
        raw = struct.pack(order + _LETTERS[kind][0] * len(values), *values)
        number = len(values) // len(_LETTERS[kind])
        place = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack(order + "L", start + len(more))
        more += raw if len(raw) > 4 else b""
        directory += struct.pack(order + "HHL", tag, kind, number) + place
    head = (b"II" if order == "<" else b"MM") + struct.pack(order + "HL", 42, 8)
    return head + directory + struct.pack(order + "L", 0) + more + b"".join(strips)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(samples: Levels, bits: int, colours: int, *, before: bytes = b"") -> bytes:
    """A PNG of [height, width, samples], with chunks before its pixels."""
    height, width, _ = samples.shape
    size = len(pack(samples[:1].reshape(1, -1), bits, ">"))
    raw = pack(samples.reshape(height, -1), bits, ">")
    rows = b"".join(b"\0" + raw[at : at + size] for at in range(0, len(raw), size))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + before + end


def bmp(
    width: int,
    height: int,
    bits: int,
    data: bytes,
    *,
    header: int = 40,
    compression: int = 0,
    more: bytes = b"",
    colours: int = 0,
) -> bytes:
    """A BMP; `more` are masks, or the rest of a longer header, and the palette."""
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, compression, len(data), 2835, 2835, colours, 0)
    return b"BM" + struct.pack("<IHHI", 14 + len(head + more + data), 0, 0, 14 + len(head + more)) + head + more + data


def segment(marker: int, body: bytes) -> bytes:
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def over_white(colours: npt.NDArray[Any], alpha: npt.NDArray[Any]) -> Levels:
    """Levels [h, w, 3] with an alpha of 0 to 255 over white, rounded."""
    return np.asarray(np.rint(colours * (alpha / 255)[..., None] + 255 - alpha[..., None]).astype(int))


def grey(levels: Levels) -> Levels:
    """[h, w] as RGB."""
    return np.repeat(levels[..., None], 3, 2)
