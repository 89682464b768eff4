"""Objects in buckets (S3 and what speaks like it, Google Cloud Storage, Azure) and files of web servers, for reading.

A path is `s3://bucket/key`, the key as it is, or `https://host/path?query`, percent-encoded as everywhere on the web.
Credentials and endpoints are the platform's usual ones. An object that is not there is an image's fault. Whatever else
goes wrong is the store's, and ends the run, which a later call goes on with.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import io
import re
import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from fiqa_trt.errors import RunError, UsageError, one_line
from fiqa_trt.outcomes import ImageError, Origin, Status
from fiqa_trt.storage.base import MAX_BYTES, FileChanged, Read, Stamp, microseconds, unsigned

if TYPE_CHECKING:
    from obstore import GetOptions, ObjectMeta

T = TypeVar("T")

RETRIES = 8
"""Tries beyond the first of what a busy or broken server did not answer, within two minutes."""
_WAITS = (0.1, 0.5, 2.0)  # seconds, before what came in part is asked for again
_RETRY = {"max_retries": RETRIES, "retry_timeout": timedelta(minutes=2)}
# Plain http is only spoken where an endpoint or an address says so, as those of servers nearby do.
_CLIENT = {"allow_http": True, "connect_timeout": "10s", "timeout": "2m"}
_WEB = ("http", "https")
_AHEAD, _MOST_AHEAD = 128 << 10, 4 << 20
"""Bytes that are read at once where a file is read from front to back: at first, and as long as that goes on."""
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist")
_CUT = re.compile(r"body error|end of file|incomplete|IncompleteMessage|decoding response")
_DENIED = re.compile(r"status code: 40[13]|ExpiredToken|InvalidAccessKeyId")
_ANSWER = re.compile(r"status code: (\d{3}[\w ]*)|<Code>(\w+)</Code>|HTTP error: ([^\n]*)")
_ADDRESS = re.compile(r"\S+://\S+")  # may hold what grants access
_ODD = "obstore, which reads it, takes no name with a control character, `//`, or `.` or `..` between slashes"


class _Place(NamedTuple):
    """Where an object is: what a client is opened for, and the object's name there."""

    root: str
    key: str

    @property
    def web(self) -> bool:
        """Whether it is on a web server, which has no folders."""
        return self.root.startswith(_WEB)


def _place(path: str) -> _Place:
    scheme, _, rest = path.partition("://")
    scheme = scheme.lower()
    if scheme in _WEB:
        parts = urlsplit(path)
        query = f"?{parts.query}" if parts.query else ""
        return _Place(f"{scheme}://{parts.netloc}/{query}", unquote(parts.path).removeprefix("/"))
    bucket, _, key = rest.partition("/")
    return _Place(f"{scheme}://{bucket}", key)


@functools.lru_cache(maxsize=256)
def _client(root: str) -> Any:
    from obstore.store import from_url

    options: dict[str, Any] = {"client_options": _CLIENT, "retry_config": _RETRY}
    return from_url(root, **options)


@functools.lru_cache(maxsize=256)
def _check_bucket(root: str) -> None:
    """Raise RunError if a bucket is not there; whether one is that may not be listed is not known."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        next(iter(obstore.list(_client(root))), None)
    except (OSError, BaseError) as exc:
        if _NO_BUCKET.search(str(exc)):
            raise _failure(f"{root}/", exc) from None


def _ask(path: str, request: Callable[[], T]) -> T:
    """The answer to a request about a path. obstore has tried again by itself, but where the answer came in part.

    Raises:
        FileNotFoundError: no such object.
        OSError: a name that cannot be asked for.
        FileChanged: it is another object by now.
        RunError: anything else, which no image can be blamed for.
    """
    from obstore.exceptions import BaseError, PreconditionError

    for wait in (*_WAITS, None):
        try:
            return request()
        except PreconditionError:
            raise FileChanged from None
        except FileNotFoundError:
            place = _place(path)
            if not place.web:
                _check_bucket(place.root)
            raise FileNotFoundError(errno.ENOENT, "there is no such object") from None
        except ValueError:
            raise OSError(errno.EINVAL, _ODD) from None
        except (BaseError, OSError) as exc:
            if wait is None or not _CUT.search(str(exc)):
                raise _failure(path, exc) from None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _failure(path: str, error: BaseException) -> RunError:
    """What a store says, without what it was asked with: addresses may hold what grants access."""
    said = str(error).partition("Debug source")[0]
    answers = ", ".join(one.strip() for found in _ANSWER.findall(said) for one in found if one)
    why = one_line(Exception(_ADDRESS.sub("…", answers or said)), 200)
    if _NO_BUCKET.search(said):
        why = f"there is no such bucket ({why})"
    elif _DENIED.search(said):
        why = f"access denied ({why})"
    return RunError(f"cannot read {unsigned(path)}: {why}; run the same command again once that is mended")


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=7).digest(), "big")


def _modified_ns(meta: ObjectMeta) -> int:
    return round(meta["last_modified"].timestamp()) * 10**9


def _origin(meta: ObjectMeta) -> Origin:
    # A web server that does not tell the time is given that of 1970.
    return Origin(meta["size"], microseconds(_modified_ns(meta)) or None)


def _stamp(meta: ObjectMeta) -> Stamp:
    return Stamp(0, _number(meta["e_tag"] or ""), meta["size"], _modified_ns(meta), 0)


def _head(path: str) -> ObjectMeta:
    """What is known of an object. Raises as `_ask`."""
    import obstore

    root, key = _place(path)
    return _ask(path, lambda: obstore.head(_client(root), _named(key)))


def _named(key: str) -> str:
    """A name; ValueError for one that would silently be taken for another; obstore refuses others itself."""
    if key.startswith("/") or key.endswith("/"):
        raise ValueError(key)
    return key


class ObjectFile:
    """See `base.File`. What stands behind what is asked for is read with it, as long as that is what is asked for next.

    Parts are only ever of the object that was opened: of one that was replaced since, `read_at` raises FileChanged.
    """

    def __init__(self, path: str) -> None:
        """Raises as `_ask`."""
        self._path, self._meta, self._lock = path, _head(path), threading.Lock()
        self.size = self._meta["size"]
        tag = self._meta["e_tag"]
        self._same: GetOptions = {"if_match": tag} if tag and not tag.startswith("W/") else {}
        self._start, self._held, self._ahead = 0, b"", _AHEAD // 2
        self.raw: BinaryIO = io.BufferedReader(_Raw(self), 64 << 10)

    def stamp(self) -> Stamp:
        """See `File.stamp`."""
        return _stamp(self._meta)

    def read_at(self, offset: int, count: int) -> bytes:
        """See `File.read_at`."""
        stop = min(offset + count, self.size)
        if offset >= stop:
            return b""
        with self._lock:
            held = self._start + len(self._held)
            if not self._start <= offset < stop <= held:
                onward = self._start <= offset <= held + _AHEAD
                self._ahead = min(2 * self._ahead, _MOST_AHEAD) if onward else _AHEAD
                self._held, self._start = self._fetch(offset, max(stop, min(offset + self._ahead, self.size))), offset
            return self._held[offset - self._start : stop - self._start]

    def _fetch(self, start: int, stop: int) -> bytes:
        import obstore

        root, key = _place(self._path)
        options: GetOptions = {"range": (start, stop), **self._same}
        data = _ask(self._path, lambda: bytes(obstore.get(_client(root), key, options=options).bytes()))
        if len(data) != stop - start:
            raise RunError(f"cannot read {unsigned(self._path)}: {len(data)} bytes came of {stop - start}")
        return data

    def __enter__(self) -> ObjectFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.raw.close()


class _Raw(io.RawIOBase):
    """A file that reads by itself, for libraries."""

    def __init__(self, file: ObjectFile) -> None:
        self._file, self._at = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self._file.size)[whence]
        if at < 0:
            raise OSError(errno.EINVAL, "before the beginning")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        data = self._file.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class ObjectEntry:
    """See `base.Entry`. The path of a folder ends in a slash, as a key may have the same name."""

    def __init__(self, path: str, name: str, folder: bool) -> None:
        self.path, self.name, self._folder = path, name, folder

    def is_dir(self) -> bool:
        """See `Entry.is_dir`."""
        return self._folder

    def is_file(self) -> bool:
        """See `Entry.is_file`."""
        return not self._folder

    def is_symlink(self) -> bool:
        """See `Entry.is_symlink`."""
        return False


class ObjectStore:
    """See `base.Store`. Everything that is asked of a store may raise RunError as well."""

    def read(self, path: str, max_bytes: int = MAX_BYTES) -> Read:
        """See `Store.read`."""
        import obstore

        root, key = _place(path)

        def request() -> tuple[ObjectMeta, bytes | None]:
            found = obstore.get(_client(root), _named(key))
            return found.meta, bytes(found.bytes()) if found.meta["size"] <= max_bytes else None

        try:
            meta, data = _ask(path, request)
        except FileNotFoundError as exc:
            return Read(ImageError(Status.MISSING, str(exc.strerror)))
        except OSError as exc:
            return Read(ImageError(Status.UNSUPPORTED, str(exc.strerror)))
        size, origin = meta["size"], _origin(meta)
        if data is None:
            return Read(ImageError(Status.TOO_LARGE, f"{size} bytes, more than {max_bytes}"), origin)
        if len(data) != size:
            raise RunError(f"cannot read {unsigned(path)}: {len(data)} bytes came of {size}")
        return Read(data, origin) if data else Read(ImageError(Status.EMPTY, "0 bytes"), origin)

    def head(self, path: str, count: int) -> bytes:
        """See `Store.head`."""
        with self.open(path) as file:
            return file.read_at(0, count)

    def open(self, path: str) -> ObjectFile:
        """See `Store.open`."""
        return ObjectFile(path)

    def for_arrow(self, path: str, *, mapped: bool = False) -> Any:
        """See `Store.for_arrow`."""
        import pyarrow as pa

        return pa.PythonFile(self.open(path).raw, mode="r")

    def stamp(self, path: str) -> Stamp | None:
        """See `Store.stamp`."""
        if path.endswith("/"):
            return Stamp(0, _number(path), 0, 0, 0)
        try:
            return _stamp(_head(path))
        except OSError:
            return None

    def origin(self, path: str) -> Origin:
        """See `Store.origin`."""
        try:
            return _origin(_head(path))
        except OSError:
            return Origin()

    def is_file(self, path: str) -> bool:
        """See `Store.is_file`."""
        return not path.endswith("/") and self.stamp(path) is not None

    def is_folder(self, path: str) -> bool:
        """See `Store.is_folder`. What is both, an object and the beginning of others' names, is one with a slash."""
        import obstore

        place = _place(path)
        if place.web or (place.key and self.is_file(path)):
            return False
        if not _ask(path, lambda: next(iter(obstore.list(_client(place.root), place.key.rstrip("/") or None)), None)):
            raise FileNotFoundError(errno.ENOENT, "there is no such object, and none below it")
        return True

    def entries(self, folder: str) -> Iterable[ObjectEntry]:
        """See `Store.entries`."""
        import obstore

        root, key = _place(folder)
        above = key.rstrip("/") + "/" if key.rstrip("/") else ""
        found = _ask(folder, lambda: obstore.list_with_delimiter(_client(root), above or None))

        def entry(key: str, slash: str) -> ObjectEntry:
            return ObjectEntry(f"{root}/{key}{slash}", key[len(above) :], bool(slash))

        # What marks an empty folder has its name, and nothing behind it.
        yield from (entry(each["path"], "") for each in found["objects"] if each["path"].startswith(above))
        yield from (entry(prefix, "/") for prefix in found["common_prefixes"])


_STORE = ObjectStore()


def opened() -> ObjectStore:
    """The store of all objects. Raises UsageError if what reads them is not installed."""
    _check_installed()
    return _STORE


@functools.cache
def _check_installed() -> None:
    try:
        import obstore  # noqa: F401
    except ImportError as exc:
        raise UsageError("object stores and web addresses need a library: pip install 'fiqa-trt[cloud]'") from exc
