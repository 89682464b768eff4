"""Where an image is, as it stands in a table."""

from __future__ import annotations

import os
from urllib.parse import quote, unquote_to_bytes

_SCHEME = "file:"


def record_path(path: str | bytes) -> str:
    """A path as it stands in a table: itself if it is valid UTF-8, else a percent-encoded `file:` URI (RFC 8089).

    Accepts bytes or Python's own form of a file name (surrogateescape). Reversed by `open_path`.
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


def open_path(recorded: str) -> str:
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


SEPARATOR = "::"
