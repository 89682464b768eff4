"""Tar files: an index of what stands where in one, and reading by it.

Members are what Python's `tarfile` makes of them. Beyond that, what follows an end mark (`cat a.tar b.tar`) is read
on, as `tar -i` does, and so is what follows a damaged header; bytes that belong to no member are named in `error`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from fiqa_trt.errors import one_line
from fiqa_trt.inputs.containers.members import FAULTY, SPARSE, Entries, Index
from fiqa_trt.inputs.containers.registry import CONTAINERS
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import MAX_BYTES, Blob, File, FileChanged, Stamp
from fiqa_trt.storage.registry import store_of

_PIECE = 1 << 20
_SEARCHED = 64 << 20
"""So far a first header is looked for in what may be no tar at all."""
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


class TarContainer:
    """An uncompressed tar file, as WebDataset's. Safe to use from several threads; nothing stays open between reads.

    Attributes:
        error: see `Container`, like the next two.
        stamp: of the file that was indexed; None if it could not be opened.
        weight: bytes that the index takes.
    """

    def __init__(self, path: str) -> None:
        self.error: ImageError | None = None
        self.stamp: Stamp | None = None
        self._path, entries = path, Entries()
        try:
            with store_of(path).open(path) as file:
                self.stamp = file.stamp()
                self.error = _Scan(file, entries).run()
        except (OSError, ValueError) as exc:
            missing = isinstance(exc, FileNotFoundError)
            status = Status.MISSING if missing else Status.UNREADABLE
            self.error = ImageError(status, f"this tar shard cannot be read: {getattr(exc, 'strerror', None) or exc}")
        entries.resolve_links()
        self._entries, self._index = entries, Index(entries)
        self.weight = entries.weight + self._index.weight

    def keys(self, suffixes: tuple[str, ...] = (), *, others: bool = False) -> Iterator[str]:
        """See `Container.keys`; of several members of one name the second is `name::2`, and so on."""
        return self._index.keys(suffixes, others=others)

    def position(self, key: str) -> int:
        """See `Container.position`."""
        member = self._index.find(key)
        return -1 if member is None else self._entries.offsets[member]

    def read(self, key: str, max_bytes: int = MAX_BYTES) -> bytes:
        """See `Container.read`."""
        blob = self.read_all([key], max_bytes)[0]
        if isinstance(blob, ImageError):
            raise blob
        return blob

    def read_all(self, keys: Sequence[str], max_bytes: int = MAX_BYTES) -> list[Blob]:
        """See `Container.read_all`."""
        if self.stamp is None and self.error is not None:
            return [self.error] * len(keys)
        try:
            with store_of(self._path).open(self._path) as file:
                if file.stamp() != self.stamp:
                    raise FileChanged
                blobs = [self._read(file, key, max_bytes) for key in keys]
                if file.stamp() != self.stamp:
                    raise FileChanged
        except OSError as exc:
            return [ImageError(Status.UNREADABLE, f"the shard cannot be opened: {exc.strerror or exc}")] * len(keys)
        return blobs

    def _read(self, file: File, key: str, max_bytes: int) -> Blob:
        member = self._index.find(key)
        if member is None:
            known = "" if self.error is None else f" as far as it can be read ({self.error})"
            return ImageError(Status.MISSING, f"no such member in the shard{known}")
        kind, offset, size = self._entries.kinds[member], self._entries.offsets[member], self._entries.sizes[member]
        if kind == FAULTY:
            fault = self._entries.faults[member]
            return ImageError(fault.status, fault.error)
        if not size:
            return ImageError(Status.EMPTY, "0 bytes")
        if size > max_bytes:
            return ImageError(Status.TOO_LARGE, f"{size} bytes, more than {max_bytes}")
        try:
            data = _read_sparse(file.raw, offset) if kind == SPARSE else file.read_at(offset, size)
        except OSError as exc:
            return ImageError(Status.UNREADABLE, one_line(exc))
        except Exception as exc:  # whatever tarfile makes of a damaged map of a sparse member
            return ImageError(Status.CORRUPT, f"a damaged sparse member: {one_line(exc)}")
        if len(data) < size:
            return ImageError(Status.TRUNCATED, f"the shard ends within it: {len(data)} of {size} bytes")
        return data

    def close(self) -> None:
        """Nothing to release."""


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
                entry = tarfile.TarInfo.fromtarfile(headers)
                if headers.offset <= at or entry.size < 0:
                    raise ValueError("a negative size")
            except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
                at, ended = self._after_zeros(at), True
            except OSError as exc:
                error = f"this tar shard cannot be read beyond byte {at}: {exc.strerror or exc}"
                return ImageError(Status.UNREADABLE, error)
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
