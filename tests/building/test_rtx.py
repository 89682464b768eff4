"""Real engines of TensorRT for RTX, built without a GPU, through Torch-TensorRT and from the ONNX network.

Each build is the command itself, in a process of its own: `.venv/rtx` is not on the path of this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from fiqa_trt.engines.manifest import Manifest, Target
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED
from tests.helpers import ROOT

RTX = Path(sys.prefix) / "rtx"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (RTX / "tensorrt_rtx").is_dir(), reason="needs .venv/rtx, which `make test` installs"),
]

FP32 = CHECKPOINT.stat().st_size
BOTH = """
import json, sys
from pathlib import Path
from fiqa_trt.building.rtx_plans import check_plan, plan_of_onnx
from fiqa_trt.building.rtx_torch import plan_of_checkpoint
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED

found, spec = {}, Manifest.read(RELEASED).spec
for precision in ("fp32", "fp16"):
    onnx = plan_of_onnx((RELEASED / "ensemble.onnx").read_bytes(), precision, 256, 512, None)
    through = plan_of_checkpoint(CHECKPOINT, precision, 256, 512, None, Path(sys.argv[1]))
    for way, plan in (("onnx", onnx), ("torch", through)):
        check_plan(plan, precision, spec)
        found[f"{way} {precision}"] = {**vars(plan), "payload": len(plan.payload)}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def without_torch_tensorrt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the compiler alone."""
    folder = tmp_path_factory.mktemp("rtx")
    for path in RTX.glob("tensorrt_rtx*"):
        (folder / path.name).symlink_to(path)
    return folder


def run(*words: str | Path, path: Path = RTX, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path}", **variables}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return done


def test_both_ways_give_the_same_engine(tmp_path: Path) -> None:
    """One engine with nothing left to PyTorch, the same inputs, outputs and convolutions."""
    done = run("-c", BOTH, tmp_path)
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for plan in found.values():
        assert plan["inputs"] == {"images": ["uint8", [-1, 224, 224, 3]]}
        outputs = Manifest.read(RELEASED).spec.outputs
        assert plan["outputs"] == {name: ["float", [-1, columns]] for name, columns in outputs.items()}
        assert plan["convolutions"] == 108
    for way in ("onnx", "torch"):
        fp32, fp16 = found[f"{way} fp32"], found[f"{way} fp16"]
        assert (fp32["types"], fp16["types"]) == (["float"], ["half"])
        assert FP32 < fp32["payload"] < 2 * FP32
        assert fp16["payload"] < fp32["payload"] - 0.4 * FP32  # the weights are half as large
        assert fp32["layers"] <= fp16["layers"] < 1.1 * fp32["layers"]
    assert 1 < found["torch fp16"]["layers"] / found["onnx fp16"]["layers"] < 8
    assert 0.8 < found["torch fp16"]["payload"] / found["onnx fp16"]["payload"] < 1.2


TELLING = """
import sys
from pathlib import Path
from fiqa_trt.building.rtx_plans import check_plan, plan_of_onnx
from fiqa_trt.building.rtx_torch import plan_of_checkpoint
from fiqa_trt.engines.manifest import Manifest

folder, scratch = map(Path, sys.argv[1:])
spec = Manifest.read(folder / "onnx").spec
onnx = plan_of_onnx((folder / "onnx" / "ensemble.onnx").read_bytes(), "fp16", 256, 512, None)
through = plan_of_checkpoint(folder / "ensemble.safetensors", "fp16", 256, 512, None, scratch)
for plan in (onnx, through):
    check_plan(plan, "fp16", spec)
print(list(onnx.outputs), list(through.outputs))
"""


def test_causes_are_a_second_output_either_way(telling: Path, tmp_path: Path) -> None:
    done = run("-c", TELLING, telling, tmp_path)
    assert done.stdout.splitlines()[-1] == "['member_scores', 'causes'] ['member_scores', 'causes']"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory, without_torch_tensorrt: Path) -> Path:
    """An engine for a GPU elsewhere, in a store of its own."""
    store = tmp_path_factory.mktemp("store")
    done = run(
        "-m", "fiqa_trt", "build", "--target", "cuda", "--compute-capability", "8.6", "--max-batch", "64", "--json",
        path=without_torch_tensorrt, FIQA_TRT_ENGINES=str(store),
    )  # fmt: skip
    assert (
        "from the ONNX network (Torch-TensorRT for it is not installed by itself: pip install torch-tensorrt-rtx"
        in done.stderr
    )
    assert "cannot be measured here" in done.stderr
    assert json.loads(done.stdout)["folder"] == str(store / "tensorrt-rtx-fp16-8.6")
    return store / "tensorrt-rtx-fp16-8.6"


def test_an_engine_for_a_gpu_elsewhere_says_that_it_is_not_verified(built: Path) -> None:
    manifest, released = Manifest.read(built), Manifest.read(RELEASED)
    assert (manifest.backend, manifest.precision, manifest.batch) == ("tensorrt-rtx", "fp16", (2, 64, 64))
    assert manifest.target == Target("cuda", "", ("sm_86",))
    assert (manifest.verified, manifest.agreement, manifest.throughput) == (False, {}, 0)
    assert manifest.reference == released.reference  # FP32, by PyTorch
    assert len(manifest.reference) == 64
    assert manifest.versions["tensorrt_rtx"]
    assert manifest.read_payload(built)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_machine_without_a_gpu_says_what_to_do(built: Path, crops: Path, without_torch_tensorrt: Path) -> None:
    output = crops.parent / "s.parquet"
    done = run("-m", "fiqa_trt", "score", crops, "-o", output, "--engine", built, path=without_torch_tensorrt, code=2)
    assert done.stderr.count("\n") == 1
    assert f"{built} needs a CUDA GPU; torch" in done.stderr
    assert "--engine auto runs on the CPU" in done.stderr
    assert not output.exists()
    done = run("-m", "fiqa_trt", "engines", built.parent, "--verify", path=without_torch_tensorrt)
    assert "tensorrt-rtx fp16, sm_86, not timed; needs a CUDA GPU (sm_86)" in done.stdout
    assert "nothing was verified: none of these can be used here" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compute-capability", "9.0"], "does not build for compute capability 9.0; it does for 7.5, 8.0, 8.6, 8.9,"),
        (["--compute-capability", "8"], "--compute-capability 8: it is given as in 8.6"),
        (["--precision", "int8"], "or --backend tensorrt on the machine with that GPU"),
        (
            ["--backend", "tensorrt"],
            "--backend tensorrt builds for this machine alone; --target cuda is for tensorrt-rtx",
        ),
        (["--device", "cuda"], "--device cuda is of this machine; leave it out with --target cuda"),
        (["--version-compatible"], "--version-compatible is for --backend tensorrt, not for tensorrt-rtx"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_built(options: list[str], message: str, tmp_path: Path, without_torch_tensorrt: Path) -> None:
    done = run(
        "-m", "fiqa_trt", "build", "--target", "cuda", *options,
        path=without_torch_tensorrt, code=2, FIQA_TRT_ENGINES=str(tmp_path),
    )  # fmt: skip
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    scratch, engines = tmp_path / "tmp", tmp_path / "engines"
    scratch.mkdir()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{RTX}", "TMPDIR": str(scratch)}
    command = [sys.executable, "-m", "fiqa_trt", "build", "--target", "cuda", "-o", str(engines / "mine")]
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as build:
        while build.poll() is None and not any(scratch.rglob("torch_tensorrt")):
            time.sleep(0.1)
        build.terminate()
        said = build.communicate()[1]
    assert build.returncode == 130, said
    assert said.splitlines()[-1] == "fiqa-trt: interrupted; nothing was written"
    assert not list(scratch.iterdir())
    assert not list(engines.iterdir())
