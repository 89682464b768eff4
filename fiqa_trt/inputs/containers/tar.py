"""Tar files: an index of what stands where in one, and reading by it.

Members are what Python's `tarfile` makes of them. Beyond that, what follows an end mark (`cat a.tar b.tar`) is read
on, as `tar -i` does, and so is what follows a damaged header; bytes that belong to no member are named in `error`.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from fiqa_trt.errors import RunError, one_line
from fiqa_trt.inputs.containers.members import FILE, SPARSE, Entries
from fiqa_trt.inputs.containers.named import NamedContainer, whole
from fiqa_trt.inputs.containers.registry import CONTAINERS
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import File, FileChanged

_PIECE = 1 << 20
_SEARCHED = 64 << 20
"""So far a first header is looked for in what may be no tar at all."""
_NUMBERS = re.compile(rb"(?:[0-7]{7}[ \0]|[0-7]{6} \0){3}(?:[0-7]{11}[ \0]){2}([0-7]{6})(?:\0 | \0)0", re.ASCII)
"""What stands behind the name of a file: mode, owner and group, size and time, checksum, type."""
_DEVICE = re.compile(rb"(?:[0-7]{7}[ \0]|[0-7]{6} \0|\0{8}){2}\0")
"""Major and minor number, which a file has none of, and no beginning of its name."""
_COMPRESSED = {
    b"\x1f\x8b": "gzip -dc",
    b"BZh": "bzip2 -dc",
    b"\xfd7zXZ\0": "xz -dc",
    b"\x28\xb5\x2f\xfd": "zstd -dc",
    b"\x04\x22\x4d\x18": "lz4 -dc",
    b"LZIP": "lzip -dc",
    b"\x1f\x9d": "uncompress -c",
    b"\x5d\0\0": "xz --format=lzma -dc",
}
_OTHERS = {
    b"PK\x03\x04": ("ZIP", ".zip"),
    b"PK\x05\x06": ("ZIP", ".zip"),
    b"7z\xbc\xaf\x27\x1c": ("7z", ".7z"),
    b"Rar!": ("RAR", ".rar"),
}


class TarContainer(NamedContainer):
    """An uncompressed tar file, as WebDataset's."""

    what = "tar shard"

    def _scan(self, file: File) -> ImageError | None:
        return _Scan(file, self._entries).run()

    def _bytes(self, file: File, member: int) -> bytes:
        offset, size = self._entries.offsets[member], self._entries.sizes[member]
        if self._entries.kinds[member] != SPARSE:
            return whole(file, offset, size)
        try:
            return _read_sparse(file.raw, offset)
        except (OSError, FileChanged, RunError):
            raise
        except Exception as exc:  # whatever tarfile makes of a damaged map
            raise ImageError(Status.CORRUPT, f"a damaged sparse member: {one_line(exc)}") from exc


class _Headers(tarfile.TarFile):
    """Hands out the headers that it is led to."""

    def next(self) -> tarfile.TarInfo | None:
        """None: opening it looks for a first member, which may be damaged."""
        return None


def _headers(file: BinaryIO) -> _Headers:
    return _Headers(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")


def _read_sparse(file: BinaryIO, offset: int) -> bytes:
    headers = _headers(file)
    file.seek(offset)
    found = headers.extractfile(tarfile.TarInfo.fromtarfile(headers))
    return b"" if found is None else found.read()


def plain_file(header: bytes) -> tuple[bytes, int] | None:
    """Name and size of a file by such a header of 512 bytes as nearly all files have; None for any other.

    They are what `tarfile` makes of it in ten times the time.
    """
    numbers = _NUMBERS.match(header, 100)
    if len(header) != tarfile.BLOCKSIZE or not header.isascii() or numbers is None or not _DEVICE.match(header, 329):
        return None
    # Of ASCII alone the sum is less than Adler's modulus, whose lower half is the sum and one.
    unsigned = (zlib.adler32(header) & 0xFFFF) - 1 - sum(header[148:156]) + 8 * ord(" ")
    if unsigned != int(numbers[1], 8):
        return None
    return header[:100].partition(b"\0")[0], int(header[124:135], 8)


def _follows(error: Exception) -> bool:
    """Whether it is of a header that another one, which is whole, has announced."""
    return isinstance(error, tarfile.SubsequentHeaderError)  # type: ignore[attr-defined]


class _Scan:
    """One walk through a tar, from header to header."""

    def __init__(self, file: File, entries: Entries) -> None:
        self._random, self._file, self._size, self._entries = file, file.raw, file.size, entries
        self._gaps = list[tuple[int, int]]()  # from and to before which byte nothing could be read

    def run(self) -> ImageError | None:
        """Fill `entries`; what is wrong with the file, if something is."""
        if not self._size:
            return ImageError(Status.EMPTY, "0 bytes")
        headers, at, ended = _headers(self._file), 0, False
        while at < self._size:
            self._file.seek(at)
            try:
                plain = None if headers.pax_headers else plain_file(self._file.read(tarfile.BLOCKSIZE))
                if plain is not None:
                    name, size = plain
                    self._entries.put(name, FILE, at + tarfile.BLOCKSIZE, size)
                    at, ended = at + tarfile.BLOCKSIZE * (1 - -size // tarfile.BLOCKSIZE), False
                    continue
                self._file.seek(at)
                entry = tarfile.TarInfo.fromtarfile(headers)
                if headers.offset <= at or entry.size < 0:
                    raise ValueError("a negative size")
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                at, ended = self._after_zeros(at), True
            except OSError as exc:
                error = f"this tar shard cannot be read beyond byte {at}: {exc.strerror or exc}"
                return ImageError(Status.UNREADABLE, error)
            except (FileChanged, RunError):
                raise
            except Exception as exc:  # a HeaderError, or what damaged fields make tarfile raise
                if at == 0 and (foreign := self._foreign()) is not None:
                    return foreign
                if self._size - at < tarfile.BLOCKSIZE and not any(self._block(at)):
                    break
                if not ended and self._cut(at, exc):
                    break
                following = self._header_after(at)
                if at == 0 and following is None and not _follows(exc):
                    return ImageError(Status.CORRUPT, f"this is no tar shard: {one_line(exc)}")
                self._gaps.append((at, following or self._size))
                at = following or self._size
            else:
                self._entries.add(entry)
                at, ended = headers.offset, False
        return self._judge(ended)

    def _judge(self, ended: bool) -> ImageError | None:
        if self._gaps:
            start, stop = self._gaps[0]
            more = "" if len(self._gaps) == 1 else f", and {len(self._gaps) - 1} more such places"
            return ImageError(
                Status.CORRUPT,
                f"this tar shard has a damaged header, or something else than a tar, at byte {start}: what stands from "
                f"there to byte {stop} could not be read{more}",
            )
        if not ended:
            error = f"this tar shard ends at byte {self._size} without an end mark: members may be missing"
            return ImageError(Status.TRUNCATED, error)
        return None

    def _cut(self, at: int, error: Exception) -> bool:
        """Whether the file ends within the header at `at`."""
        return self._size - at < tarfile.BLOCKSIZE or (_follows(error) and self._file.tell() >= self._size)

    def _block(self, at: int) -> bytes:
        return self._random.read_at(at, tarfile.BLOCKSIZE)

    def _foreign(self) -> ImageError | None:
        """What the file is instead, as far as its first bytes tell."""
        start = self._block(0)
        for magic, command in _COMPRESSED.items():
            if start.startswith(magic):
                return ImageError(
                    Status.UNSUPPORTED,
                    f"this shard is compressed, so its members cannot be found: unpack it first ({command} "
                    "compressed.tar > plain.tar)",
                )
        for magic, (name, suffix) in _OTHERS.items():
            if start.startswith(magic):
                way_out = f"name it {suffix}" if suffix in CONTAINERS else "unpack it and score the folder"
                return ImageError(Status.UNSUPPORTED, f"a {name} archive, not a tar: {way_out}")
        return None

    def _after_zeros(self, at: int) -> int:
        """The first block from `at` on that is not all zeros, or the end."""
        for start, piece in self._pieces(at, self._size):
            rest = piece.lstrip(b"\0")
            if rest:
                return start + (len(piece) - len(rest)) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
        return self._size

    def _header_after(self, at: int) -> int | None:
        """The next block behind `at` that is a header by its checksum."""
        first = at + tarfile.BLOCKSIZE
        for start, piece in self._pieces(first, self._size if len(self._entries) else first + _SEARCHED):
            whole = len(piece) // tarfile.BLOCKSIZE * tarfile.BLOCKSIZE
            blocks = np.frombuffer(piece, np.uint8, whole).reshape(-1, tarfile.BLOCKSIZE)
            digits = blocks[:, 148:154]  # of the checksum: octal, padded with spaces or zeros
            octal = ((digits >= ord("0")) & (digits <= ord("7"))) | (digits == ord(" ")) | (digits == 0)
            for number in np.flatnonzero(octal.all(axis=1) & digits.any(axis=1)):
                try:
                    tarfile.TarInfo.frombuf(blocks[number].tobytes(), "utf-8", "surrogateescape")
                except (tarfile.HeaderError, ValueError):
                    continue
                return start + int(number) * tarfile.BLOCKSIZE
        return None

    def _pieces(self, start: int, stop: int) -> Iterable[tuple[int, bytes]]:
        for at in range(start, min(stop, self._size), _PIECE):
            self._file.seek(at)
            yield at, self._file.read(_PIECE)
