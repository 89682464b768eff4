"""The released checkpoint gives the scores that it gave when it was released."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.engines.openvino import OpenVinoEngine
from tests.models.golden import GOLDEN, of_files, of_tensors


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return dict(json.loads(GOLDEN.read_text()))


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = OpenVinoEngine(RELEASED, "fp32", 8)
    yield engine
    engine.close()


@pytest.mark.slow
def test_scores_of_tensors(engine: Engine, golden: dict[str, Any]) -> None:
    assert engine.info.model == golden["model"]
    assert np.abs(np.array(of_tensors(engine)) - golden["tensors"]).max() < 1e-4


@pytest.mark.slow
def test_scores_of_decoded_images(engine: Engine, golden: dict[str, Any]) -> None:
    # Another version of libjpeg may encode or decode the samples a level differently.
    scores = of_files(engine)
    assert list(scores) == list(golden["files"])
    assert np.abs(np.array(list(scores.values())) - list(golden["files"].values())).max() < 0.02


@pytest.mark.slow
def test_the_samples_are_ranked_sensibly(engine: Engine) -> None:
    score = {name: float(np.mean(members)) for name, members in of_files(engine).items()}
    assert max(score, key=lambda name: score[name]) == "sharp"
    assert score["sharp"] > score["blur_1px"] > score["blur_2px"] > score["blur_4px"]
    assert all(score["sharp"] > score[name] + 0.1 for name in score if name not in ("sharp", "blur_1px"))
