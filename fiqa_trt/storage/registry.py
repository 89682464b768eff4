"""The stores, by the schemes of the paths that are in them. Another store costs a module here, and a line."""

from __future__ import annotations

from importlib import import_module

from fiqa_trt.errors import OutputError
from fiqa_trt.storage.base import NOT_WRITTEN, Store, Writer, unsigned
from fiqa_trt.storage.local import LocalStore

# By scheme. Each module has a function `opened`, which takes nothing and is called for each path, so that it gives the
# same store each time.
STORES = dict.fromkeys(("s3", "gs", "az", "abfs", "abfss", "http", "https"), "fiqa_trt.storage.objects")
STORES["hf"] = "fiqa_trt.storage.hub"
_LOCAL = LocalStore()
# Those of them that outputs are written into.
_WRITTEN = frozenset(("s3", "gs", "az", "abfs", "abfss"))


def is_stored(path: str) -> bool:
    """Whether a path is in a store other than this machine's."""
    scheme, found, _ = path.partition("://")
    return bool(found) and scheme.lower() in STORES


def store_of(path: str) -> Store:
    """The store that a path is in: by its scheme, or else this machine's.

    Raises:
        UsageError: the library for such paths is not installed.
    """
    if not is_stored(path):
        return _LOCAL
    store: Store = import_module(STORES[path.partition("://")[0].lower()]).opened()
    return store


def writer_of(path: str) -> Writer:
    """The store that an output is written into, which is none of this machine's.

    Raises:
        UsageError: the library for such paths is not installed.
        OutputError: nothing is written there.
    """
    scheme = path.partition("://")[0].lower()
    if scheme not in _WRITTEN:
        raise OutputError(f"cannot write {unsigned(path)}: {NOT_WRITTEN}")
    writer: Writer = import_module(STORES[scheme]).opened()
    return writer
