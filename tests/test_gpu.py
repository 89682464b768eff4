"""What only a machine with an NVIDIA GPU can show. `make test-gpu`; skipped elsewhere."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from fiqa_trt import Scorer, building
from fiqa_trt.building import Request, measuring
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.decoding.dali import DaliDecoder
from fiqa_trt.engines import cuda, rtx, tensorrt
from fiqa_trt.engines.base import Engine, Scores
from fiqa_trt.engines.known import infer
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import CHECKPOINT, open_engine
from fiqa_trt.engines.tensorrt import LEAN, tensorrt_version
from fiqa_trt.engines.torch import open_torch
from fiqa_trt.errors import EngineError
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.verification import check, compare, verification_batch
from fiqa_trt.outcomes import Status
from fiqa_trt.runs.score import score_dataset
from tests.helpers import invoke, jpeg

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
# Without a GPU the reason above says it all.
needs_tensorrt = pytest.mark.skipif(
    torch.cuda.is_available() and tensorrt_version() is None, reason="needs TensorRT's libraries"
)
needs_modelopt = pytest.mark.skipif(
    torch.cuda.is_available() and importlib.util.find_spec("modelopt") is None,
    reason="needs modelopt: pip install 'nvidia-modelopt[hf]'",
)


needs_rtx = pytest.mark.skipif(
    torch.cuda.is_available() and rtx.LIBRARY.version() is None, reason="needs TensorRT for RTX: pip install '.[rtx]'"
)
needs_lean = pytest.mark.skipif(
    torch.cuda.is_available() and LEAN.version() is None,
    reason="needs tensorrt-lean-cu13",
)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIQA_TRT_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    return tmp_path / "engines"


@pytest.fixture(scope="module")
def reference() -> Iterator[Scores]:
    engine = open_torch(CHECKPOINT, "cpu")
    yield infer(engine, verification_batch())
    engine.close()


def test_tolerances_are_kept_by_pytorch(reference: Scores) -> None:
    for precision, executed in (("fp32", "fp32"), ("fp16", "fp16")):
        engine = open_torch(CHECKPOINT, "cuda", precision, 32, executed)
        assert engine.info.executed == executed
        check(compare(infer(engine, verification_batch()), reference), precision, executed)
        engine.close()


def test_dali_on_the_gpu(portrait: Image.Image) -> None:
    pytest.importorskip("nvidia.dali")
    sizes = ((224, 224), (112, 112), (600, 500), (333, 512), (1000, 1000))
    blobs: list[bytes] = [jpeg(portrait.resize(size)) for size in sizes]
    blobs += [b"", blobs[0][:900], jpeg(portrait, progressive=True), jpeg(portrait.convert("L"))]
    dali, cpu = DaliDecoder("cuda:0"), CpuDecoder()
    found, reference = dali.decode(blobs, 16), cpu.decode(blobs, 16)
    assert isinstance(found.pixels, torch.Tensor)
    assert found.pixels.device.type == "cuda"
    assert found.outcomes == reference.outcomes
    good = [index for index, outcome in enumerate(reference.outcomes) if outcome.status is Status.OK]
    difference = np.abs(found.pixels.cpu().numpy()[good].astype(int) - np.asarray(reference.pixels)[good])
    assert difference.mean(axis=(1, 2, 3)).max() < 2
    engine = open_torch(CHECKPOINT, "cuda:0", "fp32", 16)
    scores = [engine.submit(decoded.pixels).result().scores[good] for decoded in (found, reference)]
    assert np.abs(scores[0] - scores[1]).max() < 0.02
    engine.close()


def test_a_run_on_the_gpu_has_the_rows_of_one_on_the_cpu(crops: Path, tmp_path: Path) -> None:
    (crops / "a" / "bad.jpg").write_bytes(b"x")
    tables = []
    for device in ("cpu", "cuda"):
        output = tmp_path / f"{device}.parquet"
        setup = Setup(device, "fp32", "torch", 4)
        score_dataset(Source((str(crops),)), output, lambda setup=setup: InProcess.open(setup))  # type: ignore[misc]
        tables.append(pq.read_table(output).to_pylist())
    for ours, expected in zip(*tables, strict=True):
        assert (ours["path"], ours["status"]) == (expected["path"], expected["status"])
        assert ours["score"] == pytest.approx(expected["score"], abs=0.02)


def test_arrays_and_files_on_the_gpu(crops: Path) -> None:
    files = sorted(crops.rglob("*.jpg"))
    arrays = [np.asarray(Image.open(path)) for path in files]
    items = [item for pair in zip(files, arrays, strict=True) for item in pair]
    with Scorer("cpu", "fp32", "torch") as cpu, Scorer("cuda", "fp32", "torch", batch=4) as gpu:
        expected = [score.score for score in cpu.score(items)]
        for _ in range(10):  # a copy that is not awaited would show now and then
            assert [score.score for score in gpu.score(items)] == pytest.approx(expected, abs=0.02)
        assert gpu.score(arrays)[0].score == pytest.approx(expected[1], abs=1e-3)


def test_batches_in_flight_do_not_mix(reference: Scores) -> None:
    engine = open_torch(CHECKPOINT, "cuda", "fp32", 8)
    images = verification_batch()
    futures = [(row, engine.submit(images[row : row + 8])) for _ in range(20) for row in range(0, 64, 8)]
    for row, future in futures:
        assert np.abs(future.result().scores - reference[row : row + 8]).max() < 1e-3
    engine.close()


def test_a_pytorch_engine_is_built_and_chosen(store: Path, reference: Scores) -> None:
    built = building.build(Request("fp16", device="cuda", backend="torch", max_batch=32))
    said = list[str]()
    engine: Engine = open_engine(say=said.append)
    assert any(str(built.folder) in line for line in said)
    assert engine.info.executed == built.manifest.executed
    check(compare(infer(engine, verification_batch()), reference), "fp16", "it")
    engine.close()


@needs_tensorrt
@pytest.mark.parametrize("precision", ["fp32", "fp16", pytest.param("int8", marks=needs_modelopt)])
def test_a_tensorrt_engine_is_built_and_chosen(precision: str, store: Path, reference: Scores) -> None:
    built = building.build(Request(precision, device="cuda", backend="tensorrt", max_batch=32))
    assert built.manifest.target.name == torch.cuda.get_device_name()
    engine = open_engine("cuda", precision)
    assert engine.info.backend.startswith("tensorrt")
    assert engine.info.payload == built.manifest.payload_sha256
    check(compare(infer(engine, verification_batch()), reference), precision, "it")
    engine.close()
    for batch in (1, 2):
        small = open_engine("auto", precision, "tensorrt", batch)
        assert infer(small, verification_batch()[:3]).shape == (3, 2)
        small.close()


@needs_rtx
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_rtx_engine_is_built_here(precision: str, store: Path, reference: Scores) -> None:
    """Also on a GPU that the library does not support, where only its name opens it."""
    built = building.build(Request(precision, device="cuda", backend="tensorrt-rtx", max_batch=32))
    assert built.manifest.verified
    assert built.manifest.target.name == torch.cuda.get_device_name()
    engine = open_engine("cuda", precision, "auto" if rtx.unfit("cuda") is None else str(built.folder))
    assert engine.info.backend.startswith("tensorrt-rtx")
    assert engine.kept is not None  # what the GPU compiled while it was measured
    check(compare(infer(engine, verification_batch()), reference), precision, "it")
    engine.close()


@needs_rtx
def test_an_rtx_engine_of_another_machine_is_verified_at_its_first_start(store: Path, reference: Scores) -> None:
    built = building.build(Request("fp16", target="cuda", max_batch=64))
    assert not built.manifest.verified
    said = list[str]()
    for start in range(2):
        engine = open_engine("cuda", "fp16", str(built.folder), say=said.append)
        assert (engine.kept is not None) == (start > 0)  # the second finds what the first compiled
        check(compare(infer(engine, verification_batch()), reference), "fp16", "it")
        engine.close()
    assert sum("verified on" in line for line in said) == 1
    known = Manifest.read(built.folder)
    assert (known.verified, known.verified_on) == (True, torch.cuda.get_device_name())
    done = invoke("engines", store, "--verify")
    assert Manifest.read(built.folder).throughput > 0 or "does not support" in done.stdout


@needs_rtx
def test_an_rtx_engine_scores_alike_without_torch(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings")
    built = building.build(Request("fp16", target="cuda", max_batch=64))
    scores = []
    for has_torch in (True, False):
        monkeypatch.setattr(cuda, "has_torch", lambda has_torch=has_torch: has_torch)
        said = list[str]()
        engine = open_engine("cuda:0", "fp16", str(built.folder), say=said.append)
        scores.append(infer(engine, verification_batch()))
        assert not any("without a CUDA graph" in line for line in said)
        engine.close()
    assert np.abs(scores[0] - scores[1]).max() < 1e-3


def test_dali_on_the_gpu_without_torch(portrait: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nvidia.dali")
    blobs: list[bytes] = [jpeg(portrait.resize(size)) for size in ((224, 224), (600, 500), (333, 512))] * 20
    expected = DaliDecoder("cuda:0").decode(blobs, 64)
    monkeypatch.setattr("fiqa_trt.decoding.dali.has_torch", lambda: False)
    without = DaliDecoder("cuda:0")
    for _ in range(5):  # a copy that is not awaited would show now and then
        found = without.decode(blobs, 64)
        assert isinstance(found.pixels, np.ndarray)
        assert found.outcomes == expected.outcomes
        assert isinstance(expected.pixels, torch.Tensor)
        assert np.array_equal(found.pixels[:60], expected.pixels.cpu().numpy()[:60])
    assert not without.failures


@needs_tensorrt
@needs_lean
def test_the_lean_runtime_loads_what_was_built_for_it(
    store: Path, reference: Scores, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request("fp16", device="cuda", backend="tensorrt", max_batch=32)
    plain = building.build(request)
    compatible = building.build(dataclasses.replace(request, version_compatible=True, output=store / "compatible"))
    monkeypatch.setattr(tensorrt, "tensorrt_version", lambda: None)
    engine = open_engine("cuda", "fp16", str(compatible.folder))
    assert engine.info.backend.endswith("(lean)")
    check(compare(infer(engine, verification_batch()), reference), "fp16", "it")
    engine.close()
    with pytest.raises(EngineError, match="which needs --version-compatible; build it again here"):
        open_engine("cuda", "fp16", str(plain.folder))
    with pytest.raises(EngineError, match=r"was not built for TensorRT's lean runtime .*: build it with --version"):
        tensorrt.load_plan(plain.manifest.read_payload(plain.folder), "it", LEAN)
