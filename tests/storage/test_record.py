"""The record of work that may be stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fiqa_trt.errors import DifferentRun
from fiqa_trt.fingerprint import Fingerprint
from fiqa_trt.storage.record import Record
from fiqa_trt.training.synthesis import PARTS, _begin

CALL: Fingerprint = {"version": "1", "seed": 0, "reference": None}


@pytest.mark.parametrize("indent", [None, 1])
def test_only_the_same_work_goes_on(tmp_path: Path, indent: int | None) -> None:
    path = tmp_path / "run.json"
    record = Record(path, indent)
    assert not record.continues(tmp_path, CALL)
    record.write(CALL)
    assert record.path.read_text() == json.dumps(CALL, indent=indent)
    assert record.read() == CALL
    assert record.continues(tmp_path, dict(reversed(CALL.items())))
    with pytest.raises(DifferentRun, match=f"{tmp_path} belongs to another run .seed: 0 there, 1 now.; go on with"):
        record.continues(tmp_path, {**CALL, "seed": 1})
    path.write_text("{")  # never written so: as if there were none
    assert not record.continues(tmp_path, CALL)
    record.remove()
    record.remove()
    assert record.read() is None


def test_a_synthesis_begins_without_parts_that_nothing_vouches_for(tmp_path: Path) -> None:
    part = tmp_path / PARTS / "0000000.json"
    part.parent.mkdir()
    for restart in (False, True):
        part.write_text("of whom?")
        _begin(tmp_path, CALL, restart)
        assert not part.exists()
    part.write_text("of this one")
    _begin(tmp_path, CALL, restart=False)
    assert part.exists()
