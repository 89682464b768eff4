"""Fixtures: the demo's portrait, a folder of crops, the released engine, and a tiny engine of the same shape."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED
from fiqa_trt.engines.openvino import OpenVinoEngine
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine import samples
from fiqa_trt.runs.score import score_dataset
from tests.helpers import TOLD, MeanEngine, jpeg, mean_executor

# How long an example takes, the first of which imports what it needs, tells of the machine.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")
# A shell that runs the tests in the background has Ctrl-C ignored, and those that they interrupt would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mean_engine() -> Callable[[], Engine]:
    return MeanEngine


@pytest.fixture(scope="session")
def portrait() -> Image.Image:
    return samples.portrait()


@pytest.fixture(scope="session")
def released() -> Iterator[Engine]:
    engine = OpenVinoEngine(RELEASED, "fp32")
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `ensemble.safetensors`, the released networks with heads for causes that nobody has trained, and
    `onnx`, an engine of them.
    """
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    from fiqa_trt.building.export import export
    from fiqa_trt.engines.torch import load_checkpoint

    folder = tmp_path_factory.mktemp("telling")
    network = load_checkpoint(CHECKPOINT)
    torch.manual_seed(0)
    network.add_causes(TOLD)
    for member in network.each():
        assert member.causes is not None
        torch.nn.init.normal_(member.causes.weight, std=0.2)
    save_file(network.state_dict(), folder / "ensemble.safetensors", TOLD.metadata())
    export(folder / "ensemble.safetensors", folder / "onnx")
    return folder


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIQA_TRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("FIQA_TRT_ENGINES", str(tmp_path_factory.mktemp("engines")))
        yield


@pytest.fixture
def crops(tmp_path: Path, portrait: Image.Image) -> Path:
    """A folder `crops` with ten different 224 px JPEGs in two sub-folders."""
    for index in range(10):
        folder = tmp_path / "crops" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{index}.jpg").write_bytes(
            jpeg(portrait.point([min(255, v // 2 + 12 * index) for v in range(256)] * 3))
        )
    return tmp_path / "crops"


@pytest.fixture
def scores(crops: Path, tmp_path: Path) -> Path:
    (crops / "a" / "bad.jpg").write_bytes(b"x")
    path = tmp_path / "s.parquet"
    score_dataset(Source((str(crops),)), path, mean_executor)
    return path


@pytest.fixture
def mask(scores: Path) -> Any:
    """All good images but the first."""
    good = np.array([status == "ok" for status in pq.read_table(scores)["status"].to_pylist()])
    good[0] = False
    return good
