"""Where an image is that a table names."""

from __future__ import annotations

import os

from fiqa_trt.inputs.address import SEPARATOR, open_path
from fiqa_trt.inputs.containers.registry import is_shard

Place = tuple[str, str | None]


def locate(recorded: str, known: dict[str, bool] | None = None) -> Place:
    """The file to open for a recorded path, and the key of the image in it: None for a plain file, empty for a shard
    as such. `known` remembers, for many paths at a time, which shards are there.
    """
    path = open_path(recorded)
    at = path.find(SEPARATOR)
    while at >= 0:
        if _is_there(path[:at], known):
            return path[:at], path[at + len(SEPARATOR) :]
        at = path.find(SEPARATOR, at + 1)
    return path, "" if _is_there(path, known) else None


def sought(recorded: str) -> str:
    """A recorded path, and where it is looked for, for a message that it is not there."""
    return recorded if os.path.isabs(open_path(recorded)) else f"{recorded}, which is looked for in {os.getcwd()}"


def _is_there(path: str, known: dict[str, bool] | None) -> bool:
    if not is_shard(path):
        return False
    if known is None:
        return os.path.isfile(path)
    if path not in known:
        known[path] = os.path.isfile(path)
    return known[path]
