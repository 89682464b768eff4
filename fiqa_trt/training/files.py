"""Which files the paths of a table mean."""

from __future__ import annotations

import os
from collections.abc import Iterable

from fiqa_trt.errors import InputError, number_of
from fiqa_trt.inputs.address import as_path
from fiqa_trt.inputs.formats import SUFFIXES
from fiqa_trt.storage.base import is_remote


def files_of(paths: list[str], folder: str, name: str, *, below: bool) -> tuple[list[str], list[str]]:
    """The files that the paths of a table mean, in one spelling each, and what to say about it.

    Args:
        paths: as the table has them.
        folder: where relative ones start.
        name: of the table.
        below: look in the folders of `folder` as well for what is not where it should be.
    """
    stems: dict[str, dict[str, list[str]]] = {}
    found: list[tuple[str, str]] = []
    tree: _Tree | None = None

    def file(written: str) -> str:
        nonlocal tree
        path = os.path.join(folder, as_path(written))
        if is_remote(path):
            return path
        path = os.path.normpath(path)
        parent, own = os.path.split(path)
        if "::" in path or os.path.exists(path):
            return path
        if "\\" in written and "/" not in written:  # a table made on Windows
            return file(written.replace("\\", "/"))
        if parent not in stems:
            stems[parent] = {}
            for there in _images(os.listdir(parent) if os.path.isdir(parent) else ()):
                stems[parent].setdefault(os.path.splitext(there)[0], []).append(there)
        meant = stems[parent].get(own, [])
        if len(meant) > 1:
            raise InputError(f"{name}: {written} may be {' or '.join(meant)}; write the extension")
        if meant or not below:
            return os.path.join(parent, meant[0]) if meant else path
        tree = tree or _Tree(folder)
        ends = tree.ending(os.path.relpath(path, folder))
        if len(ends) > 1:
            raise InputError(f"{name}: {written} may be {ends[0]} or {ends[1]}; write more of its path")
        if ends:
            found.append((written, ends[0]))
        return ends[0] if ends else path

    files = [file(path) for path in paths]
    if not found:
        return files, []
    distinct = len({there for _, there in found})
    return files, [f"{number_of(distinct, 'image')} found by the end of the path, such as {' = '.join(found[0])}"]


def _images(names: Iterable[str]) -> list[str]:
    """Those that are names of images, in order; a caption beside an image has its stem as well."""
    return sorted(name for name in names if name.lower().endswith(SUFFIXES))


class _Tree:
    """The images below a folder, by their names and by these without extension."""

    def __init__(self, folder: str) -> None:
        self.files: dict[str, list[str]] = {}
        for parent, folders, names in os.walk(folder, followlinks=True):
            folders.sort()
            for name in _images(names):
                for key in {name, os.path.splitext(name)[0]}:
                    self.files.setdefault(key, []).append(os.path.join(parent, name))

    def ending(self, path: str) -> list[str]:
        """Those whose path ends in whole names like `path`, with its extension or, if none is, without."""
        parent, own = os.path.split(path)
        end = f"/{parent}".rstrip("/")
        ends = [each for each in self.files.get(own, []) if f"/{os.path.dirname(each)}".endswith(end)]
        return [each for each in ends if os.path.basename(each) == own] or ends
