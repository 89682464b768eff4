"""The stores, by the schemes of the paths that are in them. Another store costs a module here, and a line."""

from __future__ import annotations

from importlib import import_module

from fiqa_trt.storage.base import Store
from fiqa_trt.storage.local import LocalStore

# By scheme, as "s3": "fiqa_trt.storage.s3". Each module has a function `opened`, which takes nothing and is called for
# each path, so that it gives the same store each time.
STORES = dict[str, str]()
_LOCAL = LocalStore()


def store_of(path: str) -> Store:
    """The store that a path is in: by its scheme, or else this machine's."""
    scheme, found, _ = path.partition("://")
    if found and scheme in STORES:
        store: Store = import_module(STORES[scheme]).opened()
        return store
    return _LOCAL


def in_object_store(path: str) -> bool:
    """Whether a path is an address that every machine can read."""
    scheme, found, _ = path.partition("://")
    return bool(found) and scheme in STORES
