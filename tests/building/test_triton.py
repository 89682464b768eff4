"""`fiqa-trt export --triton`: a repository whose configuration is protobuf text and true of its network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from hypothesis import given
from hypothesis import strategies as st

from fiqa_trt.building.triton import Model, Network, Tensor, describe, read_onnx, read_plan
from fiqa_trt.cli import group
from fiqa_trt.engines.manifest import MANIFEST, Manifest
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.errors import EngineError, UsageError
from fiqa_trt.models.verification import verification_batch


def schema() -> Any:
    """The part of Triton's public `model_config.proto` that is used; of text, names and types are what counts."""
    field = descriptor_pb2.FieldDescriptorProto
    text, number, wide = field.TYPE_STRING, field.TYPE_INT32, field.TYPE_INT64
    messages: dict[str, list[tuple[str, Any, bool]]] = {
        "ModelInput": [("name", text, False), ("data_type", "DataType", False), ("dims", wide, True)],
        "ModelOutput": [("name", text, False), ("data_type", "DataType", False), ("dims", wide, True)],
        "ModelInstanceGroup": [("count", number, False), ("kind", "Kind", False)],
        "ModelDynamicBatching": [
            ("preferred_batch_size", number, True),
            ("max_queue_delay_microseconds", field.TYPE_UINT64, False),
        ],
        "ModelConfig": [
            ("name", text, False), ("platform", text, False), ("backend", text, False),
            ("max_batch_size", number, False), ("default_model_filename", text, False), ("input", "ModelInput", True),
            ("output", "ModelOutput", True), ("dynamic_batching", "ModelDynamicBatching", False),
            ("instance_group", "ModelInstanceGroup", True),
        ],
    }  # fmt: skip
    enums = {
        "DataType": ["TYPE_INVALID", "TYPE_UINT8", "TYPE_FP16", "TYPE_FP32"],
        "Kind": ["KIND_AUTO", "KIND_GPU", "KIND_CPU"],
    }
    file = descriptor_pb2.FileDescriptorProto(name="triton.proto", package="t", syntax="proto3")
    for name, values in enums.items():
        enum = file.enum_type.add(name=name)
        for index, value in enumerate(values):
            enum.value.add(name=value, number=index)
    for name, fields in messages.items():
        message = file.message_type.add(name=name)
        for index, (label, kind, repeated) in enumerate(fields):
            how = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
            added = message.field.add(name=label, number=index + 1, label=how)
            if isinstance(kind, str):
                added.type = field.TYPE_ENUM if kind in enums else field.TYPE_MESSAGE
                added.type_name = f".t.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))


CONFIG = schema()


def parsed(text: str) -> Any:
    return text_format.Parse(text, CONFIG())


def call(*arguments: object) -> Any:
    return CliRunner().invoke(group, ["export", *map(str, arguments)], catch_exceptions=False, standalone_mode=False)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_configuration_is_true_of_the_network(precision: str, tmp_path: Path) -> None:
    call("--triton", tmp_path / "models", "--precision", precision, "--name", "faces.v1")
    (model,) = (tmp_path / "models").iterdir()
    assert sorted(str(path.relative_to(model)) for path in model.rglob("*")) == ["1", "1/model.onnx", "config.pbtxt"]
    config = parsed((model / "config.pbtxt").read_text())
    assert (config.name, config.platform, config.backend) == (model.name, "onnxruntime_onnx", "onnxruntime")
    assert config.default_model_filename == "model.onnx"
    session = onnxruntime.InferenceSession(model / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    types = {"tensor(uint8)": 1, "tensor(float)": 3}
    for told, real in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(each.name, each.data_type, list(each.dims)) for each in told] == [
            (each.name, types[each.type], each.shape[1:]) for each in real
        ]
        assert all(isinstance(each.shape[0], str) for each in real)  # Triton's batch
    assert max(config.dynamic_batching.preferred_batch_size) <= config.max_batch_size
    images = verification_batch()[: config.max_batch_size]
    assert session.run([config.output[0].name], {config.input[0].name: images})[0].shape == (len(images), 2)
    with pytest.raises(UsageError, match="is there already"):
        call("--triton", tmp_path / "models", "--name", "faces.v1", RELEASED)


def test_an_engine_directory_goes_in_as_it_is(tmp_path: Path) -> None:
    call(RELEASED, "--triton", tmp_path)
    assert (tmp_path / "fiqa" / "1" / "model.onnx").read_bytes() == (RELEASED / "ensemble.onnx").read_bytes()
    values = json.loads((RELEASED / MANIFEST).read_text())
    other = tmp_path / "other"
    other.mkdir()
    (other / MANIFEST).write_text(json.dumps({**values, "backend": "openvino"}))
    with pytest.raises(EngineError, match=r"is for openvino, .* as ONNX: fiqa-trt export --triton 'a b' --name x$"):
        Model(Path("a b"), "x").write(other)
    (other / MANIFEST).write_text(json.dumps({**values, "backend": "openvino", "precision": "int8", "model": "0" * 64}))
    with pytest.raises(EngineError, match="fiqa-trt export CHECKPOINT --precision int8 --triton m; CHECKPOINT is"):
        call(other, "--triton", "m")
    for wrong in (["--name", "x", "-o", tmp_path / "o"], [], [RELEASED, "-o", tmp_path / "o"]):
        with pytest.raises(UsageError):
            call(*wrong)
    for name in ("", ".x", "a/b", "ä", 'a"b', ".."):
        with pytest.raises(UsageError, match="--name"):
            Model(tmp_path, name).write(RELEASED)
    with pytest.raises(EngineError, match="not an ONNX network"):
        read_onnx(b"nothing of the kind")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fiqa", "other"]


def test_a_plan_needs_tensorrt() -> None:
    try:
        import tensorrt
    except ImportError:
        with pytest.raises(EngineError, match="here TensorRT is missing"):
            read_plan(b"")
    else:
        assert tensorrt


names = st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True)
tensors = st.builds(
    Tensor, names, st.sampled_from(["uint8", "float32", "float16"]),
    st.lists(st.integers(1, 999), min_size=1, max_size=4).map(lambda dims: (-1, *dims)),
)  # fmt: skip


@pytest.mark.slow
@given(st.tuples(tensors), st.tuples(tensors), st.integers(1, 3), st.integers(3, 600))
def test_any_network_is_described(inputs: tuple[Tensor, ...], outputs: tuple[Tensor, ...], low: int, high: int) -> None:
    """The rules of Triton: dimensions without the batch where it batches, with it where it does not."""
    for backend in ("onnx", "tensorrt"):
        config = parsed(describe(Network(inputs, outputs, (low, high)), "m", backend))
        batched = config.max_batch_size > 0
        assert batched == (low == 1)
        assert config.HasField("dynamic_batching") == batched
        assert all(size <= config.max_batch_size for size in config.dynamic_batching.preferred_batch_size)
        for told, real in ((config.input, inputs), (config.output, outputs)):
            assert [([-1] if batched else []) + list(each.dims) for each in told] == [list(t.shape) for t in real]
            assert [each.name for each in told] == [each.name for each in real]


def test_a_network_of_a_fixed_batch_is_not_batched() -> None:
    network = onnx.load(RELEASED / "ensemble.onnx")
    for value in (*network.graph.input, *network.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    config = parsed(describe(read_onnx(network.SerializeToString()), "m", "onnx"))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [4, 224, 224, 3]
    assert Manifest.read(RELEASED).backend == "onnx"
