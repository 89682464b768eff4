"""The kinds of files that hold many images, by their suffixes. Another kind costs a module here, and a line."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fiqa_trt.inputs.containers.base import Container


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of containers.

    Attributes:
        module: in this package, imported when it is needed.
        name: of its class there: see `base.Container`.
        table: it has rows, and a column that holds the images; otherwise members with names, like files in folders.
    """

    module: str
    name: str
    table: bool = False

    def open(self, path: str, column: str | None) -> Container:
        """Open a file. Arguments and errors as of `reader.open_container`."""
        made: Callable[..., Container] = getattr(
            importlib.import_module(f"fiqa_trt.inputs.containers.{self.module}"), self.name
        )
        return made(path, column) if self.table else made(path)


TAR = ".tar"
KINDS = {
    TAR: Kind("tar", "TarContainer"),
    ".zip": Kind("zip", "ZipContainer"),
    ".parquet": Kind("tables", "TableContainer", table=True),
    ".arrow": Kind("tables", "TableContainer", table=True),
}
CONTAINERS = tuple(KINDS)
TABLES = tuple(suffix for suffix, kind in KINDS.items() if kind.table)


def is_container(path: str) -> bool:
    """Whether a path has a container's suffix."""
    return path.lower().endswith(CONTAINERS)


def is_table(path: str) -> bool:
    """Whether a path has a table's suffix."""
    return path.lower().endswith(TABLES)


def kind_of(path: str) -> Kind:
    """The kind of a container, by its suffix."""
    return next(kind for suffix, kind in KINDS.items() if path.lower().endswith(suffix))
