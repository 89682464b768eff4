"""The benchmark of what Python allows the GPU path: its stand-ins take what the decoder hands to DALI."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.host import ROOT, measured, packed
from fiqa_trt.machine.benchmark import generate


@pytest.mark.slow
@pytest.mark.parametrize(("size", "decoding"), [(224, "dali"), (300, "dali"), (224, "cpu")])
def test_every_image_is_scored_without_a_gpu(tmp_path: Path, size: int, decoding: str) -> None:
    generate(tmp_path / "crops", 9, size)
    packed(tmp_path / "crops", tmp_path / "tars")
    seconds = measured(ROOT, (tmp_path / "tars", size, 9, 2, decoding))
    assert seconds["wall"] > 0
    assert (seconds["released"] > 0) == (decoding == "cpu")
