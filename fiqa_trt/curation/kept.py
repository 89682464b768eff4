"""The rows of a scores file that are kept."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fiqa_trt.inputs.address import SEPARATOR
from fiqa_trt.inputs.places import locate
from fiqa_trt.scores.files import output_metadata, read_output

if TYPE_CHECKING:
    import pyarrow as pa

Mask = npt.NDArray[np.bool_]
ROOT = "root"  # what the metadata of kept rows call it


def kept_rows(scores: Path, mask: Mask) -> Iterator[pa.Table]:
    """The rows of a scores file that a mask keeps, streamed, in the file's order."""
    import pyarrow as pa

    start = 0
    for table in read_output(scores, ["path", "score", "status"]):
        part = mask[start : start + table.num_rows]
        start += table.num_rows
        if part.any():
            yield table.filter(pa.array(part))


def common_root(scores: Path) -> str:
    """The deepest folder that holds every image of the file, kept or not, absolute.

    So an image has the same place in every output, whatever is kept beside it. A file that `filter` made of another one
    says where the images of that began.
    """
    import pyarrow.compute as pc

    found: str | None = None
    for table in read_output(scores, ["path"]):
        paths = table["path"]
        special = pc.or_(pc.match_substring(paths, SEPARATOR), pc.starts_with(paths, "file:"))
        plain = pc.replace_substring_regex(paths.filter(pc.invert(special)), "[^/]*$", "").unique().to_pylist()
        known = dict[str, bool]()
        files = {locate(path, known)[0] for path in paths.filter(special).to_pylist()}
        folders = {os.path.normpath(os.path.abspath(folder)) for folder in {*plain, *map(os.path.dirname, files)}}
        if folders:
            found = os.path.commonpath([*folders, found] if found else list(folders))
    found = found or os.getcwd()
    recorded = (output_metadata(scores) or {}).get(ROOT)
    above = isinstance(recorded, str) and os.path.isabs(recorded) and os.path.commonpath([recorded, found]) == recorded
    return str(recorded) if above else found
