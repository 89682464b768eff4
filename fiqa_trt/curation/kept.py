"""The rows of a scores file that are kept, as delivery asks for them."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from fiqa_trt.inputs.address import SEPARATOR, Address, rooted
from fiqa_trt.scores.files import output_metadata, read_output, read_schema, with_metadata
from fiqa_trt.scores.schema import own_types
from fiqa_trt.storage.places import Place

if TYPE_CHECKING:
    import pyarrow as pa

Mask = npt.NDArray[np.bool_]
STAMP = ("bytes", "modified")  # columns by which it is told whether a file has changed
ROOT = "root"  # what the metadata of kept rows call it
_OWN = ("path", "score", "status")


class KeptImage(NamedTuple):
    """Where the image of a kept row is.

    Attributes:
        row: number among the kept rows.
        path: as recorded.
        address: the same.
    """

    row: int
    path: str
    address: Address


class Kept:
    """The rows of a scores file that are kept.

    Whole rows are streamed from the file, in its order, whenever they are asked for. All else that is asked of it is
    read in a single pass, when it is asked for first, and held.

    Attributes:
        scores: the file.
        mask: bool [its rows].
        image_column: see `read_output`.
    """

    def __init__(self, scores: Place, mask: Mask, image_column: str | None = None) -> None:
        self.scores = scores
        self.mask = mask
        self.image_column = image_column
        self._count = int(mask.sum())  # is asked for with every image
        self._schema: pa.Schema | None = None

    def __len__(self) -> int:
        return self._count

    def tables(self) -> Iterator[pa.Table]:
        """Whole rows. Raises InputError as `read_output`."""
        import pyarrow as pa

        for table, kept in self._parts():
            if kept.any():
                yield table.filter(pa.array(kept))

    def images(self) -> Iterator[KeptImage]:
        """Where the images are. Raises InputError as `read_output`."""
        paths = (path for chunk in self.stamps["path"].chunks for path in chunk.to_pylist())
        for row, path in enumerate(paths):
            yield KeptImage(row, path, Address.parse(path))

    @property
    def schema(self) -> pa.Schema:
        """That of the file. Raises InputError as `read_schema`."""
        if self._schema is None:
            self._schema = read_schema(self.scores, _OWN)
        return self._schema

    @property
    def stamps(self) -> pa.Table:
        """See `stamps_of`."""
        return self._survey[1]

    @property
    def root(self) -> str:
        """The deepest folder that holds every image of the file, kept or not, absolute.

        So an image has the same place in every output, whatever is kept beside it. A file that `filter` made of another
        one says where the images of that began.
        """
        found = self._survey[0]
        recorded = (output_metadata(self.scores) or {}).get(ROOT)
        if isinstance(recorded, str) and os.path.isabs(recorded) and os.path.commonpath([recorded, found]) == recorded:
            return recorded
        return found

    def described(self, schema: pa.Schema, root: str | None = None) -> pa.Schema:
        """A schema of kept rows with what the file says of its run, and where they are from.

        `root`: where the tree of their images starts; by default that of the file.
        """
        metadata = output_metadata(self.scores)
        if metadata is None:
            return schema
        return with_metadata(schema, {**metadata, "filtered_from": str(self.scores), ROOT: root or self.root})

    @functools.cached_property
    def _survey(self) -> tuple[str, pa.Table]:
        """The folder above all images, and the stamps of the kept ones."""
        import pyarrow as pa

        root, stamps = "", list[pa.Table]()
        for table, kept in self._parts():
            root = _above(root, table["path"])
            stamps.append(stamps_of(table).filter(pa.array(kept)))
        return root or os.getcwd(), pa.concat_tables(stamps)

    def _parts(self) -> Iterator[tuple[pa.Table, Mask]]:
        """All rows, and which of them are kept."""
        start = 0
        for table in read_output(self.scores, _OWN, self.image_column):
            self._schema = self._schema or table.schema
            yield table, self.mask[start : start + table.num_rows]
            start += table.num_rows


def stamps_of(table: pa.Table) -> pa.Table:
    """The column `path` of an output, and `bytes` and `modified` as numbers; null in one of a version without them."""
    import pyarrow as pa

    columns = {"path": table["path"].cast(pa.large_string())}
    for name in STAMP:
        if name in table.column_names and table.schema.field(name).type == own_types([])[name]:
            columns[name] = table[name].cast(pa.int64())
        else:
            columns[name] = pa.chunked_array([pa.nulls(table.num_rows, pa.int64())])
    return pa.table(columns)


def _above(root: str, paths: pa.ChunkedArray) -> str:
    """The deepest folder that holds `root`, if that is one, and every image of some recorded paths."""
    import pyarrow.compute as pc

    special = pc.or_(pc.match_substring(paths, SEPARATOR), pc.starts_with(paths, "file:"))
    plain = pc.replace_substring_regex(paths.filter(pc.invert(special)), "[^/]*$", "").unique().to_pylist()
    known = dict[str, bool]()
    files = {Address.parse(path, known).file for path in paths.filter(special).to_pylist()}
    folders = {rooted(folder) for folder in {*plain, *map(os.path.dirname, files)}}
    if not folders:
        return root
    return os.path.commonpath([*folders, root] if root else list(folders))
