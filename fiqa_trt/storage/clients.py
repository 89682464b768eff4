"""Asking object stores and web servers: clients by their roots, tries, and what an answer that is none means.

Of a bucket, and of a signed web address, which is one's of a bucket, only that an object is not there is an image's
fault; all else is the store's, and ends the run, which a later call goes on with. Of any other web address all that a
server answers, or that none does, is the address's own: lists of the web are full of hosts that are gone. That several
of them in turn do not answer, and no other does, is this machine's.
"""

from __future__ import annotations

import errno
import functools
import os
import re
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote, urlsplit

from fiqa_trt.errors import StoreError, UsageError, one_line
from fiqa_trt.storage.base import SIGNED, FileChanged, unsigned

T = TypeVar("T")

RETRIES = 8
"""Tries beyond the first of what a busy or broken server did not answer, within two minutes."""
WEB_RETRIES = 3
"""The same of a web server, within half a minute; none of one that has just not answered that often."""
SILENT = 20
"""So many web servers that cannot be reached, and none in between that can: it is not they who are away."""
_WAITS = (0.1, 0.5, 2.0)  # seconds, before what came in part is asked for again
_RETRY: dict[str, Any] = {}  # more of what obstore knows of retries
# Plain http is only spoken where an endpoint or an address says so, as those of servers nearby do.
_CLIENT = {"allow_http": True, "connect_timeout": "10s", "timeout": "2m"}
_AWAY_SECONDS = 60.0
_WEB = ("http", "https")
_NO_BUCKET = re.compile(r"NoSuchBucket|ContainerNotFound|bucket does not exist")
_CUT = re.compile(r"body error|end of file|incomplete|IncompleteMessage|decoding response")
_UNSENT = re.compile(rf"error sending request|{_CUT.pattern}")  # of what may not just be sent twice
_DENIED = re.compile(r"status code: 40[13]|ExpiredToken|InvalidAccessKeyId")
_ANSWER = re.compile(r"status code: (\d{3}[\w ]*)|<Code>(\w+)</Code>|(?<!Generic )HTTP error: ([^\n]*)")
_UNLISTED = re.compile(r'invalid path: Error parsing Path "(.*?)": ', re.DOTALL)
_STATUS = re.compile(r"status code: \d{3}|[Ss]erver returned")
_ADDRESS = re.compile(r"\S+://\S+")  # may hold what grants access
ODD = (
    "obstore, which reads it, takes no empty name, and none with a control character, `//`, a slash at its end, or `.` "
    "or `..` between slashes"
)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
UNNAMED = "the address names no {}"


class Place(NamedTuple):
    """Where an object is: what a client is opened for, and the object's name there."""

    root: str
    key: str

    @property
    def web(self) -> bool:
        """Whether it is on a web server, which has no folders."""
        return self.root.startswith(_WEB)

    @classmethod
    def of(cls, path: str) -> Place:
        """That of a path."""
        scheme, _, rest = path.partition("://")
        scheme = scheme.lower()
        if scheme in _WEB:
            parts = urlsplit(path)
            query = f"?{parts.query}" if parts.query else ""
            return cls(f"{scheme}://{parts.netloc}/{query}", unquote(parts.path).removeprefix("/"))
        bucket, _, key = rest.partition("/")
        return cls(f"{scheme}://{bucket}", key)


class Unanswered(OSError):
    """A web server did not answer, or with something else than what it was asked for."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EIO, why)


class _Web:
    """Which web servers answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._away = dict[str, float]()  # by host, since when
        self._silent = set[str]()  # hosts, since another one answered

    def retries(self, host: str) -> int:
        """How often one is to be asked again."""
        with self._lock:
            return 0 if time.monotonic() - self._away.get(host, -_AWAY_SECONDS) < _AWAY_SECONDS else WEB_RETRIES

    def answered(self, host: str) -> None:
        """It did, whatever."""
        with self._lock:
            self._away.pop(host, None)
            self._silent.clear()

    def is_away(self, host: str) -> bool:
        """It did not. Whether too many did not."""
        with self._lock:
            self._away[host] = time.monotonic()
            self._silent.add(host)
            return len(self._silent) >= SILENT

    def forget(self) -> None:
        """Begin anew."""
        self.__init__()  # type: ignore[misc]


WEB = _Web()
os.register_at_fork(after_in_child=WEB.forget)


@functools.lru_cache(maxsize=256)
def client(root: str, retries: int = RETRIES) -> Any:
    """What asks a store."""
    from obstore.store import from_url

    retry = {"max_retries": retries, "retry_timeout": timedelta(seconds=120 if retries == RETRIES else 30), **_RETRY}
    options: dict[str, Any] = {"client_options": _CLIENT, "retry_config": retry}
    if root.startswith("s3://") and os.environ.get("AWS_PROFILE"):
        options["credential_provider"] = _profile()
    return from_url(root, **options)


def _profile() -> Any:
    """The keys of a profile, which obstore does not read by itself. Raises UsageError."""
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as exc:
        raise UsageError("AWS_PROFILE: its keys are read by another library: pip install boto3") from exc
    return Boto3CredentialProvider()


@functools.lru_cache(maxsize=256)
def _check_bucket(root: str) -> None:
    """Raise StoreError if a bucket is not there; whether one is that may not be listed is not known."""
    import obstore
    from obstore.exceptions import BaseError

    try:
        next(iter(obstore.list(client(root))), None)
    except (OSError, BaseError) as exc:
        if _NO_BUCKET.search(str(exc)):
            raise failure(f"{root}/", exc) from None


def ask(path: str, request: Callable[[Any], T], doing: str = "read") -> T:
    """The answer to a request about a path, which is given the client to ask with.

    obstore tries again by itself, but where an answer came in part.

    Raises:
        FileNotFoundError: no such object.
        FileExistsError: there is one, where a new one was to be.
        Unanswered: a web address, if it is not signed, gives none.
        OSError: a name that cannot be asked for.
        FileChanged: it is another object by now.
        StoreError: anything else, which no image can be blamed for.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    place = Place.of(path)
    if place.root.endswith("://") or place.root.partition("://")[2].startswith("/"):
        raise OSError(errno.EINVAL, UNNAMED.format("server" if place.web else "bucket"))
    for wait in (*_WAITS, None):
        try:
            found = request(client(place.root, WEB.retries(_host(path)) if place.web else RETRIES))
        except AlreadyExistsError:
            raise FileExistsError(errno.EEXIST, "there is such an object") from None
        except PreconditionError:
            raise FileChanged from None
        except FileNotFoundError:
            if place.web:
                WEB.answered(_host(path))
            else:
                _check_bucket(place.root)
            raise FileNotFoundError(errno.ENOENT, "there is no such object") from None
        except ValueError:
            raise OSError(errno.EINVAL, ODD) from None
        except (BaseError, OSError) as exc:
            cut = _CUT if doing == "read" else _UNSENT
            if wait is None or not cut.search(str(exc)):
                raise _of_web(path, exc) if place.web else failure(path, exc, doing) from None
            time.sleep(wait)
        else:
            if place.web:
                WEB.answered(_host(path))
            return found
    raise AssertionError("the last try returns or raises")


def _host(path: str) -> str:
    return urlsplit(path).netloc.rpartition("@")[2]


def _of_web(path: str, error: BaseException) -> Exception:
    """Of a web address; see the module."""
    host, why = _host(path), _said(error)
    if re.match(SIGNED, path):
        return failure(path, error)
    if _STATUS.search(str(error)):
        WEB.answered(host)
        return Unanswered(f"{host} answers: {why}")
    if WEB.is_away(host):
        return StoreError(
            f"cannot read {unsigned(path)}: {why}, as of the {SILENT} web servers before it, and none has answered in "
            "between: this machine seems to be without a network; run the same command again once that is mended"
        )
    return Unanswered(f"{host} does not answer: {why}")


def failure(path: str, error: BaseException, doing: str = "read") -> StoreError:
    """What a store says, for a person."""
    said, why = str(error), _said(error)
    if odd := _UNLISTED.search(said):
        return StoreError(
            f"cannot list {path}: there is an object {odd[1]!a}, and obstore lists none with a control character, "
            "`//`, or `.` or `..` between slashes; rename it, or name the others in a --list"
        )
    if _NO_BUCKET.search(said):
        why = f"there is no such bucket ({why})"
    elif _DENIED.search(said):
        why = f"access denied ({why})"
    elif "error sending request" in said:
        why = f"{_endpoint(path)} does not answer ({why})"
    return StoreError(f"cannot {doing} {unsigned(path)}: {why}; run the same command again once that is mended")


def _endpoint(path: str) -> str:
    """Who is asked for an object, for a person."""
    named = [os.environ.get(name) for name in _ENDPOINTS] if path.startswith("s3://") else []
    return next((f"the endpoint {unsigned(one)}" for one in named if one), f"the store of {urlsplit(path).scheme}://")


def _said(error: BaseException) -> str:
    """What a store says, without what it was asked with: addresses may hold what grants access."""
    said = str(error).partition("Debug source")[0]
    answers = ", ".join(one.strip() for found in _ANSWER.findall(said) for one in found if one)
    return one_line(Exception(_ADDRESS.sub("…", answers or said)), 200)
