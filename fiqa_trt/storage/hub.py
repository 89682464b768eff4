"""Repositories of the Hugging Face Hub, for reading: `hf://datasets/ORG/NAME[@REVISION]/path`.

A file is opened at the commit that its name leads to at that moment, so that all parts are of one. The Hub allows some
thousand requests in five minutes: enough for shards and tables, too few for a folder of single images.
"""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

from fiqa_trt.errors import StoreError, one_line
from fiqa_trt.libraries import require
from fiqa_trt.outcomes import ImageError, Origin, Status
from fiqa_trt.storage.base import MAX_BYTES, Read, Stamp
from fiqa_trt.storage.remote import RemoteEntry, RemoteFile, number_of

T = TypeVar("T")

_TRIES = 3  # of what came in part
_KINDS = {"datasets": "dataset", "spaces": "space"}


class _Place(NamedTuple):
    """Where a file of the Hub is."""

    kind: str
    repository: str
    revision: str | None
    path: str

    @property
    def root(self) -> str:
        """What its address begins with."""
        kind = next((f"{name}/" for name, kind in _KINDS.items() if kind == self.kind), "")
        return f"hf://{kind}{self.repository}" + (f"@{self.revision}" if self.revision else "")


def _place(address: str) -> _Place:
    """Raises StoreError for an address that names no repository."""
    parts = address.partition("://")[2].split("/")
    kind = _KINDS.get(parts[0], "model")
    parts = parts[1:] if parts[0] in _KINDS else parts
    if len(parts) < 2 or not all(parts[:2]):
        raise StoreError(f"cannot read {address}: name a repository, as in hf://datasets/ORG/NAME/path")
    name, _, revision = parts[1].partition("@")
    return _Place(kind, f"{parts[0]}/{name}", revision or None, "/".join(parts[2:]).rstrip("/"))


def _ask(address: str, request: Callable[[], T]) -> T:
    """The answer to a request about an address; huggingface_hub has tried again by itself.

    Raises:
        FileNotFoundError: no such file.
        StoreError: anything else.
    """
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        return request()
    except EntryNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "there is no such file on the Hub") from None
    except (RepositoryNotFoundError, GatedRepoError):
        why = "there is no such repository, or no access to it (hf auth login, or HF_TOKEN)"
        raise StoreError(f"cannot read {address}: {why}") from None
    except (HfHubHTTPError, OSError) as exc:
        raise _failed(address, exc) from None
    except Exception as exc:  # of the library that it speaks HTTP with, which has changed before
        raise _failed(address, exc) from None


def _failed(address: str, error: Exception) -> StoreError:
    return StoreError(f"cannot read {address}: {one_line(error, 200)}; run the same command again once that is mended")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(endpoint=_endpoint())


def _url(place: _Place, revision: str | None = None) -> str:
    from huggingface_hub import hf_hub_url

    return hf_hub_url(
        place.repository,
        place.path,
        repo_type=place.kind,
        revision=revision or place.revision,
        endpoint=_endpoint(),
    )


class _File(NamedTuple):
    """A file at a commit."""

    url: str
    size: int
    stamp: Stamp


@functools.lru_cache(maxsize=4096)
def _file(address: str) -> _File:
    """What an address leads to, as long as the process lives. Raises as `_ask`."""
    from huggingface_hub import get_hf_file_metadata

    place = _place(address)
    if not place.path:
        raise FileNotFoundError(errno.ENOENT, "a repository, not a file of one")
    found = _ask(address, lambda: get_hf_file_metadata(_url(place), endpoint=_endpoint(), retry_on_errors=True))
    if found.size is None:
        raise StoreError(f"cannot read {address}: the Hub does not say its size")
    stamp = Stamp(0, number_of(found.etag or ""), found.size, 0, 0)
    return _File(_url(place, found.commit_hash), found.size, stamp)


def _bytes(address: str, file: _File, start: int, stop: int) -> bytes:
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import hf_raise_for_status, http_backoff

    headers = {**build_hf_headers(), "Range": f"bytes={start}-{stop - 1}", "Accept-Encoding": "identity"}

    def request() -> bytes:
        answer = http_backoff("GET", file.url, headers=headers, follow_redirects=True, timeout=60)
        hf_raise_for_status(answer)
        # Some answer with the whole file.
        return bytes(answer.content if answer.status_code == 206 else answer.content[start:stop])

    for _ in range(_TRIES):
        data = _ask(address, request)
        if len(data) == stop - start:
            return data
    raise StoreError(f"cannot read {address}: {len(data)} bytes came of {stop - start}")


class HubStore:
    """See `base.Store`. Everything that is asked of it may raise StoreError as well."""

    def read(self, path: str, max_bytes: int = MAX_BYTES) -> Read:
        """See `Store.read`."""
        try:
            file = _file(path)
        except FileNotFoundError as exc:
            return Read(ImageError(Status.MISSING, str(exc.strerror)))
        origin = Origin(file.size)
        if file.size > max_bytes:
            return Read(ImageError(Status.TOO_LARGE, f"{file.size} bytes, more than {max_bytes}"), origin)
        if not file.size:
            return Read(ImageError(Status.EMPTY, "0 bytes"), origin)
        return Read(_bytes(path, file, 0, file.size), origin)

    def head(self, path: str, count: int) -> bytes:
        """See `Store.head`."""
        with self.open(path) as file:
            return file.read_at(0, count)

    def open(self, path: str) -> RemoteFile:
        """See `Store.open`."""
        file = _file(path)
        return RemoteFile(path, file.size, file.stamp, functools.partial(_bytes, path, file))

    def for_arrow(self, path: str, *, mapped: bool = False) -> Any:
        """See `Store.for_arrow`."""
        import pyarrow as pa

        return pa.PythonFile(self.open(path).raw, mode="r")

    def stamp(self, path: str) -> Stamp | None:
        """See `Store.stamp`."""
        try:
            return _file(path).stamp
        except FileNotFoundError:
            return None

    def origin(self, path: str) -> Origin:
        """See `Store.origin`."""
        stamp = self.stamp(path)
        return Origin() if stamp is None else Origin(stamp.size)

    def is_file(self, path: str) -> bool:
        """See `Store.is_file`."""
        return not path.endswith("/") and self.stamp(path) is not None

    def is_folder(self, path: str) -> bool:
        """See `Store.is_folder`."""
        if self.is_file(path):
            return False
        next(self._tree(path, recursive=False), None)
        return True

    def entries(self, folder: str) -> Iterator[RemoteEntry]:
        """See `Store.entries`."""
        return self._tree(folder, recursive=False)

    def below(self, folder: str) -> Iterator[RemoteEntry]:
        """See `Store.below`."""
        return (entry for entry in self._tree(folder, recursive=True) if entry.is_file())

    def _tree(self, folder: str, *, recursive: bool) -> Iterator[RemoteEntry]:
        from huggingface_hub import RepoFolder

        place = _place(folder)
        found = _api().list_repo_tree(
            place.repository, place.path or None, recursive=recursive, revision=place.revision, repo_type=place.kind
        )
        pages = iter(found)
        while (each := _ask(folder, lambda: next(pages, None))) is not None:
            name, inside = each.path.rpartition("/")[2], isinstance(each, RepoFolder)
            yield RemoteEntry(f"{place.root}/{each.path}{'/' if inside else ''}", name, inside)


_STORE = HubStore()


def opened() -> HubStore:
    """The store of the Hub. Raises UsageError if what reads it is not installed."""
    require("huggingface_hub", "the Hugging Face Hub needs a library: pip install 'fiqa-trt[hf]'")
    return _STORE
