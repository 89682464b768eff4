"""What containers of named members have in common: an index that is made once, and reading by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fiqa_trt.errors import RunError, one_line
from fiqa_trt.inputs.containers.members import FAULTY, Entries, Index
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.storage.base import MAX_BYTES, Blob, File, FileChanged, Stamp
from fiqa_trt.storage.registry import store_of


class NamedContainer:
    """See `base.Container`. Safe to use from several threads; nothing stays open between reads.

    Attributes:
        what: it is, for messages.
        error: see `Container`, like the next two.
        stamp: of the file that was indexed; None if it could not be opened.
        weight: bytes that the index takes.
    """

    what: str

    def __init__(self, path: str) -> None:
        self.error: ImageError | None = None
        self.stamp: Stamp | None = None
        self._path, self._entries = path, Entries()
        try:
            with store_of(path).open(path) as file:
                self.stamp = file.stamp()
                self.error = self._scan(file)
        except FileChanged as exc:
            self.error, self.stamp = exc, None
        except (OSError, ValueError) as exc:
            status = Status.MISSING if isinstance(exc, FileNotFoundError) else Status.UNREADABLE
            why = getattr(exc, "strerror", None) or exc
            self.error = ImageError(status, f"this {self.what} cannot be read: {why}")
        except RunError:  # of the store
            raise
        except Exception as exc:  # the last net: what is damaged costs itself alone, and what was found is read
            self.error = ImageError(Status.CORRUPT, f"this {self.what} cannot be read to its end: {one_line(exc)}")
        self._entries.resolve_links()
        self._index = Index(self._entries)
        self.weight = self._entries.weight + self._index.weight

    def _scan(self, file: File) -> ImageError | None:
        """Fill the entries; what is wrong with the file, if something is. Raises OSError."""
        raise NotImplementedError

    def _bytes(self, file: File, member: int) -> bytes:
        """The bytes of an entry that has some. Raises OSError, ImageError, or whatever damage brings about."""
        raise NotImplementedError

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
        if self._entries.kinds[member] == FAULTY:
            fault = self._entries.faults[member]
            return ImageError(fault.status, fault.error)
        size = self._entries.sizes[member]
        if not size:
            return ImageError(Status.EMPTY, "0 bytes")
        if size > max_bytes:
            return ImageError(Status.TOO_LARGE, f"{size} bytes, more than {max_bytes}")
        try:
            return self._bytes(file, member)
        except (FileChanged, RunError):
            raise
        except ImageError as exc:
            return exc
        except OSError as exc:
            return ImageError(Status.UNREADABLE, one_line(exc))
        except Exception as exc:
            return ImageError(Status.CORRUPT, f"a damaged member: {one_line(exc)}")

    def close(self) -> None:
        """Nothing to release."""


def whole(file: File, offset: int, size: int) -> bytes:
    """That many bytes of a file. Raises OSError, or ImageError if it ends before."""
    data = file.read_at(offset, min(size, file.size))
    if len(data) < size:
        raise ImageError(Status.TRUNCATED, f"the shard ends within it: {len(data)} of {size} bytes")
    return data
