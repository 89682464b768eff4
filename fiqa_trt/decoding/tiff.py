"""What kind of TIFF a file is, by its tags; which kinds are decoded rightly; its metadata taken out."""

from __future__ import annotations

import dataclasses
import struct

from fiqa_trt.decoding import pillow

_WIDTHS = {1: "B", 3: "H", 4: "L", 6: "b", 8: "h", 9: "l", 16: "Q", 17: "q", 13: "L", 18: "Q"}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 254, 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR, _FAX3, _FAX4 = 273, 274, 277, 278, 279, 284, 292, 293
_PREDICTOR, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _OTHER_IMAGES = 317, 320, 322, 323, 324, 325, 330
_INKS, _EXTRA, _FORMAT, _JPEG_TABLES, _YCC_COEFFICIENTS, _YCC_SAMPLING, _YCC_PLACE = 332, 338, 339, 347, 529, 530, 531
_BLACK_WHITE = 532
_OLD_JPEG = range(512, 522)
_PIXEL_TAGS = {
    _SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _ORIENTATION, _SAMPLES, _ROWS,
    _STRIP_BYTES, _PLANAR, _FAX3, _FAX4, _PREDICTOR, _OTHER_IMAGES, _COLOURS, _TILE_WIDTH, _TILE_HEIGHT, _TILES,
    _TILE_BYTES, _INKS, _EXTRA, _FORMAT, _JPEG_TABLES, _YCC_COEFFICIENTS, _YCC_SAMPLING, _YCC_PLACE, _BLACK_WHITE,
    *_OLD_JPEG,
}  # fmt: skip
_MOST_VALUES = 1 << 20
_RATIO = 5
_FULL_RANGE, _BT601 = (0.0, 255.0, 128.0, 255.0, 128.0, 255.0), (0.299, 0.587, 0.114)
_RAW, _OLD, _PACKBITS = 1, 6, 32773
_FAX, _JPEGS = (2, 3, 4), (6, 7)
# LZW, Deflate (new and old number), PackBits, LZMA, Zstandard; not WebP, JPEG 2000, JPEG XL, LERC, SGI's, ThunderScan.
_OPTIONAL = (34925, 50000)
"""Compressions that a libtiff need not have been built with."""
_COMPRESSIONS = (_RAW, *_FAX, 5, *_JPEGS, 8, _PACKBITS, 32946, *_OPTIONAL)


@dataclasses.dataclass(frozen=True)
class _Entry:
    tag: int
    kind: int
    count: int
    at: int
    """Where the entry is."""
    place: int
    """Where its values are."""


@dataclasses.dataclass(frozen=True)
class Directory:
    """The first image of a file.

    Attributes:
        order: `<` or `>`.
        tags: the values of those that tell of pixels, where they are whole numbers and within the file.
        ratios: those that are fractions.
        cut: values of some of these lie beyond the end of the file.
    """

    order: str
    tags: dict[int, tuple[int, ...]]
    ratios: dict[int, tuple[float, ...]]
    cut: bool = False

    def first(self, tag: int, default: int = 0) -> int:
        """A tag's first value."""
        return self.tags.get(tag, (default,))[0]


def read_directory(data: bytes) -> Directory | None:
    """What the first directory says; None if there is none within the file."""
    found = _entries(data)
    if found is None:
        return None
    order, entries = found
    cut = False
    tags, ratios = dict[int, tuple[int, ...]](), dict[int, tuple[float, ...]]()
    for entry in entries:
        letter = _WIDTHS.get(entry.kind)
        end = entry.place + entry.count * _SIZES.get(entry.kind, 0)
        if entry.tag in tags or entry.tag not in _PIXEL_TAGS or not 0 < entry.count < _MOST_VALUES:
            continue
        cut = cut or end > len(data)
        if end > len(data):
            continue
        if entry.kind == _RATIO:
            parts = struct.unpack_from(f"{order}{2 * entry.count}L", data, entry.place)
            ratios[entry.tag] = tuple(a / b if b else 0.0 for a, b in zip(parts[::2], parts[1::2], strict=True))
        elif letter:
            tags[entry.tag] = struct.unpack_from(f"{order}{entry.count}{letter}", data, entry.place)
    return Directory(order, tags, ratios, cut)


def _entries(data: bytes) -> tuple[str, list[_Entry]] | None:
    order = "<" if data[:2] == b"II" else ">"
    big = 43 in data[2:4]
    head, count, size = ("Q", 8, 20) if big else ("L", 2, 12)
    try:
        (start,) = struct.unpack_from(order + head, data, 8 if big else 4)
        (number,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
        entries = list[_Entry]()
        for at in range(start + count, start + count + min(number, 65535) * size, size):
            tag, kind, values = struct.unpack_from(order + "HH" + head, data, at)
            place = at + (12 if big else 8)
            if values * _SIZES.get(kind, 0) > (8 if big else 4):
                (place,) = struct.unpack_from(order + head, data, place)
            entries.append(_Entry(tag, kind, values, at, place))
    except (struct.error, OverflowError):
        return None
    return order, entries


def orientation_is_plain(exif: bytes) -> bool:
    """Whether every reader of an EXIF block (without its name) takes the same orientation from it, if any."""
    found = _entries(exif)
    if found is None or exif[:4] not in (b"II*\0", b"MM\0*"):
        return False
    told = [entry for entry in found[1] if entry.tag == _ORIENTATION]
    return not told or [(entry.kind, entry.count) for entry in told] == [(3, 1)]


def overfull(data: bytes) -> bool:
    """Whether the values of the tags of the first image take more room than the file has, so that some share theirs.

    Who reads them all makes room for each.
    """
    _, entries = _entries(data) or ("", [])
    return sum(entry.count * _SIZES.get(entry.kind, 0) for entry in entries) > len(data)


def without_metadata(data: bytes) -> bytes | None:
    """The file with the number 1 in every tag of its first image that its pixels do not need; None if it has none."""
    found = _entries(data)
    if found is None:
        return None
    order, entries = found
    big = 43 in data[2:4]
    one = struct.pack(order + "HQHHL", 3, 1, 1, 0, 0) if big else struct.pack(order + "HLHH", 3, 1, 1, 0)
    bare = bytearray(data)
    for entry in entries:
        if entry.tag not in _PIXEL_TAGS:
            bare[entry.at + 2 : entry.at + 2 + len(one)] = one
    return bytes(bare)


def announced_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of the first image, upright; None where the tags do not tell."""
    directory = read_directory(data)
    if directory is None or not directory.first(_WIDTH) or not directory.first(_HEIGHT):
        return None
    size = directory.first(_WIDTH), directory.first(_HEIGHT)
    return size[::-1] if directory.first(_ORIENTATION) in (5, 6, 7, 8) else size


def header_ends_early(data: bytes) -> bool:
    """Whether what the tags say of the pixels lies beyond the end of the file, in part, or is not of all pixels."""
    directory = read_directory(data)
    return directory is None or directory.cut or _strips_lack(directory)


def _strips_lack(directory: Directory) -> bool:
    """Whether there are fewer strips than the height needs; what they lack would be black."""
    first, height = directory.first, directory.first(_HEIGHT)
    rows, strips = first(_ROWS, height), len(directory.tags.get(_STRIPS, ()))
    if not rows or not strips or first(_COMPRESSION, _RAW) == _OLD:
        return False
    planes = first(_SAMPLES, 1) if first(_PLANAR, 1) == 2 else 1
    return strips < planes * -(-height // rows)


def ends_early(data: bytes) -> bool:
    """Whether the directory of the first image, or what it points to, lies beyond the end of the file."""
    directory = read_directory(data)
    if directory is None or directory.cut:
        return True
    places = [directory.tags.get(offsets, ()) for offsets in (_STRIPS, _TILES)]
    lengths = [directory.tags.get(counts, ()) for counts in (_STRIP_BYTES, _TILE_BYTES)]
    pairs = [pair for both in zip(places, lengths, strict=True) for pair in zip(*both, strict=False)]
    return any(place + length > len(data) for place, length in pairs)


def grey(data: bytes) -> tuple[int, bool]:
    """Bits of a grey pixel, and whether 0 is white."""
    directory = read_directory(data)
    if directory is None:
        return 16, False
    return directory.first(_BITS, 1), directory.first(_PHOTOMETRIC) == 0


def short_palette(data: bytes) -> bytes | None:
    """A palette whose colours were written with 8 bits instead of 16, all reds first; None for one as it should be."""
    directory = read_directory(data)
    colours = directory.tags.get(_COLOURS, ()) if directory else ()
    return bytes(colours) if colours and max(colours) < 256 else None


def extra_is_untold(data: bytes) -> bool:
    """Whether a file does not say what samples beyond the colours mean."""
    directory = read_directory(data)
    return directory is not None and _EXTRA not in directory.tags


def unsupported(data: bytes) -> str | None:
    """Why the first image of a file is of a kind that Pillow does not decode, or decodes wrongly.

    What passes was compared with tifffile and imagecodecs; everything else is refused, whatever Pillow says.
    """
    directory = read_directory(data)
    if directory is None or not directory.first(_WIDTH) or not directory.first(_HEIGHT):
        return None
    if data[8:10] == b"CR" or (directory.first(_SUBFILE) & 1 and _OTHER_IMAGES in directory.tags):
        return "a TIFF that begins with a preview of another image, as raw photographs do,"
    layout = _Layout.of(directory)
    if layout is None:
        return f"a TIFF with pixels of {', '.join(map(str, directory.tags.get(_BITS, (1,))))} bits"
    problem = layout.problem()
    return f"a TIFF with {problem}" if problem else None


def unsupported_as_it_failed(data: bytes, *, opened: bool) -> str | None:
    """Why a file that `unsupported` let pass could not be opened or decoded, if that is not the file's fault."""
    directory = read_directory(data)
    if directory is None or ends_early(data) or not directory.first(_WIDTH) or not directory.first(_HEIGHT):
        return None
    if not opened:
        return "a TIFF of a kind that this version of Pillow does not read"
    compression = directory.first(_COMPRESSION, _RAW)
    return f"a TIFF with compression {compression}" if compression in _OPTIONAL else None


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the samples of an image are stored; all of one pixel have the same number of bits."""

    order: str
    colours: int
    """Photometric interpretation: 0 and 1 grey, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr, 8 CIELab."""
    bits: int
    samples: int
    extra: tuple[int, ...]
    compression: int
    planar: bool
    reversed_bits: bool
    directory: Directory

    @classmethod
    def of(cls, directory: Directory) -> _Layout | None:
        tags, first = directory.tags, directory.first
        compression = first(_COMPRESSION, _RAW)
        colours = first(_PHOTOMETRIC, 0 if compression in _FAX else -1)
        samples = first(_SAMPLES, 3 if compression == _OLD else 1)
        bits = tags.get(_BITS, (1,))[:samples]
        if len(set(bits)) > 1 or len(bits) not in (1, samples):
            return None
        return cls(
            directory.order,
            colours,
            bits[0],
            samples,
            tags.get(_EXTRA, ()),
            compression,
            first(_PLANAR, 1) == 2,
            first(_FILL_ORDER, 1) == 2,
            directory,
        )

    def problem(self) -> str | None:
        first = self.directory.first
        if self.compression not in _COMPRESSIONS:
            return f"compression {self.compression}"
        if set(self.directory.tags.get(_FORMAT, (1,))) != {1}:
            return f"sample format {first(_FORMAT)}"
        if self.compression in _JPEGS and self.bits not in (8, 12):
            return f"JPEG compression and {self.bits} bits"
        predictor = first(_PREDICTOR, 1)
        if predictor != 1 and self.compression == _PACKBITS:
            return f"predictor {predictor} and PackBits"  # libtiff ignores it there, other programs do not
        if predictor != 1 and self.compression != _RAW and (predictor, self.bits) not in ((2, 8), (2, 16)):
            return f"predictor {predictor} and {self.bits} bits"
        judge = {
            0: self._grey,
            1: self._grey,
            2: self._rgb,
            3: self._palette,
            5: self._cmyk,
            6: self._ycc,
            8: self._lab,
        }
        known = judge.get(self.colours)
        if known and known():
            return None
        how = [f"photometric interpretation {self.colours}" if self.colours >= 0 else "no photometric interpretation"]
        how.append(f"{self.samples} x {self.bits} bits")
        how += [f"extra samples {', '.join(map(str, self.extra))}"] if self.extra else []
        how += ["separate planes"] if self.planar else []
        how += ["reversed bits"] if self.reversed_bits else []
        return ", ".join(how) + f", compression {self.compression}"

    def _grey(self) -> bool:
        black = self.colours == 1
        if self.samples == 2:
            plain = self.bits == 8 and not self.planar and not self.reversed_bits
            return plain and black and self.extra in ((0,), (1,), (2,))
        if self.samples != 1 or self.extra:
            return False
        if self.planar and self.compression == _RAW and not (black and self.bits == 8 and not self.reversed_bits):
            return False  # Pillow takes the name of a way to unpack for a list of such ways, one for each plane
        if self.bits == 1:
            return self.compression not in _JPEGS
        if self.bits == 16:
            if self.reversed_bits:
                return black and self.order == "<" and self.compression == _RAW
            return black or self.order == "<"
        if self.bits == 12:
            return black and self.order == "<" and not self.reversed_bits
        return self.bits in (2, 4, 8) and (black or not (self.reversed_bits and self.bits == 8))

    def _rgb(self) -> bool:
        if self.bits not in (8, 16) or self.compression in (*_FAX, _OLD):
            return False
        if self.reversed_bits:
            plain = self.bits == 8 and self.samples == 3 and not self.extra
            return plain and not (self.planar and self.compression == _RAW)
        if self.planar:
            if self.compression == _RAW and (self.bits == 16 or self.extra not in ((), (2,))):
                return False
            known = ((), (1,), (2,)) if pillow.VERSION < (13, 0) else ((), (0,), (1,), (2,))
            return len(self.extra) == self.samples - 3 and self.extra in known
        if self.samples == 4 and not self.extra:
            return True  # an alpha that nobody declared, as many writers leave it
        spare = self.extra[1:]
        fits = len(self.extra) == self.samples - 3 and self.samples <= (6 if self.bits == 8 else 4)
        return fits and self.extra[:1] in ((), (0,), (1,), (2,)) and not any(spare)

    def _palette(self) -> bool:
        plain = self.samples == 1 and not self.extra and not self.reversed_bits
        plain = plain and not (self.planar and self.compression == _RAW)
        full = len(self.directory.tags.get(_COLOURS, ())) == 3 << self.bits
        return plain and full and self.bits in (1, 2, 4, 8) and self.compression not in _JPEGS

    def _cmyk(self) -> bool:
        plain = self.samples == 4 and not self.extra and not self.reversed_bits and self.directory.first(_INKS, 1) == 1
        return plain and (self.bits == 8 or (self.bits == 16 and not (self.planar and self.compression == _RAW)))

    def _ycc(self) -> bool:
        if self.samples != 3 or self.bits != 8 or self.extra or self.planar or self.reversed_bits:
            return False
        if self.compression != _RAW:
            return True
        if pillow.VERSION < (13, 0):
            return False
        # Pillow converts these itself, as JPEG has them; compressed ones are libtiff's, which knows all others too.
        tags, first, ratios = self.directory.tags, self.directory.first, self.directory.ratios
        if ratios.get(_BLACK_WHITE, _FULL_RANGE) != _FULL_RANGE or ratios.get(_YCC_COEFFICIENTS, _BT601) != _BT601:
            return False
        whole = first(_WIDTH) * first(_HEIGHT) * 3
        return tags.get(_YCC_SAMPLING, (1, 1)) == (1, 1) and sum(tags.get(_STRIP_BYTES, (whole,))) >= whole

    def _lab(self) -> bool:
        plain = self.samples == 3 and self.bits == 8 and not self.extra
        return plain and not self.planar and not self.reversed_bits and self.compression not in _JPEGS
