"""`fiqa-trt build`, `engines`, `export` and `doctor` on a CPU, with real engines."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fiqa_trt import building
from fiqa_trt.building import Request, cpu, measuring
from fiqa_trt.building.calibration import Pixels, Trial, prefers_shipped, read_ranges
from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.known import infer
from fiqa_trt.engines.manifest import MANIFEST, Manifest, this_processor
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED, open_engine
from fiqa_trt.engines.openvino import half_arithmetic, pack_network, read_network
from fiqa_trt.errors import EngineError, InputError
from fiqa_trt.libraries import import_library
from fiqa_trt.models import verification
from fiqa_trt.models.verification import Fidelity, Tolerance, compare, verification_batch
from tests.helpers import invoke


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of its own; timing is not what is tested here."""
    monkeypatch.setenv("FIQA_TRT_ENGINES", str(tmp_path / "engines"))
    monkeypatch.setattr(measuring, "_TIMED_SECONDS", 0.05)
    monkeypatch.setattr(measuring, "_ROUNDS", 1)
    return tmp_path / "engines"


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 48 crops, one of them damaged."""
    folder = tmp_path_factory.mktemp("crops")
    for index, image in enumerate(verification_batch()[:48]):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    (folder / "07.png").write_bytes(b"nothing")
    return folder


def has_half() -> bool:
    try:
        open_engine("cpu", "fp16").close()
    except EngineError:
        return False
    return True


@pytest.mark.slow
def test_build_list_and_score(store: Path, tmp_path: Path, crops: Path) -> None:
    done = invoke("build", "--precision", "fp32", "--device", "cpu", "--max-batch", "4", "--json", "-q")
    assert not done.stderr
    built = json.loads(done.stdout)
    assert built["folder"] == str(store / "openvino-fp32")
    assert built["agreement"]["images"] == 64
    assert built["agreement"]["max"] < 1e-4
    assert built["throughput"] > 0
    assert built["gain"] > 0
    assert built["batch"][1] == 4
    assert built["batch"][2] == 4
    assert invoke("build", "--precision", "int8", "--max-batch", "4", "-q", "--device", "cpu").exit_code == 0
    listed = invoke("engines").stdout
    assert f"{store}/openvino-fp32: openvino fp32" in listed
    assert f"{store}/openvino-int8: openvino int8" in listed
    assert listed.count("the choice of auto") <= 1  # none where both are slower than what runs without them
    entries = json.loads(invoke("engines", "--json").stdout)["engines"]
    assert [entry["problem"] for entry in entries] == [None, None]
    done = invoke("engines", "--verify")
    assert done.exit_code == 0
    for precision in ("fp32", "int8"):
        assert f"{store}/openvino-{precision} scores as it records: max " in done.stderr
    for precision, executed in (("fp32", "fp32"), ("int8", "int8 and ")):
        scores = tmp_path / f"{precision}.parquet"
        done = invoke("score", crops, "-o", scores, "--device", "cpu", "--precision", precision, "--json")
        assert f"using {store}/openvino-{precision}" in done.stderr
        engine = json.loads(done.stdout.splitlines()[-1])["engine"]
        assert engine["precision"] == precision
        assert engine["executed"].startswith(executed)
        assert engine["payload"] == Manifest.read(store / f"openvino-{precision}").payload_sha256


@pytest.mark.slow
def test_an_engine_that_no_longer_scores_as_it_records(store: Path) -> None:
    built = building.build(Request("fp32", device="cpu", max_batch=2))
    known = built.manifest
    # Not one of those that every start looks at.
    shifted = (*known.reference[:40], (known.reference[40][0] + 0.01, *known.reference[40][1:]), *known.reference[41:])
    (built.folder / MANIFEST).write_text(dataclasses.replace(known, reference=shifted).dump())
    open_engine("cpu", "fp32", str(built.folder)).close()
    done = invoke("engines", "--verify")
    assert done.exit_code == 1
    assert "is too far from FP32, so it should not be used: max 0.005" in done.stdout
    (built.folder / known.payload).write_bytes(b"")
    assert invoke("engines").exit_code == 0
    done = invoke("engines", "--verify")
    assert done.exit_code == 1
    assert "is damaged" in done.stdout


@pytest.mark.slow
def test_an_fp16_engine_is_half_as_large(store: Path) -> None:
    if not has_half():
        pytest.skip("this processor has neither BF16 nor FP16 arithmetic")
    built = building.build(Request("fp16", device="cpu", max_batch=2))
    size = (built.folder / built.manifest.payload).stat().st_size
    assert size < 0.7 * (RELEASED / "ensemble.onnx").stat().st_size
    assert built.manifest.executed in ("bf16", "fp16")
    assert built.manifest.agreement["srcc"] >= 0.9995
    with pytest.raises(EngineError, match="is an fp16 engine; build one for --precision fp32"):
        open_engine("cpu", "fp32", str(built.folder))


@pytest.mark.slow
def test_bf16_does_not_round_the_scores_of_an_fp16_engine() -> None:
    """A million faces would share some two hundred scores."""
    core = import_library("openvino").Core()
    if "bf16" not in half_arithmetic(core):
        pytest.skip("this processor has no BF16 arithmetic")
    released = read_network(core, Manifest.read(RELEASED).read_payload(RELEASED), "onnx")
    network = read_network(core, pack_network(released, half=True), "openvino")
    network.reshape([8, 224, 224, 3])
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "bf16"})
    scores = np.array(compiled(verification_batch()[:8])[0])
    assert np.mean(scores.view(np.uint32) & 0xFFFF != 0) > 0.5


@pytest.mark.slow
def test_int8_from_ranges_and_by_calibration_agree(store: Path, crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("nncf")
    monkeypatch.setattr("fiqa_trt.building.cpu.shipped_for", lambda model: None)
    ours = building.build(Request("int8", device="cpu", max_batch=2))
    theirs = building.build(Request("int8", device="cpu", max_batch=2, calibration=crops, output=store / "nncf"))
    assert "nncf" in theirs.manifest.versions
    assert "nncf" not in ours.manifest.versions
    scores = []
    for built in (ours, theirs):
        engine = open_engine("cpu", engine=str(built.folder))
        scores.append(infer(engine, verification_batch()))
        engine.close()
    agreement = compare(scores[0], scores[1])
    assert agreement.mean <= 0.02
    assert agreement.srcc >= 0.99


@pytest.mark.slow
@pytest.mark.parametrize("spoilt", ["own", "shipped"])
def test_the_better_ranges_are_kept_and_said(spoilt: str, crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where one side is made to be bad, it is the other that is built."""
    pytest.importorskip("nncf")
    said = list[str]()
    if spoilt == "own":
        calibrated = cpu._calibrated

        def badly(network: object, images: Pixels, versions: dict[str, str]) -> object:
            return calibrated(network, images // 40, versions)

        monkeypatch.setattr(cpu, "_calibrated", badly)
    else:
        ranges = read_ranges(None)
        bad = dataclasses.replace(ranges, layers={name: value / 8 for name, value in ranges.layers.items()})
        monkeypatch.setattr(cpu, "shipped_for", lambda model: bad)
    built = building.build(Request("int8", device="cpu", max_batch=2, calibration=crops), said.append)
    assert ("nncf" in built.manifest.versions) == (spoilt == "shipped")
    assert any(f"INT8 with {'the shipped ranges' if spoilt == 'own' else 'ranges of your crops'}:" in x for x in said)
    assert any("best measured on 512 crops" in line for line in said) == (spoilt == "own")


def test_which_ranges_are_better() -> None:
    def trial(mean: float, fixed: float, causes: float = 0.0) -> Trial:
        return Trial(Fidelity(9, 0.1, mean, 1.0), Fidelity(64, 0.1, fixed, 0.999, causes_max=1.0, causes_mean=causes))

    said = list[str]()
    assert prefers_shipped(trial(0.0064, 0.01), trial(0.0039, 0.01), said.append)
    assert "by 0.0039 on average, with those of your crops by 0.0064" in said[0]
    assert not prefers_shipped(trial(0.0039, 0.01), trial(0.0064, 0.01), said.append)
    assert prefers_shipped(trial(0.001, 0.023), trial(0.01, 0.01), said.append)
    assert "out of tolerance (max 0.1, mean 0.023" in said[-2]
    assert not prefers_shipped(trial(0.01, 0.01), trial(0.001, 0.023), said.append)
    assert prefers_shipped(trial(0.001, 0.01, causes=0.064), trial(0.01, 0.01), said.append)
    assert "causes max 1, mean 0.064" in said[-2]


@pytest.mark.slow
def test_another_checkpoint(store: Path, tmp_path: Path) -> None:
    weights = load_file(CHECKPOINT)
    weights["members.mobilenet_v3_small.head.bias"] += 0.5
    save_file(weights, tmp_path / "mine.safetensors", Manifest.read(RELEASED).spec.causes.metadata())
    invoke(
        "build",
        "--checkpoint",
        tmp_path / "mine.safetensors",
        "--precision",
        "fp32",
        "-o",
        store / "mine",
        "-q",
        "--device",
        "cpu",
    )
    manifest = Manifest.read(store / "mine")
    assert manifest.model != Manifest.read(RELEASED).model
    said = list[str]()
    engine = open_engine("cpu", engine=str(store / "mine"), say=said.append)
    assert "of another checkpoint" in said[0]
    ours, released = (infer(e, verification_batch()) for e in (engine, open_engine("cpu", "fp32")))
    assert (ours[:, 0] > released[:, 0]).all()
    assert np.abs(ours[:, 1] - released[:, 1]).max() < 1e-4
    assert "of another checkpoint" in invoke("engines").stdout
    # Its INT8 ranges are others.
    with pytest.raises(EngineError, match="of another checkpoint"):
        building.build(Request("int8", tmp_path / "mine.safetensors", "cpu"))


@pytest.mark.slow
def test_no_space_for_temporary_files_is_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "fiqa_trt", "build", "--precision", "fp32", "--device", "cpu", "-o", tmp_path / "e"]
    call = ["bash", "-c", 'ulimit -f 100; "$@"', "bash", *map(str, words)]
    done = subprocess.run(call, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "set TMPDIR" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_out_of_tolerance_nothing_is_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(verification.TOLERANCES, "int8", Tolerance(mean=1e-6))
    with pytest.raises(EngineError, match=r"too far from FP32.*mean 0\.0.*needs mean <= 1e-06"):
        building.build(Request("int8", device="cpu"))
    assert not list(store.iterdir())


@pytest.mark.slow
def test_an_engine_that_is_wrong_is_not_written(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gate, end to end: a network whose weights were lost on the way."""
    from fiqa_trt.engines import openvino as backend

    read_network = backend.read_network

    def spoiled(core: object, payload: bytes, kind: str) -> object:
        if kind == "onnx":
            network = onnx.ModelProto.FromString(payload)
            bias = next(tensor for tensor in network.graph.initializer if tensor.name.endswith("head.bias"))
            bias.CopyFrom(onnx.numpy_helper.from_array(np.array([3.0], np.float32), bias.name))
            payload = network.SerializeToString()
        return read_network(core, payload, kind)

    monkeypatch.setattr(backend, "read_network", spoiled)
    with pytest.raises(EngineError, match="too far from FP32, so it was not written"):
        building.build(Request("fp32", device="cpu"))
    assert not list(store.iterdir())


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request("fp16", calibration=Path("x")), "--calibration is for --precision int8"),
        (Request("fp32", Path("/gone.safetensors"), "cpu"), "cannot read /gone.safetensors"),
        (Request("fp16", device="cpu", backend="tensorrt"), "--backend tensorrt does not run on --device cpu"),
        (Request("fp16", device="cuda"), "--device cuda"),
        (Request("fp16", device="cuda", backend="openvino"), "--device cuda"),
        (Request("int8", Path("/gone.safetensors"), "cpu"), "cannot read /gone.safetensors"),
        (Request("int8", device="cpu", calibration=Path("/gone.json")), "does not exist"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_built(request_: Request, message: str, store: Path) -> None:
    if request_.device == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(EngineError, match=message):
        building.build(request_)
    assert not store.exists() or not list(store.iterdir())


def test_three_crops_are_too_few_to_calibrate(tmp_path: Path, crops: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for name in ("00.png", "01.png", "02.png"):
        shutil.copy(crops / name, few)
    with pytest.raises(InputError, match="3 of 3 images could be decoded; calibrating takes at least 32"):
        building.build(Request("int8", device="cpu", calibration=few))


def test_a_foreign_checkpoint_is_one_line(tmp_path: Path) -> None:
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(EngineError, match="is not a checkpoint of this ensemble"):
        building.build(Request("fp32", tmp_path / "x.safetensors", "cpu"))


@pytest.mark.slow
def test_a_plan_is_refused_by_the_cpu_and_by_a_machine_without_its_gpu(store: Path) -> None:
    built = building.build(Request("fp32", device="cpu", max_batch=2))
    values = json.loads((built.folder / MANIFEST).read_text())
    values["backend"] = "tensorrt"
    values["target"] = {"kind": "cuda", "name": "H100", "features": ["sm_90"]}
    (built.folder / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(EngineError, match="runs on cuda, not on --device cpu"):
        open_engine("cpu", engine=str(built.folder))
    if not torch.cuda.is_available():
        with pytest.raises(EngineError, match=r"needs a CUDA GPU; torch .* sees none; here --engine auto runs"):
            open_engine(engine=str(built.folder))
        assert "needs a CUDA GPU (H100)" in invoke("engines").stdout


@pytest.mark.slow
def test_export_with_qdq_nodes(tmp_path: Path, released: Engine) -> None:
    done = invoke("export", "--format", "onnx", "--precision", "int8", "-o", tmp_path / "e")
    assert "ensemble.onnx" in done.stdout
    session = onnxruntime.InferenceSession(tmp_path / "e" / "ensemble.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape) for i in session.get_inputs()] == [
        ("images", "tensor(uint8)", ["batch", 224, 224, 3])
    ]
    images = verification_batch()
    scores = session.run(["member_scores"], {"images": images})[0]
    agreement = compare(scores, infer(released, images))
    assert agreement.mean <= 0.02
    assert agreement.srcc >= 0.99
    graph = onnx.load(tmp_path / "e" / "ensemble.onnx").graph
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in graph.node}
    with pytest.raises(EngineError, match="is for TensorRT and ONNX Runtime; here use fiqa-trt build"):
        open_engine("cpu", engine=str(tmp_path / "e"))
    # TensorRT takes no zero point but 0.
    zeros = [t for t in graph.initializer if t.name.endswith(".zero")]
    assert zeros
    assert not any(onnx.numpy_helper.to_array(t).any() for t in zeros)
    done = invoke("export", "-o", tmp_path / "x", "--calibration", "y")
    assert "--calibration is for" in str(done.exception)
    done = invoke("export", "/gone.safetensors", "-o", tmp_path / "x", "--precision", "int8")
    assert "cannot read /gone.safetensors" in str(done.exception)
    facts = json.loads(invoke("export", "-o", tmp_path / "y", "--json", "-q").stdout)
    assert (facts["engine"], facts["triton"]) == (str(tmp_path / "y"), None)
    assert facts["manifest"]["payload"] == "ensemble.onnx"


def test_outputs_are_checked_before_the_work(tmp_path: Path) -> None:
    """Each call also has something wrong that shows later."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "photo.jpg").write_bytes(b"")
    (tmp_path / "file").write_text("")
    gone, taken = tmp_path / "gone.safetensors", tmp_path / "taken"
    (tmp_path / "models" / "fiqa").mkdir(parents=True)
    for words, message in (
        (["export", gone, "-o", taken], "is not just an engine"),
        (["export", gone, "--triton", tmp_path / "models"], "is there already"),
        (["export", gone, "--triton", tmp_path / "file" / "x"], "is not a folder"),
        (["export", gone, "--triton", tmp_path, "--name", "a b"], "make a name of a model"),
        (["build", "--checkpoint", gone, "--device", "cpu", "-o", taken], "is not just an engine"),
        (["bench", gone, "-o", tmp_path / "no" / "b.json"], "does not exist"),
        (["bench", gone, "-o", tmp_path / "file" / "b.json"], "does not exist"),
        (["eval", gone, "--labels", gone, "--plot", tmp_path / "no" / "p.png"], "does not exist"),
        (["eval", gone, "--labels", gone, "--plot", tmp_path / "p.gif"], "name it .png"),
        (["report", gone, "-o", tmp_path / "no" / "r.html"], "does not exist"),
        (["score", taken, "-o", tmp_path / "no" / "s.parquet"], "does not exist"),
        (["show", taken / "photo.jpg", taken / "photo.jpg", "--explain", "--engine", gone], "written twice"),
    ):
        assert message in str(invoke(*map(str, words)).exception), words


@pytest.mark.slow
def test_an_engine_that_is_slower_than_none(store: Path) -> None:
    built = building.build(Request("fp32", device="cpu", max_batch=2))
    values = json.loads((built.folder / MANIFEST).read_text())
    (built.folder / MANIFEST).write_text(json.dumps(values | {"gain": 0.5}))
    listed = invoke("engines").stdout
    assert "0.50 times the speed without it); usable, but slower than without it: auto leaves it" in listed
    said = list[str]()
    open_engine("cpu", say=said.append).close()
    assert not said
    open_engine("cpu", "fp32", say=said.append).close()
    assert said == [f"using {built.folder}"]


def test_engines_looks_at_the_payload_too(tmp_path: Path) -> None:
    shutil.copytree(RELEASED, tmp_path / "a" / "e", ignore=shutil.ignore_patterns("*.safetensors", "int8*"))
    manifest = json.loads((tmp_path / "a" / "e" / "engine.json").read_text())
    manifest |= {"backend": "openvino", "target": {**manifest["target"], "kind": "cpu", "name": this_processor()}}
    (tmp_path / "a" / "e" / "engine.json").write_text(json.dumps(manifest))
    assert "usable" in invoke("engines", str(tmp_path / "a")).stdout
    (tmp_path / "a" / "e" / manifest["payload"]).write_bytes(b"x")
    assert "is damaged" in invoke("engines", str(tmp_path / "a")).stdout
    (tmp_path / "a" / "e" / "engine.json").write_text("{}")
    assert "it lacks" in invoke("engines", str(tmp_path / "a")).stdout
    for wrong, message in (("a/e", "is itself an engine"), ("gone", "no such folder")):
        assert message in str(invoke("engines", str(tmp_path / wrong)).exception)
