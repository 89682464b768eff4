"""ZIP archives, stored or deflated, as StyleGAN's data sets come: an index of what stands where in one, reading by it.

Members are what Python's `zipfile` finds in the directory at the end. Where that is gone or damaged, as in an archive
that was cut, the header before each member tells as much, as far as they go.
"""

from __future__ import annotations

import errno
import stat
import struct
import zipfile
import zlib
from array import array
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fiqa_trt.errors import RunError, one_line
from fiqa_trt.inputs.containers.members import FAULTY, FILE, FOLDER, Fault
from fiqa_trt.inputs.containers.named import NamedContainer, whole
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import MAX_BYTES, File, FileChanged

_PIECE = 1 << 20
_LOCAL = struct.Struct("<4s5H3L2H")  # before a member: APPNOTE.TXT 4.3.7
_END, _END_MAGIC = struct.Struct("<10xH10x"), b"PK\x05\x06"  # of the archive: the number of its members: 4.3.16
_MANY = 0xFFFF  # or more
_LARGEST = 1 << 48  # of an offset or a size that is no damage
_DESCRIPTOR_MAGIC = b"PK\x07\x08"  # of what may follow a member that was streamed: 4.3.9
_LOCAL_MAGIC, _DIRECTORY_MAGIC = b"PK\x03\x04", b"PK\x01\x02"
_ENCRYPTED, _SIZES_FOLLOW, _UTF8 = 1 << 0, 1 << 3, 1 << 11  # of a member's flags
_ZIP64 = 0xFFFFFFFF  # in place of a size that stands in the extra field: APPNOTE.TXT 4.5.3
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


class _Member(NamedTuple):
    """An entry as a directory or a header has it. `offset` is that of its header, sizes are in bytes."""

    name: bytes
    offset: int
    packed: int
    size: int
    method: int
    flags: int
    crc: int
    mode: int = 0


class ZipContainer(NamedContainer):
    """A ZIP archive."""

    what = "zip archive"

    def __init__(self, path: str) -> None:
        self._packed, self._crcs, self._methods = array("q"), array("L"), bytearray()
        super().__init__(path)
        self.weight += 17 * len(self._entries)

    def _scan(self, file: File) -> ImageError | None:
        if not file.size:
            return ImageError(Status.EMPTY, "0 bytes")
        error = None
        try:
            members: Iterable[_Member] = list(_directory(file))
        except (FileChanged, RunError):
            raise
        except ImageError as exc:
            return exc
        except Exception as exc:  # BadZipFile, or what damaged fields make zipfile raise
            if isinstance(exc, OSError) and exc.errno != errno.EINVAL:  # which is of a place that there cannot be
                raise
            if not _begins(file, 0):
                return ImageError(Status.CORRUPT, f"this is no zip archive: {one_line(exc)}")
            members = _headers(file)
            lost = f"this zip archive has lost its directory ({one_line(exc)}): members may be missing"
            error = ImageError(Status.TRUNCATED, lost)
        for member in members:
            self._add(member)
        return error

    def _add(self, member: _Member) -> None:
        number, kind, fault = len(self._entries), FILE, None
        if not all(0 <= value < _LARGEST for value in (member.offset, member.packed, member.size)):
            fault = Fault(Status.CORRUPT, f"a damaged entry: {member.size} bytes at {member.offset}")
            member = member._replace(offset=0, packed=0, size=0)
        elif member.name.endswith(b"/") and not member.size:
            kind = FOLDER
        elif stat.S_ISLNK(member.mode):
            fault = Fault(Status.UNREADABLE, "a link; give what it leads to")
        elif member.flags & _ENCRYPTED:
            fault = Fault(Status.UNSUPPORTED, "encrypted; unpack it first")
        elif member.method not in _METHODS:
            name = zipfile.compressor_names.get(member.method, f"method {member.method}")  # type: ignore[attr-defined]
            fault = Fault(Status.UNSUPPORTED, f"compressed by {name}, not {' or '.join(_METHODS.values())}")
        if fault is not None:
            kind, self._entries.faults[number] = FAULTY, fault
        self._entries.put(member.name, kind, member.offset, member.size)
        self._packed.append(member.packed)
        self._crcs.append(member.crc)
        self._methods.append(member.method & 0xFF)

    def _bytes(self, file: File, member: int) -> bytes:
        offset, size = self._entries.offsets[member], self._entries.sizes[member]
        header = file.read_at(offset, _LOCAL.size) if offset >= 0 else b""
        if len(header) < _LOCAL.size or not header.startswith(_LOCAL_MAGIC):
            raise ImageError(Status.CORRUPT, "there is no member where the directory has it")
        *_, name, extra = _LOCAL.unpack(header)
        data = whole(file, offset + _LOCAL.size + name + extra, self._packed[member])
        if self._methods[member] == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        if len(data) != size:
            raise ValueError(f"{len(data)} bytes instead of {size}")
        if zlib.crc32(data) != self._crcs[member]:
            raise ValueError("its checksum is another one")
        return data


def _directory(file: File) -> Iterator[_Member]:
    """The entries of the directory at the end. Raises what zipfile does, and BadZipFile where they cannot be right."""
    with zipfile.ZipFile(file.raw) as archive:
        found = archive.infolist()
        if any(entry.volume for entry in found):
            raise ImageError(Status.UNSUPPORTED, "a part of a split archive: join its parts first (zip -s 0)")
        if not found and _begins(file, 0):
            raise zipfile.BadZipFile("its directory is empty, and a member begins it")
        count = _count(file)
        if count != len(found) & _MANY and count != _MANY:
            raise zipfile.BadZipFile(f"its directory names {len(found)} members, and should name {count}")
        # Where the end says wrongly where the directory is, all of them are moved by as much.
        some = (found[0], found[len(found) // 2], found[-1]) if found else ()
        if some and not any(_begins(file, entry.header_offset) for entry in some):
            raise zipfile.BadZipFile("its directory does not lead to its members")
        for entry in found:
            try:
                name = entry.filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437")
            except UnicodeEncodeError:  # zipfile has taken it from an extra field that holds it in UTF-8
                name = entry.filename.encode()
            sizes = (entry.header_offset, entry.compress_size, entry.file_size)
            yield _Member(
                _name(name, entry.flag_bits),
                *sizes,
                entry.compress_type,
                entry.flag_bits,
                entry.CRC,
                entry.external_attr >> 16,
            )


def _count(file: File) -> int:
    """How many members the end of an archive says that it has, modulo 2¹⁶: of the end that zipfile takes for it."""
    start = max(file.size - _END.size - _MANY, 0)
    tail = file.read_at(start, file.size - start)
    plain = tail[-_END.size :].startswith(_END_MAGIC) and tail.endswith(b"\0\0")
    at = len(tail) - _END.size if plain else tail.rfind(_END_MAGIC)
    if at < 0 or at + _END.size > len(tail):
        raise zipfile.BadZipFile("its end is damaged")
    (count,) = _END.unpack_from(tail, at)
    return int(count)


def _begins(file: File, offset: int) -> bool:
    """Whether the header of a member is there."""
    return offset >= 0 and file.read_at(offset, len(_LOCAL_MAGIC)) == _LOCAL_MAGIC


def _name(raw: bytes, flags: int) -> bytes:
    """The name of a member in UTF-8. Many programs write that without its flag, which otherwise means code page 437."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return raw if flags & _UTF8 else raw.decode("cp437").encode()
    return raw


def _headers(file: File) -> Iterator[_Member]:
    """What the headers before the members say, up to the first that is none, or does not say where the next one is."""
    at = 0
    while at + _LOCAL.size <= file.size:
        magic, _, flags, method, _, _, crc, packed, size, name, extra = _LOCAL.unpack(file.read_at(at, _LOCAL.size))
        start = at + _LOCAL.size + name + extra
        if magic != _LOCAL_MAGIC or start > file.size:
            return
        called, more = (file.read_at(*where) for where in ((at + _LOCAL.size, name), (start - extra, extra)))
        if packed == _ZIP64 and more[:2] == b"\1\0" and len(more) >= 20:
            size, packed = struct.unpack_from("<2Q", more, 4)
        if flags & _SIZES_FOLLOW and not packed:
            if method != zipfile.ZIP_DEFLATED:
                return
            packed, size, crc = _measure(file, start)
        yield _Member(_name(called, flags), at, packed, size, method, flags, crc)
        at = start + packed
        if flags & _SIZES_FOLLOW:
            following = file.read_at(at, 28)  # a descriptor, and the next magic
            at += max(following.find(_LOCAL_MAGIC), following.find(_DIRECTORY_MAGIC), 0)


def _measure(file: File, start: int) -> tuple[int, int, int]:
    """Bytes of a deflated member, packed and not, and its checksum: the stream says itself where it ends.

    The checksum is what the descriptor behind it says. Of what is cut before that the bytes are one more than there
    are, so that it is found out.
    """
    unpack, at, size = zlib.decompressobj(-zlib.MAX_WBITS), start, 0
    while not unpack.eof and at < file.size and size <= MAX_BYTES:
        piece = file.read_at(at, _PIECE)
        try:
            data = unpack.decompress(piece, _PIECE)
        except zlib.error:
            break
        used = len(piece) - len(unpack.unused_data) - len(unpack.unconsumed_tail)
        if not used and not data:
            break
        at, size = at + used, size + len(data)
    descriptor = file.read_at(at, 8).removeprefix(_DESCRIPTOR_MAGIC)[:4]
    if not unpack.eof or len(descriptor) < 4:
        return file.size - start + 1, max(size, 1), 0
    return at - start, size, int.from_bytes(descriptor, "little")
