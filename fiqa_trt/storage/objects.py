"""Objects in buckets (S3 and what speaks like it, Google Cloud Storage, Azure) and files of web servers, for reading.

A path is `s3://bucket/key`, the key as it is, or `https://host/path?query`, percent-encoded as everywhere on the web.
Credentials and endpoints are the platform's usual ones. An object that is not there is an image's fault. Whatever else
goes wrong is the store's, and ends the run, which a later call goes on with.
"""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fiqa_trt.errors import OutputError, StoreError
from fiqa_trt.libraries import require
from fiqa_trt.outcomes import ImageError, Origin, Status
from fiqa_trt.storage.base import MAX_BYTES, FileChanged, Read, Stamp, microseconds, unsigned
from fiqa_trt.storage.clients import ODD, UNNAMED, Place, Unanswered, ask
from fiqa_trt.storage.remote import RemoteEntry, RemoteFile, number_of

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

_PAGE = 1000  # names that a store lists at a time
_FRESH_SECONDS, _KNOWN = 2.0, 4096


def _modified_ns(meta: ObjectMeta) -> int:
    return round(meta["last_modified"].timestamp()) * 10**9


def _origin(meta: ObjectMeta) -> Origin:
    # A web server that does not tell the time is given that of 1970.
    return Origin(meta["size"], microseconds(_modified_ns(meta)) or None)


def _stamp(meta: ObjectMeta) -> Stamp:
    return Stamp(0, number_of(meta["e_tag"] or ""), meta["size"], _modified_ns(meta), 0)


class _Heads:
    """What was known of objects a moment ago, so that the chunks of a shard do not all ask.

    Only of those whose parts are asked for by a strong tag: of one that was replaced since, the store gives none.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[float, ObjectMeta]] = OrderedDict()

    def get(self, path: str) -> ObjectMeta:
        """What is known of an object. Raises as `ask`."""
        import obstore

        with self._lock:
            since, meta = self._known.get(path, (0.0, None))
        if meta is not None and time.monotonic() - since < _FRESH_SECONDS:
            return meta
        meta = ask(path, lambda client: obstore.head(client, _named(path)))
        if _condition(meta):
            with self._lock:
                self._known[path] = (time.monotonic(), meta)
                while len(self._known) > _KNOWN:
                    self._known.popitem(last=False)
        return meta

    def forget(self, path: str) -> None:
        """It is another object by now."""
        with self._lock:
            self._known.pop(path, None)

    def forget_all(self) -> None:
        """Begin anew in a forked process, whose lock may be held by a thread that it does not have."""
        self.__init__()  # type: ignore[misc]


_HEADS = _Heads()
os.register_at_fork(after_in_child=_HEADS.forget_all)


def _condition(meta: ObjectMeta) -> GetOptions:
    """What holds of this object alone."""
    tag = meta["e_tag"]
    return {"if_match": tag} if tag and not tag.startswith("W/") else {}


def _named(path: str) -> str:
    """An object's name; ValueError for one that would silently be taken for another; obstore refuses others itself."""
    place = Place.of(path)
    # A bucket that is asked for by itself answers with a list of what is in it.
    if place.key.startswith("/") or place.key.endswith("/") or not (place.key or place.web):
        raise ValueError(path)
    return place.key


def _open(path: str) -> RemoteFile:
    """An object, for reading parts of it: of this one alone, not of one that replaces it. Raises as `ask`."""
    meta = _HEADS.get(path)
    key, same = Place.of(path).key, _condition(meta)

    def fetch(start: int, stop: int) -> bytes:
        import obstore

        options: GetOptions = {"range": (start, stop), **same}
        try:
            return ask(path, lambda client: bytes(obstore.get(client, key, options=options).bytes()))
        except FileChanged:
            _HEADS.forget(path)
            raise

    return RemoteFile(path, meta["size"], _stamp(meta), fetch)


class ObjectStore:
    """See `base.Store`. Everything that is asked of a store may raise StoreError as well."""

    def read(self, path: str, max_bytes: int = MAX_BYTES) -> Read:
        """See `Store.read`."""
        import obstore

        def request(client: Any) -> tuple[ObjectMeta, bytes | None]:
            found = obstore.get(client, _named(path))
            return found.meta, bytes(found.bytes()) if found.meta["size"] <= max_bytes else None

        try:
            meta, data = ask(path, request)
        except FileNotFoundError as exc:
            return Read(ImageError(Status.MISSING, str(exc.strerror)))
        except Unanswered as exc:
            return Read(ImageError(Status.UNREADABLE, str(exc.strerror)))
        except OSError as exc:
            return Read(ImageError(Status.UNSUPPORTED, str(exc.strerror)))
        size, origin = meta["size"], _origin(meta)
        if data is None:
            return Read(ImageError(Status.TOO_LARGE, f"{size} bytes, more than {max_bytes}"), origin)
        if len(data) != size:
            raise StoreError(f"cannot read {unsigned(path)}: {len(data)} bytes came of {size}")
        return Read(data, origin) if data else Read(ImageError(Status.EMPTY, "0 bytes"), origin)

    def head(self, path: str, count: int) -> bytes:
        """See `Store.head`."""
        with self.open(path) as file:
            return file.read_at(0, count)

    def open(self, path: str) -> RemoteFile:
        """See `Store.open`."""
        return _open(path)

    def for_arrow(self, path: str, *, mapped: bool = False) -> Any:
        """See `Store.for_arrow`."""
        import pyarrow as pa

        return pa.PythonFile(self.open(path).raw, mode="r")

    def stamp(self, path: str) -> Stamp | None:
        """See `Store.stamp`."""
        if path.endswith("/"):
            return Stamp(0, number_of(path), 0, 0, 0)
        try:
            return _stamp(_HEADS.get(path))
        except OSError:
            return None

    def origin(self, path: str) -> Origin:
        """See `Store.origin`."""
        try:
            return _origin(_HEADS.get(path))
        except OSError:
            return Origin()

    def is_file(self, path: str) -> bool:
        """See `Store.is_file`."""
        return not path.endswith("/") and self.stamp(path) is not None

    def is_folder(self, path: str) -> bool:
        """See `Store.is_folder`. What is both, an object and the beginning of others' names, is one with a slash."""
        import obstore

        place = Place.of(path)
        if place.web or (place.key and self.is_file(path)):
            return False
        below = place.key.rstrip("/") or None
        if not ask(path, lambda client: next(iter(obstore.list(client, below, chunk_size=1)), None)):
            raise FileNotFoundError(errno.ENOENT, "there is no such object, and none below it")
        return True

    def entries(self, folder: str) -> Iterable[RemoteEntry]:
        """See `Store.entries`."""
        import obstore

        root, key = Place.of(folder)
        above = key.rstrip("/") + "/" if key.rstrip("/") else ""
        found = ask(folder, lambda client: obstore.list_with_delimiter(client, above or None))

        def entry(key: str, slash: str) -> RemoteEntry:
            return RemoteEntry(f"{root}/{key}{slash}", key[len(above) :], bool(slash))

        # What marks an empty folder has its name, and nothing behind it.
        yield from (entry(each["path"], "") for each in found["objects"] if each["path"].startswith(above))
        yield from (entry(prefix, "/") for prefix in found["common_prefixes"])

    def below(self, folder: str) -> Iterator[RemoteEntry]:
        """See `Store.below`."""
        import obstore

        root, key = Place.of(folder)
        above = key.rstrip("/") + "/" if key.rstrip("/") else ""
        last: str | None = None
        pages: Iterator[Sequence[ObjectMeta]] | None = None

        def page(client: Any) -> Sequence[ObjectMeta] | None:
            nonlocal pages
            try:
                if pages is None:  # goes on behind the last one that came
                    pages = iter(obstore.list(client, above or None, offset=last, chunk_size=_PAGE))
                return next(pages, None)
            except BaseException:
                pages = None
                raise

        while found := ask(folder, page):
            for each in found:
                last = each["path"]
                path = f"{root}/{last}"
                # What marks an empty folder is listed by its name, without the slash by which it could be asked for.
                if last.startswith(above) and (each["size"] or self.is_file(path)):
                    yield RemoteEntry(path, last.rpartition("/")[2], False)

    def check(self, path: str) -> None:
        """See `Writer.check`."""
        place = Place.of(path)
        parts = place.key.removesuffix("/").split("/") if place.key else []
        if not place.root.partition("://")[2]:
            raise OutputError(f"cannot write {path}: {UNNAMED.format('bucket')}")
        if not {"", ".", ".."}.isdisjoint(parts) or any(ord(each) < 32 or ord(each) == 127 for each in place.key):
            raise OutputError(f"cannot write {path}: {ODD}")

    def put(self, path: str, content: bytes | Path) -> None:
        """See `Writer.put`."""
        import obstore

        ask(path, lambda client: obstore.put(client, _named(path), content), "write")
        _HEADS.forget(path)

    def create(self, path: str, content: bytes) -> None:
        """See `Writer.create`."""
        import obstore

        ask(path, lambda client: obstore.put(client, _named(path), content, mode="create"), "write")

    def remove(self, paths: Sequence[str]) -> None:
        """See `Writer.remove`."""
        import obstore

        for start in range(0, len(paths), _PAGE):
            some = paths[start : start + _PAGE]
            keys = [*map(_named, some)]
            with contextlib.suppress(FileNotFoundError):
                ask(some[0], lambda client: obstore.delete(client, keys), "remove")  # noqa: B023
            for path in some:
                _HEADS.forget(path)


_STORE = ObjectStore()


def opened() -> ObjectStore:
    """The store of all objects. Raises UsageError if what reads them is not installed."""
    require("obstore", "object stores and web addresses need a library: pip install 'fiqa-trt[cloud]'")
    return _STORE
