"""What has changed in a data set since it was scored: which rows stay, which inputs are to be scored, which are gone.

An input is known by its recorded path, and unchanged if the size and the modification time of its file (of a member of
a shard: the time of the shard) are those that its row has.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Rows = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Changes:
    """An earlier output against the inputs that there are now.

    Attributes:
        source: int64 [inputs], the row of the output that each input keeps; -1 for one that is to be scored.
        gone: int64, rows of the output whose paths are no inputs any more, in order.
        new: inputs that the output does not have.
        changed: inputs whose file is another one by its size or its time.
    """

    source: Rows
    gone: Rows
    new: int
    changed: int

    @property
    def kept(self) -> int:
        """Inputs that keep their rows."""
        return len(self.source) - self.new - self.changed

    def __str__(self) -> str:
        """For a person."""
        return f"{self.new:,} new, {self.changed:,} changed, {self.kept:,} unchanged, {len(self.gone):,} gone"


def compare(inputs: pa.Table, output: pa.Table) -> Changes:
    """Compare the columns `path`, `bytes` and `modified` of the inputs and of an earlier output.

    Null, for what could not be read, equals null. Of several rows of one path the first counts.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    paths = output["path"].combine_chunks()
    found = pc.index_in(inputs["path"].combine_chunks(), value_set=paths)
    there = pc.is_valid(found)
    same = there
    for name in ("bytes", "modified"):
        now, then = inputs[name].combine_chunks(), output[name].combine_chunks().take(found)
        both_null = pc.and_(pc.is_null(now), pc.is_null(then))
        same = pc.and_(same, pc.or_(both_null, pc.fill_null(pc.equal(now, then), False)))
    source = np.asarray(pc.fill_null(pc.if_else(same, found, pa.scalar(None, found.type)), -1).to_numpy(), np.int64)
    lost = pc.invert(pc.is_in(paths, value_set=inputs["path"].combine_chunks()))
    gone = np.flatnonzero(lost.to_numpy(zero_copy_only=False))
    new = len(source) - int(pc.sum(there).as_py() or 0)
    return Changes(source, gone.astype(np.int64), new, int((source < 0).sum()) - new)
