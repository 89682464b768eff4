"""A model repository of NVIDIA's Triton Inference Server: `NAME/config.pbtxt`, `NAME/1/model.onnx` or `model.plan`.

What the configuration says of inputs and outputs is read from the network itself. Where it takes any number of images,
Triton adds the dimension of the batch and fills it from the requests that wait; so `dims` are without it.
"""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import tempfile
from pathlib import Path

from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.errors import EngineError, UsageError, one_line, storage_error
from fiqa_trt.shell import command_line
from fiqa_trt.storage.writing import check_folder

MAX_BATCH = 64
"""Of a network that takes any number: what a request waits for should not be much more than what it needs."""
DEFAULT_NAME = "fiqa"
_PREFERRED = (8, 32)
_DELAY_MICROSECONDS = 500
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "float16": "TYPE_FP16"}
_KINDS = {
    "onnx": ("onnxruntime", "onnxruntime_onnx", "model.onnx"),
    "tensorrt": ("tensorrt", "tensorrt_plan", "model.plan"),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
    """An input or output of a network.

    Attributes:
        name: of it.
        kind: as NumPy names it.
        shape: with the batch first; -1 where it may be any number.
    """

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Network:
    """What a file says of its network: inputs, outputs, and the smallest and largest batch that it takes."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batch: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Model:
    """Where a network goes: a folder of a repository.

    Attributes:
        repository: made if it is not there.
        name: of the model; a folder of that name must not be there yet.
    """

    repository: Path
    name: str = DEFAULT_NAME

    @property
    def folder(self) -> Path:
        """Of the model."""
        return self.repository / self.name

    def check(self) -> None:
        """Refuse what could not be written. Raises UsageError for a name, OutputError for a place."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(f"--name {self.name}: letters, digits, - and _ make a name of a model")
        check_folder(self.repository)
        if self.folder.exists() or self.folder.is_symlink():
            raise UsageError(f"{self.folder} is there already: give another --name, or remove it")

    def write(self, engine: Path) -> Network:
        """Put the network of an engine directory there, as version 1; it appears in one step.

        Raises:
            UsageError: a name that Triton could not use, or that is taken.
            OutputError: the repository cannot be written.
            EngineError: an engine that Triton has no backend for.
            RunError: the disk is full or fails.
        """
        self.check()
        manifest = check_engine(engine, self)
        payload, target = manifest.read_payload(engine), self.folder
        network = read_onnx(payload) if manifest.backend == "onnx" else read_plan(payload)
        draft = None
        try:
            self.repository.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{self.name}.", dir=self.repository))
            (draft / "1").mkdir()
            (draft / "1" / _KINDS[manifest.backend][2]).write_bytes(payload)
            (draft / "config.pbtxt").write_text(describe(network, self.name, manifest.backend))
            draft.chmod(0o755)
            draft.rename(target)  # in one step: a server may be watching
        except OSError as exc:
            raise storage_error(target, exc) from exc
        finally:
            if draft is not None:
                shutil.rmtree(draft, ignore_errors=True)
        return network


def check_engine(engine: Path, model: Model) -> Manifest:
    """The manifest of an engine that Triton can run. Raises EngineError, with the command that makes one."""
    manifest = Manifest.read(engine)
    if manifest.backend in _KINDS:
        return manifest
    released = manifest.model == Manifest.read(RELEASED).model
    words = ["fiqa-trt", "export", *([] if released else ["CHECKPOINT"])]
    words += ["--precision", "int8"] if manifest.precision == "int8" else []
    words += ["--triton", os.fspath(model.repository), *(["--name", model.name] if model.name != DEFAULT_NAME else [])]
    which = "" if released else "; CHECKPOINT is the .safetensors that it was built from"
    raise EngineError(
        f"{engine} is for {manifest.backend}, which Triton does not run; its network as ONNX: "
        f"{command_line(*words)}{which}"
    )


def read_onnx(payload: bytes) -> Network:
    """What an ONNX network says of itself. Raises EngineError if it is none, or onnx is not there."""
    try:
        import onnx
    except ImportError as exc:
        raise EngineError("reading an ONNX network needs onnx: pip install 'fiqa-trt[build]'") from exc
    try:
        graph = onnx.ModelProto.FromString(payload).graph
    except Exception as exc:  # protobuf's own
        raise EngineError(f"this is not an ONNX network: {one_line(exc)}") from exc

    def tensor(value: onnx.ValueInfoProto) -> Tensor:
        kind = value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
        return Tensor(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), shape)

    weights = {weight.name for weight in graph.initializer}
    inputs = tuple(tensor(value) for value in graph.input if value.name not in weights)
    return Network(inputs, tuple(map(tensor, graph.output)), (1, MAX_BATCH))


def read_plan(payload: bytes) -> Network:
    """What a TensorRT plan says of itself; only where it could run. Raises EngineError."""
    try:
        import tensorrt
    except ImportError as exc:
        raise EngineError(f"a TensorRT plan can be read where it was built; here TensorRT is missing ({exc})") from exc
    from fiqa_trt.engines.tensorrt import load_plan

    engine = load_plan(payload, "the plan")
    inputs, outputs = list[Tensor](), list[Tensor]()
    batch = (1, 1)
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        tensor = Tensor(
            name, tensorrt.nptype(engine.get_tensor_dtype(name)).__name__, tuple(engine.get_tensor_shape(name))
        )
        if engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT:
            inputs.append(tensor)
            low, _, high = engine.get_tensor_profile_shape(name, 0)
            batch = (int(low[0]), int(high[0]))
        else:
            outputs.append(tensor)
    return Network(tuple(inputs), tuple(outputs), batch)


def describe(network: Network, name: str, backend: str) -> str:
    """`config.pbtxt`: protobuf text of Triton's `ModelConfig`.

    A network that does not take single images (a plan whose smallest batch is 2) is left unbatched, with the batch
    among its dimensions: Triton cannot be told of a smallest one, and would send it what it refuses.
    """
    low, high = network.batch
    batched = low == 1 and all(tensor.shape[0] == -1 for tensor in (*network.inputs, *network.outputs))
    runs, platform, file = _KINDS[backend]
    lines = [f'name: "{name}"', f'backend: "{runs}"', f'platform: "{platform}"', f'default_model_filename: "{file}"']
    lines.append(f"max_batch_size: {high if batched else 0}")
    for field, tensors in (("input", network.inputs), ("output", network.outputs)):
        for tensor in tensors:
            dims = ", ".join(map(str, tensor.shape[batched:]))
            lines += [f"{field} [", "  {", f'    name: "{tensor.name}"', f"    data_type: {_TYPES[tensor.kind]}"]
            lines += [f"    dims: [ {dims} ]", "  }", "]"]
    if batched:
        sizes = ", ".join(str(size) for size in _PREFERRED if size <= high)
        lines += ["dynamic_batching {", *([f"  preferred_batch_size: [ {sizes} ]"] if sizes else [])]
        lines += [f"  max_queue_delay_microseconds: {_DELAY_MICROSECONDS}", "}"]
    return "\n".join([*lines, "instance_group [", "  {", "    count: 1", "    kind: KIND_AUTO", "  }", "]", ""])
