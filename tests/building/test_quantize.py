"""INT8: which layers, their ranges, and the same arithmetic in PyTorch, ONNX Runtime and OpenVINO."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tarfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import openvino
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fiqa_trt.building.calibration import are_crops, int8_ranges, ranges_file, read_crops, read_ranges
from fiqa_trt.building.quantize import (
    Ranges,
    calibrate,
    is_sensitive,
    measure_ranges,
    quantised_layers,
    simulated,
    with_qdq,
)
from fiqa_trt.engines.opening import CHECKPOINT, RELEASED
from fiqa_trt.engines.openvino import read_network
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.errors import EngineError, InputError
from fiqa_trt.models.networks import Ensemble
from fiqa_trt.models.verification import verification_batch

Pixels = npt.NDArray[np.uint8]


@pytest.fixture(scope="module")
def network() -> Ensemble:
    network = load_checkpoint(CHECKPOINT)
    network.fold()
    return network


@pytest.fixture(scope="module")
def crops() -> Pixels:
    return verification_batch()[:48:4]


@pytest.fixture(scope="module")
def shipped() -> Ranges:
    return read_ranges(None)


@pytest.fixture(scope="module")
def exported() -> onnx.ModelProto:
    return onnx.load(RELEASED / "ensemble.onnx")


@pytest.mark.slow
def test_the_shipped_ranges_are_of_the_shipped_checkpoint(shipped: Ranges, network: Ensemble) -> None:
    assert shipped.model == hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()
    assert shipped.images == 512
    assert shipped.layers.keys() <= quantised_layers(network).keys()
    assert len(shipped.layers) > 40


def test_sensitive_layers_are_left_alone(network: Ensemble) -> None:
    names = {name for name, module in network.named_modules() if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear))}
    left = names - quantised_layers(network).keys()
    assert left == {name for name in names if is_sensitive(name)}
    assert sum(name.endswith((".fc1", ".fc2")) for name in left) == 18  # nine squeeze-and-excitations
    assert len(left) == 18 + 2 + 4  # and the first layers and both heads of each member


@pytest.mark.slow
def test_a_range_is_not_ruled_by_outliers(network: Ensemble, crops: Pixels) -> None:
    layer = "members.mobilenet_v3_small.features.1.block.0.0"
    seen = list[torch.Tensor]()
    handle = quantised_layers(network)[layer].register_forward_pre_hook(lambda module, x: seen.append(x[0]))
    ranges = measure_ranges(network, crops)
    handle.remove()
    inputs = torch.cat(seen).abs().flatten(1)
    assert inputs.mean() < ranges[layer] <= inputs.max()
    expected = torch.quantile(inputs, 1 - 1e-4, dim=1).mean()
    assert ranges[layer] == pytest.approx(float(expected), rel=0.02)


@pytest.mark.slow
def test_simulation_ends_with_its_block(network: Ensemble, crops: Pixels, shipped: Ranges) -> None:
    images = torch.from_numpy(crops[:2])
    with torch.inference_mode():
        before = network(images)[0]
        with simulated(network, shipped.layers):
            during = network(images)[0]
        assert torch.equal(network(images)[0], before)
    assert 0 < (during - before).abs().max() < 0.2


@pytest.mark.slow
def test_pytorch_onnx_runtime_and_openvino_compute_the_same(
    network: Ensemble, crops: Pixels, shipped: Ranges, exported: onnx.ModelProto
) -> None:
    with torch.inference_mode(), simulated(network, shipped.layers):
        expected = network(torch.from_numpy(crops))[0].numpy().mean(axis=1)
    signed, unsigned = (with_qdq(exported, shipped, signed=signed) for signed in (True, False))
    session = onnxruntime.InferenceSession(signed.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = {"onnxruntime": session.run(None, {"images": crops})[0]}
    core = openvino.Core()
    compiled = core.compile_model(
        read_network(core, unsigned.SerializeToString(), "onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    ours["openvino"] = compiled(crops)[0]
    for name, scores in ours.items():
        # A value on the edge between two levels may fall to either side.
        assert np.abs(scores.mean(axis=1) - expected).max() < 0.02, name


def test_every_range_becomes_a_pair_of_nodes(exported: onnx.ModelProto, shipped: Ranges) -> None:
    quantised = with_qdq(exported, shipped)
    kinds = [node.op_type for node in quantised.graph.node]
    convolutions = [node for node in quantised.graph.node if node.op_type == "Conv"]
    made = {output: node.op_type for node in quantised.graph.node for output in node.output}
    both = [node for node in convolutions if [made.get(name) for name in node.input[:2]] == ["DequantizeLinear"] * 2]
    assert len(both) == len(shipped.layers)
    assert kinds.count("QuantizeLinear") <= len(shipped.layers)
    int8 = {
        t.name: t.dims for t in quantised.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4
    }
    exact = {t.name: t.dims for t in exported.graph.initializer if t.name in int8}
    assert int8 == exact
    assert int8.keys() == {f"{layer}.weight" for layer in shipped.layers}
    assert len(exported.graph.node) == len(onnx.load(RELEASED / "ensemble.onnx").graph.node)  # the input is left alone


@pytest.mark.slow
def test_calibration_leaves_out_what_does_harm(crops: Pixels) -> None:
    network = load_checkpoint(CHECKPOINT)
    network.fold()
    spoiled = "members.shufflenet_v2_x1_0.features.conv5.0"
    layer, channels = quantised_layers(network)[spoiled], list[int]()
    # A channel of enormous values that nobody listens to: harmless, but it leaves all others no resolution.
    norm = network.get_submodule("members.shufflenet_v2_x1_0.features.stage4.branches.4.6")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert isinstance(layer, torch.nn.Conv2d)

    def find(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        channels.append(int(inputs[0].amax(dim=(0, 2, 3)).argmax()))

    with torch.no_grad():
        norm.bias[0] = 5000.0
        handle = layer.register_forward_pre_hook(find)
        network(torch.from_numpy(crops[:1]))
        handle.remove()
        layer.weight[:, channels[0]] = 0
    found = calibrate(network, crops[:6])
    assert spoiled not in found
    assert len(found) > 60


def test_ranges_as_a_file(tmp_path: Path, shipped: Ranges) -> None:
    shipped.write(tmp_path / "r.json")
    assert Ranges.read(tmp_path / "r.json") == shipped
    assert int8_ranges(CHECKPOINT, tmp_path / "r.json") == shipped
    values = json.loads((tmp_path / "r.json").read_text())
    bad: list[object] = ["{", [], {**values, "format": 9}, {**values, "layers": {}}, {**values, "layers": {"x": -1}}]
    bad += [{**values, "layers": {"x": "y"}}, {**values, "layers": [1]}, {**values, "more": 1}]
    for content in bad:
        (tmp_path / "r.json").write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(EngineError, match=r"does not hold INT8 ranges.*--calibration DIR"):
            Ranges.read(tmp_path / "r.json")
    with pytest.raises(EngineError, match="does not exist"):
        read_ranges(tmp_path / "gone.json")


def test_ranges_of_another_network(tmp_path: Path, shipped: Ranges, exported: onnx.ModelProto) -> None:
    with pytest.raises(EngineError, match="layers that this network does not have, such as x"):
        with_qdq(exported, dataclasses.replace(shipped, layers={**shipped.layers, "x": 1.0}))
    dataclasses.replace(shipped, model="b" * 64).write(tmp_path / "r.json")
    with pytest.raises(EngineError, match=r"of another checkpoint.*--calibration DIR"):
        int8_ranges(CHECKPOINT, tmp_path / "r.json")


def test_calibration_crops_must_be_enough(tmp_path: Path, crops: Pixels) -> None:
    from PIL import Image

    with pytest.raises(InputError, match="no images in"):
        read_crops(tmp_path)
    for index in range(40):
        Image.fromarray(crops[index % len(crops)][:96, :80]).save(tmp_path / f"{index:02}.png")
    assert read_crops(tmp_path).shape == (40, 224, 224, 3)
    assert len(read_crops(tmp_path, count=34)) == 34
    for index in range(0, 40, 3):
        (tmp_path / f"{index:02}.png").write_bytes(b"")
    with pytest.raises(InputError, match="26 of 40 images could be decoded; calibrating takes at least 32"):
        read_crops(tmp_path)
    assert ranges_file().name == "int8_ranges.json"


@pytest.mark.slow
def test_crops_to_calibrate_on_are_given_as_to_score(
    tmp_path: Path, crops: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    Path("c").mkdir()
    for index in range(32):
        Image.fromarray(crops[index % len(crops)]).save(f"c/{index:02}.png")
    files = sorted(map(str, Path("c").iterdir()))
    with tarfile.open("c.tar", "w") as shard:
        shard.add("c")
    pq.write_table(pa.table({"image": [Path(file).read_bytes() for file in files]}), "images.parquet")
    pq.write_table(pa.table({"image": files, "id": range(32)}), "list.parquet")
    Path("list.csv").write_text("\n".join(["id;filename", *(f"1;{file}" for file in files)]))
    Path("list.txt").write_text("\n".join(files))
    said, expected = list[str](), read_crops(Path("c"))
    for name in ("c.tar", "images.parquet", "list.parquet", "list.csv", "list.txt"):
        assert are_crops(Path(name))
        assert np.array_equal(read_crops(Path(name), said.append), expected)
    assert said == [
        f"list.{kind}: the paths are in the column `{x}`" for kind, x in (("parquet", "image"), ("csv", "filename"))
    ]
    Path("both.csv").write_text("image,file\na,b\n")
    with pytest.raises(InputError, match="no column `path` but image and file: name the one that is meant `path`"):
        read_crops(Path("both.csv"))
    assert not are_crops(ranges_file())
