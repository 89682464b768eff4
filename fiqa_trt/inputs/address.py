"""Where an image is, and how that stands in a table.

A file is recorded by its path. An image in a container (see `containers`) as `shard.tar::member`, `table.parquet::row`
or, where its column is not the usual one, `table.parquet::column::row`: all it takes to find it again, so such paths
may stand in lists and outputs like any other.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from fiqa_trt.inputs.containers.registry import TABLES, is_container, is_table
from fiqa_trt.storage.registry import is_stored, store_of

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_COLUMN = "image"
SEPARATOR = "::"
_SCHEME = "file:"


class Address(NamedTuple):
    """Where an image is.

    Attributes:
        file: that it is, or that it is in, in Python's own form of a file name.
        key: of it in a container; None for a file that is the image, empty for a container as such.
        column: of a table, with the images; see `containers.columns`.
    """

    file: str
    key: str | None = None
    column: str = DEFAULT_COLUMN

    @classmethod
    def parse(cls, recorded: str, known: dict[str, bool] | None = None) -> Address:
        """The address that a recorded path is; `known` remembers, for many of them, which containers are there."""
        path = as_path(recorded)
        at = path.find(SEPARATOR)
        while at >= 0:
            file, key = path[:at], path[at + len(SEPARATOR) :]
            if _is_there(file, known):
                if not is_table(file):
                    return cls(file, key)
                named, separator, row = key.rpartition(SEPARATOR)  # no row has one in it
                return cls(file, row, named if separator else DEFAULT_COLUMN)
            at = path.find(SEPARATOR, at + 1)
        return cls(path, "" if _is_there(path, known) else None)

    @property
    def recorded(self) -> str:
        """As it stands in a table; reversed by `parse`."""
        if not self.key:
            return record_path(self.file)
        named = self.column + SEPARATOR if self.column != DEFAULT_COLUMN and is_table(self.file) else ""
        return record_path(f"{self.file}{SEPARATOR}{named}{self.key}")


def with_column(paths: pa.Array | pa.ChunkedArray, column: str) -> pa.Array | pa.ChunkedArray:
    """Recorded paths with a column named in those that are in tables and name none."""
    import pyarrow.compute as pc

    if column == DEFAULT_COLUMN:
        return paths
    plain = pc.invert(pc.starts_with(paths, _SCHEME))
    for encode, where in ((str, plain), (quote, pc.invert(plain))):
        between, named = encode(SEPARATOR), encode(column).replace("\\", r"\\")
        pattern = rf"(?is)^(.*(?:{'|'.join(map(re.escape, TABLES))})){between}([0-9]+(?:/[0-9]+)?)$"
        renamed = pc.replace_substring_regex(paths, pattern, rf"\1{between}{named}{between}\2")
        paths = pc.if_else(where, renamed, paths)
    return paths


def _is_there(path: str, known: dict[str, bool] | None) -> bool:
    if not is_container(path):
        return False
    if known is None:
        return store_of(path).is_file(path)
    if path not in known:
        known[path] = store_of(path).is_file(path)
    return known[path]


def record_path(path: str | bytes) -> str:
    """A path as it stands in a table: itself if it is valid UTF-8, else a percent-encoded `file:` URI (RFC 8089).

    Accepts bytes or Python's own form of a file name (surrogateescape). Reversed by `as_path`.
    """
    name = os.fsdecode(path)
    if not name.startswith(_SCHEME):
        try:
            name.encode()
        except UnicodeEncodeError:
            pass
        else:
            return name
    return as_uri(name)


def as_uri(name: str) -> str:
    """A path, in Python's own form of a file name, as a `file:` URI."""
    return _SCHEME + ("//" if name.startswith("/") else "") + quote(os.fsencode(name))


def as_path(recorded: str) -> str:
    """The path to open for a recorded one: `file:` URIs are decoded, anything else is taken as it stands; so is the URI
    of a file on another host.
    """
    if not recorded.startswith(_SCHEME):
        return recorded
    rest = recorded[len(_SCHEME) :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host not in ("", "localhost"):
            return recorded
        rest = slash + path
    return os.fsdecode(unquote_to_bytes(rest))


def rooted(file: str) -> str:
    """A file's path from the root on, without detours; an object's as if the stores were there: `/s3:/bucket/key`."""
    if is_stored(file):
        scheme, _, rest = file.partition("://")
        return f"/{scheme}:/{rest}".rstrip("/")
    return os.path.normpath(os.path.abspath(file))


def sought(recorded: str) -> str:
    """A recorded path, and where it is looked for, for a message that it is not there."""
    if os.path.isabs(as_path(recorded)) or is_stored(recorded):
        return recorded
    return f"{recorded}, which is looked for in {os.getcwd()}"
