import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openvino
import pytest
from PIL import Image

from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.known import infer
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED, open_engine
from fiqa_trt.engines.openvino import OpenVinoEngine, half_arithmetic
from fiqa_trt.errors import EngineError, OutOfMemory
from fiqa_trt.machine import samples
from fiqa_trt.models.verification import verification_batch

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def images() -> Pixels:
    return np.concatenate([np.stack([np.asarray(crop) for crop in samples.crops().values()]), verification_batch()])


@pytest.mark.slow
def test_openvino_equals_torch(released: Engine, images: Pixels) -> None:
    pytest.importorskip("torch")
    reference = open_engine("cpu", engine="torch")
    assert reference.info.model == released.info.model
    assert reference.info.members == released.info.members
    assert np.abs(infer(released, images) - infer(reference, images)).max() < 1e-4
    reference.close()


@pytest.mark.slow
def test_shipped_onnx_equals_the_shipped_checkpoint(images: Pixels) -> None:
    pytest.importorskip("torch")
    onnxruntime = pytest.importorskip("onnxruntime")
    reference = open_engine("cpu", engine="torch")
    session = onnxruntime.InferenceSession(RELEASED / "ensemble.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 224, 224, 3])
    ]
    for count in (1, 3, len(images)):
        (scores,) = session.run(["member_scores"], {"images": images[:count]})
        assert np.abs(scores - infer(reference, images[:count])).max() < 1e-5
    assert Manifest.read(RELEASED).model == reference.info.model
    reference.close()


@pytest.mark.slow
def test_half_precision_is_within_its_tolerance(images: Pixels, released: Engine) -> None:
    try:
        engine = OpenVinoEngine(RELEASED, "fp16")
    except EngineError as exc:
        pytest.skip(str(exc))
    assert engine.info.executed in ("bf16", "fp16")
    assert np.abs(infer(engine, images).mean(1) - infer(released, images).mean(1)).max() < 1e-2
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_a_score_does_not_depend_on_its_neighbours(precision: str, portrait: Image.Image) -> None:
    engine = OpenVinoEngine(RELEASED, precision, batch=5)
    crop, rng = np.asarray(portrait), np.random.default_rng(0)
    results = set()
    for place in range(5):
        images = rng.integers(0, 256, (5, 224, 224, 3), np.uint8)
        images[place] = crop
        results.add(tuple(infer(engine, images)[place].tolist()))
    assert len(results) == 1
    engine.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processor", "quicker"),
    [
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", False),
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16", True),
        ("CPU implementer : 0x41", True),
    ],
)
def test_auto_takes_half_precision_where_it_is_quicker(
    processor: str, quicker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fiqa_trt.engines.openvino.processor_description", lambda: processor)
    has_half = bool(half_arithmetic(openvino.Core()))
    engine = OpenVinoEngine(RELEASED, "auto", 2)
    assert (engine.info.precision == "fp16") == (quicker and has_half)
    assert (engine.info.precision == "fp16") == (engine.info.executed in ("bf16", "fp16"))
    engine.close()


@pytest.mark.slow
def test_an_exported_directory_is_an_engine(tmp_path: Path, images: Pixels, released: Engine) -> None:
    pytest.importorskip("torch")
    from fiqa_trt.building.export import export

    manifest = export(CHECKPOINT, tmp_path / "mine")
    assert manifest == Manifest.read(tmp_path / "mine")
    assert manifest.agreement["max"] <= 1e-5
    assert str(Path.home()).encode() not in (tmp_path / "mine" / "ensemble.onnx").read_bytes()
    engine = open_engine(engine=str(tmp_path / "mine"), precision="fp32")
    assert np.abs(infer(engine, images) - infer(released, images)).max() < 1e-6
    engine.close()


@pytest.mark.slow
def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file, save_file

    from fiqa_trt.building.export import export
    from fiqa_trt.engines.torch import open_torch

    weights = load_file(CHECKPOINT)
    for change, message in (
        ({"x": torch.zeros(1)}, "it has x"),
        ({"members.shufflenet_v2_x1_0.features.fc.bias": None}, "it lacks members."),
    ):
        changed = {name: value for name, value in {**weights, **change}.items() if value is not None}
        save_file(changed, tmp_path / "z.safetensors", Manifest.read(RELEASED).spec.causes.metadata())
        with pytest.raises(EngineError, match=message):
            open_torch(tmp_path / "z.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    (tmp_path / "y.safetensors").write_bytes(b"junk")
    for name in ("x", "y", "gone"):
        path = tmp_path / f"{name}.safetensors"
        with pytest.raises(EngineError, match="is not a checkpoint of this ensemble"):
            open_torch(path)
        with pytest.raises(EngineError, match="is not a checkpoint of this ensemble"):
            export(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "one of auto, cpu, cuda"),
        ({"device": "cpu:1"}, "one of auto, cpu, cuda"),
        ({"device": "cuda:"}, "one of auto, cpu, cuda"),
        ({"precision": "int8", "device": "cpu"}, "no int8 engine here yet"),
        ({"engine": "/dev/null/gone"}, "no such directory"),
        ({"engine": "torch", "device": "cpu", "precision": "fp16"}, "no fp16 on cpu"),
        ({"engine": "openvino", "device": "cuda"}, "runs on the CPU"),
        ({"engine": "tensorrt", "device": "cpu"}, "runs on a GPU"),
        ({"engine": "tensorrt"}, "on a CPU use --engine auto or openvino"),
        ({"engine": str(RELEASED), "device": "cuda"}, "runs on cpu"),
    ],
)
def test_what_cannot_be_had(options: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        open_engine(**options)  # type: ignore[arg-type]


def test_explicit_cuda_never_falls_back() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(EngineError, match="--device cuda"):
        open_engine("cuda")
    with pytest.raises(EngineError, match="--device cuda:3"):
        open_engine("cuda:3")


def test_bad_engine_directories(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"engine\.json is missing"):
        open_engine(engine=str(tmp_path))
    shutil.copytree(RELEASED, tmp_path / "e")
    payload, manifest = tmp_path / "e" / "ensemble.onnx", tmp_path / "e" / "engine.json"
    whole = payload.read_bytes()
    payload.write_bytes(whole[:-100])
    with pytest.raises(EngineError, match="is damaged"):
        open_engine(engine=str(tmp_path / "e"))
    payload.unlink()
    with pytest.raises(EngineError, match=r"ensemble\.onnx is missing"):
        open_engine(engine=str(tmp_path / "e"))
    values = json.loads(manifest.read_text())
    changes: list[dict[str, object]] = [{"format": 99}, {"extra": 1}, {"reference": values["reference"][:3]}]
    for broken in ("{", "[]", "{}", *(json.dumps({**values, **change}) for change in changes)):
        payload.write_bytes(whole)
        manifest.write_text(broken)
        with pytest.raises(EngineError):
            open_engine(engine=str(tmp_path / "e"))


def test_a_batch_that_a_gpu_has_no_memory_for_is_halved(released: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[int | None]()

    def limited(device: str, precision: str, engine: str, batch: int | None, say: object) -> tuple[Engine, Manifest]:
        asked.append(batch)
        if (size := batch or 256) > 100:
            raise OutOfMemory(f"the GPU has no memory for batches of {size}", size)
        return released, Manifest.read(RELEASED)

    monkeypatch.setattr("fiqa_trt.engines.opening._open", limited)
    said = list[str]()
    assert open_engine("cuda", say=said.append) is released
    assert asked == [None, 128, 64]
    assert said[0] == "the GPU has no memory for batches of 256: trying batches of 128"

    def never(*arguments: object) -> tuple[Engine, Manifest]:
        raise OutOfMemory("no memory at all", 1)

    monkeypatch.setattr("fiqa_trt.engines.opening._open", never)
    with pytest.raises(EngineError, match="no memory at all"):
        open_engine("cuda")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["doctor"], ["show", "face.png"], ["export", "-o", "onnx"]])
def test_libraries_call_nobody(tmp_path: Path, arguments: list[str], portrait: Image.Image) -> None:
    """Those that would have an identity in the home folder."""
    if arguments[0] == "export":
        pytest.importorskip("onnxruntime")
    reasons = ("CI", "NNCF_CI", "NNCF_DEV", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS")  # not to call anybody
    environment = {name: value for name, value in os.environ.items() if name not in reasons}
    folders = {name: str(tmp_path / name) for name in ("FIQA_TRT_CACHE", "MPLCONFIGDIR")}
    environment |= folders | {"HOME": str(tmp_path / "home"), "XDG_CACHE_HOME": str(tmp_path / "home")}
    (tmp_path / "home").mkdir()
    portrait.save(tmp_path / "face.png")
    command = [sys.executable, "-m", "fiqa_trt", *arguments, "-q"]
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert not list((tmp_path / "home").iterdir())
