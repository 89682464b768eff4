"""TensorRT engines from the exported ONNX network, where Torch-TensorRT cannot be installed (TensorRT 8.5 to 11).

    python -m benchmarks.tensorrt_onnx prepare DIR        # with [build]; no GPU needed
    python tensorrt_onnx.py run DIR [-o results.json]     # with tensorrt and numpy alone, any Python from 3.8 on

`prepare` writes the network in FP32 and with Q/DQ nodes as opset 17 with a float NCHW input (TensorRT 8.5 takes neither
opset 18 nor uint8 inputs), and the verification batch with its FP32 scores. `run` builds FP32, FP16 and INT8 engines,
compares them with those scores and times them by batch. Figures carry TensorRT's version: they are not another's.
"""

from __future__ import annotations

import argparse
import ctypes
import glob
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

OPSET = 17
BATCHES = (1, 8, 32, 128, 256, 512)
REPEATS, WARM_UP, CALLS = 30, 5, 5


def prepare(folder: Path) -> None:
    """Write `fp32.onnx`, `int8.onnx` and `reference.npz`; both networks are compared in ONNX Runtime first."""
    import onnx
    import onnxruntime
    import torch
    from onnx import helper

    from fiqa_trt.building.calibration import int8_ranges
    from fiqa_trt.building.quantize import with_qdq
    from fiqa_trt.engines.opening import CHECKPOINT, RELEASED
    from fiqa_trt.engines.torch import load_checkpoint
    from fiqa_trt.models.verification import check, compare, verification_batch

    network = onnx.load(RELEASED / "ensemble.onnx")
    graph = network.graph
    # What stands between the uint8 image and the first convolutions is done by `prepare`, on the reference images.
    first = next(node for node in graph.node if node.op_type == "Transpose")
    before = list(graph.node)[: list(graph.node).index(first) + 1]
    assert {node.op_type for node in before} == {"Cast", "Sub", "Div", "Transpose"}
    for node in before:
        graph.node.remove(node)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(first.output[0], onnx.TensorProto.FLOAT, ["batch", 3, 224, 224]))
    network = _for_old_parsers(network)
    images, normaliser = verification_batch(), load_checkpoint(CHECKPOINT)
    with torch.inference_mode():
        inputs = normaliser.normalise(torch.from_numpy(images)).numpy()
        scores = normaliser(torch.from_numpy(images))[0].numpy()
    folder.mkdir(parents=True, exist_ok=True)
    for precision, model in (("fp32", network), ("int8", with_qdq(network, int8_ranges(CHECKPOINT, None)))):
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        found = compare(np.asarray(session.run(None, {first.output[0]: inputs})[0]), scores)
        check(found, precision, precision)
        onnx.save(model, folder / f"{precision}.onnx")
        print(f"{precision}: {found}")
    np.savez_compressed(folder / "reference.npz", images=inputs, scores=scores)


def _for_old_parsers(model: Any) -> Any:
    """The network in opset 17, for which onnx's own converter knows no way, and without HardSwish."""
    from onnx import helper, numpy_helper

    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        changed = node
        if node.op_type == "HardSwish":
            gate = f"{node.output[0]}.gate"
            model.graph.node.append(helper.make_node("HardSigmoid", [node.input[0]], [gate], alpha=1 / 6, beta=0.5))
            changed = helper.make_node("Mul", [node.input[0], gate], [node.output[0]])
        elif node.op_type == "ReduceMean":  # the axes became an input in opset 18
            keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
            axes = constants[node.input[1]].tolist()
            changed = helper.make_node("ReduceMean", [node.input[0]], [node.output[0]], axes=axes, keepdims=keep)
        elif node.op_type == "Split":  # the attribute `num_outputs` is new in opset 18; ours name the sizes
            changed = helper.make_node("Split", list(node.input), list(node.output), axis=1)
        model.graph.node.append(changed)
    model.opset_import[0].version = OPSET
    return model


class Cuda:
    """The handful of CUDA runtime calls that are needed, each checked. Raises RuntimeError."""

    def __init__(self, library: str | None) -> None:
        places = ("/opt/**/libcudart.so*", "/usr/local/cuda*/**/libcudart.so*")
        paths = [library] if library else sorted(path for place in places for path in glob.glob(place, recursive=True))
        if not paths:
            sys.exit("no libcudart found; pass --cudart PATH")
        self._library = ctypes.CDLL(paths[-1])

    def call(self, name: str, *arguments: Any) -> None:
        """Call a function of the runtime."""
        status = getattr(self._library, name)(*arguments)
        if status:
            raise RuntimeError(f"{name} failed with CUDA error {status}")

    def allocate(self, size: int) -> int:
        """Address of `size` bytes on the GPU."""
        pointer = ctypes.c_void_p()
        self.call("cudaMalloc", ctypes.byref(pointer), ctypes.c_size_t(size))
        assert pointer.value is not None
        return pointer.value

    def create(self, name: str) -> ctypes.c_void_p:
        """A stream or an event."""
        handle = ctypes.c_void_p()
        self.call(name, ctypes.byref(handle))
        return handle

    def copy(self, target: int, source: int, size: int, kind: int) -> None:
        """Kind 1: to the GPU; 2: from it."""
        self.call("cudaMemcpy", ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size), kind)


def build(path: Path, precision: str) -> tuple[bytes, float]:
    """A serialized engine for batches up to the largest, and the seconds that it took."""
    import tensorrt as trt

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    explicit = getattr(trt.NetworkDefinitionCreationFlag, "EXPLICIT_BATCH", None)
    network = builder.create_network(0 if explicit is None else 1 << int(explicit))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise RuntimeError("; ".join(str(parser.get_error(index)) for index in range(parser.num_errors)))
    config = builder.create_builder_config()
    if hasattr(trt.BuilderFlag, "FP16"):  # weakly typed, TensorRT 8 to 10; from 11 on the network carries its types
        if precision in ("fp16", "int8"):
            config.set_flag(trt.BuilderFlag.FP16)
        if precision == "int8":
            config.set_flag(trt.BuilderFlag.INT8)
    elif precision == "fp16":
        raise RuntimeError(f"TensorRT {trt.__version__} is strongly typed: use fiqa-trt build")
    source = network.get_input(0)
    rest = tuple(source.shape)[1:]
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, (1, *rest), (256, *rest), (BATCHES[-1], *rest))
    config.add_optimization_profile(profile)
    began = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise RuntimeError("TensorRT could not build the engine")
    return bytes(plan), time.perf_counter() - began


def measure(plan: bytes, images: Any, scores: Any, cuda: Cuda) -> dict[str, Any]:
    """Agreement with the scores, and images/s by batch: medians of CUDA events about back-to-back launches."""
    import tensorrt as trt

    engine = trt.Runtime(trt.Logger(trt.Logger.WARNING)).deserialize_cuda_engine(plan)
    context = engine.create_execution_context()
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    source = next(name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT)
    target = next(name for name in names if name != source)
    stream = cuda.create("cudaStreamCreate")
    begin, end = cuda.create("cudaEventCreate"), cuda.create("cudaEventCreate")
    largest, members = BATCHES[-1], scores.shape[1]
    device_in, device_out = cuda.allocate(largest * images[0].nbytes), cuda.allocate(largest * members * 4)
    context.set_tensor_address(source, device_in)
    context.set_tensor_address(target, device_out)

    def launch() -> None:
        if not context.execute_async_v3(stream.value):
            raise RuntimeError("TensorRT could not launch the engine")

    def run(batch: Any) -> Any:
        batch = np.ascontiguousarray(batch)
        out = np.full((len(batch), members), np.nan, np.float32)
        if not context.set_input_shape(source, batch.shape):
            raise RuntimeError(f"the engine does not take {batch.shape}")
        cuda.copy(device_in, batch.ctypes.data, batch.nbytes, 1)
        launch()
        cuda.call("cudaStreamSynchronize", stream)
        cuda.copy(out.ctypes.data, device_out, out.nbytes, 2)
        return out

    ours, theirs = run(images).mean(axis=1), scores.mean(axis=1)
    difference = np.abs(ours - theirs)
    ranks = [np.argsort(np.argsort(values)) for values in (ours, theirs)]
    rates = {}
    for batch in BATCHES:
        run(images[np.arange(batch) % len(images)])
        times = []
        for _ in range(WARM_UP + REPEATS):
            cuda.call("cudaEventRecord", begin, stream)
            for _ in range(CALLS):
                launch()
            cuda.call("cudaEventRecord", end, stream)
            cuda.call("cudaEventSynchronize", end)
            elapsed = ctypes.c_float()
            cuda.call("cudaEventElapsedTime", ctypes.byref(elapsed), begin, end)
            times.append(elapsed.value / CALLS)
        rates[str(batch)] = round(batch / float(np.median(times[WARM_UP:])) * 1000)
    srcc = float(np.corrcoef(ranks[0], ranks[1])[0, 1])
    return {"max": float(difference.max()), "mean": float(difference.mean()), "srcc": srcc, "images_per_s": rates}


def run(folder: Path, output: Path | None, cudart: str | None) -> None:
    """Build, compare and time FP32, FP16 and INT8 engines."""
    import tensorrt as trt

    data = np.load(folder / "reference.npz")
    cuda, facts = Cuda(cudart), {"tensorrt": trt.__version__}
    for precision in ("fp32", "fp16", "int8"):
        try:
            plan, seconds = build(folder / ("int8.onnx" if precision == "int8" else "fp32.onnx"), precision)
            found = measure(plan, np.ascontiguousarray(data["images"]), data["scores"], cuda)
            facts[precision] = {"build_s": round(seconds, 1), "plan_mb": round(len(plan) / 1e6, 2), **found}
        except RuntimeError as exc:
            facts[precision] = {"skipped": str(exc)}
        print(precision, facts[precision], flush=True)
        if output is not None:
            output.write_text(json.dumps(facts, indent=1) + "\n")


def main() -> None:
    """Parse and go."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "run"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--cudart", help="libcudart.so, where it is not found by itself")
    options = parser.parse_args()
    if options.what == "prepare":
        prepare(options.folder)
    else:
        run(options.folder, options.output, options.cudart)


if __name__ == "__main__":
    main()
