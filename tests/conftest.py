"""Fixtures: the demo's portrait, a folder of crops, the released engine, and a tiny engine of the same shape."""

from __future__ import annotations

import io
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fiqa_trt.decoding.base import Images
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.base import Engine, EngineInfo, Scores, finished
from fiqa_trt.engines.cache import Slot
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.engines.openvino import OpenVinoEngine
from fiqa_trt.executors.base import Executor
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine import samples
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.outcomes import ImageError
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.storage.registry import store_of

# A shell that runs the tests in the background has Ctrl-C ignored, and those that they interrupt would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


class MeanEngine:
    """Scores are the crop's mean red and green levels, and blue of a third member: quick, exact, of pixels alone."""

    slots = 1
    place = "cpu"
    kept: Slot | None = None

    def __init__(self, batch: int = 4, members: tuple[str, ...] = MEMBERS) -> None:
        self.info = EngineInfo("mean 1", "none", "fp32", "fp32", batch, "0" * 64, members)

    def submit(self, images: Images) -> Future[Scores]:
        assert images.shape == (self.info.batch, 224, 224, 3)
        means = np.asarray(images).mean(axis=(1, 2))
        return finished((means[:, : len(self.info.members)] / 255).astype(np.float32))

    def close(self) -> None:
        pass


def in_process(engine: Engine, threads: int = 2) -> Executor:
    """This process with an engine and the CPU decoder."""
    return InProcess(engine, CpuDecoder(threads=threads))


def mean_workers(batch: int = 4, threads: int = 2, members: tuple[str, ...] = MEMBERS) -> Executor:
    """This process with the engine above."""
    return in_process(MeanEngine(batch, members), threads)


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


@pytest.fixture(scope="session", autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FIQA_TRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("FIQA_TRT_ENGINES", str(tmp_path_factory.mktemp("engines")))
        yield


def jpeg(image: Image.Image, **options: object) -> bytes:
    """Bytes of an image as JPEG of quality 90."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


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
    score_dataset(Source((str(crops),)), path, mean_workers)
    return path


@pytest.fixture
def mask(scores: Path) -> Any:
    """All good images but the first."""
    good = np.array([status == "ok" for status in pq.read_table(scores)["status"].to_pylist()])
    good[0] = False
    return good


def read_file(path: str) -> bytes:
    """All bytes of a file. Raises ImageError."""
    blob = store_of(path).read(path).blob
    if isinstance(blob, ImageError):
        raise blob
    return blob
