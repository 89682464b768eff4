"""Files that hold many images, by their names."""

from __future__ import annotations

from fiqa_trt.inputs.containers.tables import TABLES

TAR = ".tar"


def is_shard(path: str) -> bool:
    """Whether a path has a shard's suffix."""
    return path.lower().endswith((TAR, *TABLES))


def is_table(path: str) -> bool:
    """Whether a path has a table's suffix."""
    return path.lower().endswith(TABLES)
