import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.inputs.address import as_path, record_path
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.outcomes import Origin, Outcome, Status
from fiqa_trt.scores.schema import own_columns, to_table

pieces = (
    b"file:",
    b"FILE:",
    b"/",
    b"//",
    b"localhost",
    b"host",
    b"::",
    b"\n",
    b"\r",
    b" ",
    b"%",
    b"%41",
    b"\xff",
    b"\xe9",
)
names = st.one_of(
    st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw),
    st.lists(st.sampled_from((*pieces, b"a", b".jpg", b"?x#y", b'"', b"\xef\xbb\xbf")), min_size=1).map(b"".join),
)


@given(names)
def test_every_file_name_survives_the_round_trip(raw: bytes) -> None:
    recorded = record_path(raw)
    assert os.fsencode(as_path(recorded)) == raw
    assert pa.array([recorded], pa.string()).to_pylist() == [recorded]


@pytest.mark.slow
@given(names, names)
def test_different_names_are_recorded_differently(one: bytes, other: bytes) -> None:
    assert (record_path(one) == record_path(other)) == (one == other)


@pytest.mark.parametrize("name", ["a/b.jpg", "/data/Zoë/ß 😀.jpg", "back\\slash\\xff.jpg", "100%.jpg"])
def test_utf8_names_stand_as_they_are(name: str) -> None:
    assert record_path(name) == name


def test_other_names_are_file_uris() -> None:
    assert record_path(b"/data/caf\xe9.jpg") == "file:///data/caf%E9.jpg"
    assert record_path(b"sub/caf\xe9.jpg") == "file:sub/caf%E9.jpg"
    assert as_path("file://localhost/data/a%20b.jpg") == "/data/a b.jpg"
    assert as_path("file://host/data/a%20b.jpg") == "file://host/data/a%20b.jpg"


sides = st.none() | st.integers() | st.floats()


@pytest.mark.slow
@given(st.sampled_from(Status), sides, sides, st.none() | st.text(st.characters(categories=None)))
def test_an_outcome_holds_nothing_that_its_row_cannot(
    status: Status, width: float | None, height: float | None, error: str | None
) -> None:
    outcome = Outcome(status, width, height, error)  # type: ignore[arg-type]  # as decoders may say them
    row = to_table(pa.table({"path": ["a"]}), [outcome], [Origin()], np.ones((1, 2), np.float32), MEMBERS).to_pylist()[
        0
    ]
    assert row["status"] == status.value
    assert (row["score"] is None) == (row["error"] is not None) == (status is not Status.OK)
    assert (row["width"], row["height"]) == (outcome.width, outcome.height)
    if width is not None and height is not None and 1 <= width < 2**31 and 1 <= height < 2**31:
        assert (row["width"], row["height"]) == (int(width), int(height))
    else:
        assert row["width"] is row["height"] is None
    if row["error"] is not None:
        assert len(row["error"].splitlines()) == 1
        assert len(row["error"]) <= 300


def test_rows_keep_to_their_inputs() -> None:
    inputs = pa.table({"path": ["a", "b", "c"], "person": [1, 2, 3]})
    outcomes = [Outcome(Status.OK, 10, 20), Outcome(Status.EMPTY, error="0 bytes"), Outcome(Status.OK, 1, 2)]
    scores = np.array([[0.2, 0.4], [np.nan, np.nan], [1.0, 0.5]], np.float32)
    origins = [Origin(5, 1_700_000_000_000_001), Origin(0, 1), Origin()]
    table = to_table(inputs, outcomes, origins, scores, MEMBERS)
    assert table.column_names == [*own_columns(MEMBERS), "person"]
    assert table["score"].to_pylist() == [pytest.approx(0.3), None, 0.75]
    assert table["score_mobilenet_v3_small"].null_count == 1
    assert table["status"].to_pylist() == ["ok", "empty", "ok"]
    assert table["person"].to_pylist() == [1, 2, 3]
    assert table["bytes"].to_pylist() == [5, 0, None]
    assert table["modified"].cast(pa.int64()).to_pylist() == [1_700_000_000_000_001, 1, None]
    with pytest.raises(ValueError, match="not one for each"):
        to_table(inputs, outcomes[:2], origins, scores, MEMBERS)
