"""What is new, changed, unchanged and gone of a data set, against its output."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.runs.update import compare
from fiqa_trt.storage.base import microseconds

origins = st.lists(
    st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 1), st.none() | st.integers(0, 1)), max_size=6
)


@pytest.mark.slow
@given(st.integers())
def test_a_recorded_time_fits_every_format(modified_ns: int) -> None:
    found = microseconds(modified_ns)
    if found is not None:
        assert found == modified_ns // 1000
        assert 1 <= pa.scalar(found, pa.timestamp("us")).as_py().year <= 9999


@pytest.mark.slow
@given(origins, origins)
def test_every_row_is_accounted_for(now: list[Any], then: list[Any]) -> None:
    def table(found: list[Any]) -> pa.Table:
        paths, sizes, times = zip(*found, strict=True) if found else ((), (), ())
        columns = [pa.array(paths, pa.string()), pa.array(sizes, pa.int64()), pa.array(times, pa.timestamp("us"))]
        return pa.table(columns, names=["path", "bytes", "modified"])

    changes = compare(table(now), table(then))
    known = [path for path, *_ in then]
    assert len(changes.source) == len(now)
    assert changes.new + changes.changed + changes.kept == len(now)
    assert changes.new == sum(path not in known for path, *_ in now)
    assert [known[row] for row in changes.gone] == [path for path in known if path not in {p for p, *_ in now}]
    for (path, size, moment), row in zip(now, changes.source, strict=True):
        first = then[known.index(path)] if path in known else None
        alike = first is not None and first[2] == moment and (first[1] == size or (size is None and moment is not None))
        assert row == (known.index(path) if alike else -1)
