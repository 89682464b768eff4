import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.records import Outcome, Status, open_path, own_columns, record_path, to_table
from fiqa_trt.spec import MEMBERS

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
    assert os.fsencode(open_path(recorded)) == raw
    assert pa.array([recorded], pa.string()).to_pylist() == [recorded]


@given(names, names)
def test_different_names_are_recorded_differently(one: bytes, other: bytes) -> None:
    assert (record_path(one) == record_path(other)) == (one == other)


@pytest.mark.parametrize("name", ["a/b.jpg", "/data/Zoë/ß 😀.jpg", "back\\slash\\xff.jpg", "100%.jpg"])
def test_utf8_names_stand_as_they_are(name: str) -> None:
    assert record_path(name) == name


def test_other_names_are_file_uris() -> None:
    assert record_path(b"/data/caf\xe9.jpg") == "file:///data/caf%E9.jpg"
    assert record_path(b"sub/caf\xe9.jpg") == "file:sub/caf%E9.jpg"
    assert open_path("file://localhost/data/a%20b.jpg") == "/data/a b.jpg"
    assert open_path("file://host/data/a%20b.jpg") == "file://host/data/a%20b.jpg"


def test_rows_keep_to_their_inputs() -> None:
    inputs = pa.table({"path": ["a", "b", "c"], "person": [1, 2, 3]})
    outcomes = [Outcome(Status.OK, 10, 20), Outcome(Status.EMPTY, error="0 bytes"), Outcome(Status.OK, 1, 2)]
    scores = np.array([[0.2, 0.4], [np.nan, np.nan], [1.0, 0.5]], np.float32)
    table = to_table(inputs, outcomes, scores, MEMBERS)
    assert table.column_names == [*own_columns(MEMBERS), "person"]
    assert table["score"].to_pylist() == [pytest.approx(0.3), None, 0.75]
    assert table["score_mobilenet_v3_small"].null_count == 1
    assert table["status"].to_pylist() == ["ok", "empty", "ok"]
    assert table["person"].to_pylist() == [1, 2, 3]
    with pytest.raises(ValueError, match="not one for each"):
        to_table(inputs, outcomes[:2], scores, MEMBERS)
