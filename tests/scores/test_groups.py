"""The ledger of groups against a plain count."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.scores.groups import STEPS, Ledger


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, STEPS) | st.none()), max_size=60), st.integers(1, 600))
def test_a_ledger_is_a_plain_count(rows: list[tuple[int, int | None]], times: int) -> None:
    ledger = Ledger()
    for number, step in rows:
        score = np.float32(np.nan if step is None else np.float32(step / STEPS))
        ledger.add(pa.array([f"g{number}"] * times), np.full(times, score))
    groups, runs = ledger.groups()
    assert sorted(g.name for g in groups) == sorted({f"g{number}" for number, _ in rows})
    for step in (0, 1, 500, STEPS):
        plain = {g.name: times * sum(s is not None and s >= step for n, s in rows if f"g{n}" == g.name) for g in groups}
        assert dict(zip(plain, runs.left(step), strict=True)) == plain
