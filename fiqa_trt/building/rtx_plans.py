"""What TensorRT for RTX makes of a network: its own parser on the ONNX form, and what either way to it must give.

It compiles without a GPU, and finishes on the one that runs the engine. Networks are typed by their tensors alone, so
FP16 is brought into the parsed network, where `Ensemble.lower` has it: in the features alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fiqa_trt.engines.rtx import LIBRARY, number_of_capability
from fiqa_trt.errors import EngineError
from fiqa_trt.models.spec import ModelSpec

INPUT = "images"
SMALLEST = 2  # as of the engines of Torch-TensorRT


@dataclasses.dataclass(frozen=True)
class Plan:
    """A serialized engine, and the network that it was made of.

    Attributes:
        payload: the engine.
        inputs: type and shape by name; -1 is any batch.
        outputs: the same.
        layers: how many. Torch-TensorRT takes many more to compute the shapes of a dynamic batch.
        convolutions: how many of them.
        types: what these compute in.
    """

    payload: bytes
    inputs: dict[str, tuple[str, tuple[int, ...]]]
    outputs: dict[str, tuple[str, tuple[int, ...]]]
    layers: int
    convolutions: int
    types: tuple[str, ...]


def describe(network: Any) -> dict[str, Any]:
    """The fields of `Plan` that a network definition of TensorRT tells."""
    import tensorrt_rtx as rtx

    layers = [network.get_layer(index) for index in range(network.num_layers)]
    kinds = [layer.get_output(0).dtype for layer in layers if layer.type == rtx.LayerType.CONVOLUTION]

    def tensors(count: int, get: Any) -> dict[str, tuple[str, tuple[int, ...]]]:
        found = [get(index) for index in range(count)]
        return {one.name: (one.dtype.name.lower(), tuple(one.shape)) for one in found}

    return {
        "inputs": tensors(network.num_inputs, network.get_input),
        "outputs": tensors(network.num_outputs, network.get_output),
        "layers": len(layers),
        "convolutions": len(kinds),
        "types": tuple(sorted({kind.name.lower() for kind in kinds})),
    }


def check_plan(plan: Plan, precision: str, spec: ModelSpec) -> None:
    """Raise EngineError unless a plan takes and gives what ours do, and computes in what it was built for."""
    wanted, size = {"fp32": "float", "fp16": "half"}[precision], spec.preprocess.size
    inputs = {INPUT: ("uint8", (-1, size, size, 3))}
    outputs = {name: ("float", (-1, columns)) for name, columns in spec.outputs.items()}
    if (plan.inputs, plan.outputs, plan.types) != (inputs, outputs, (wanted,)):
        raise EngineError(
            f"the engine takes {plan.inputs}, gives {plan.outputs} and computes in {', '.join(plan.types)}, so it was "
            "not written; please report this with the output of fiqa-trt doctor"
        )


def plan_of_onnx(model: bytes, precision: str, best: int, largest: int, capability: str | None) -> Plan:
    """The engine of an exported network, by TensorRT-RTX's own parser.

    Args:
        model: ONNX, as `export` writes it.
        precision: fp32 or fp16.
        best: batch to optimise for.
        largest: batch.
        capability: `8.6` for GPUs of this one; None for all that an engine is for by default.

    Raises:
        EngineError: it cannot be parsed or built.
    """
    rtx = LIBRARY.load()
    log = LIBRARY.log()
    builder = rtx.Builder(log)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, log)
    if not parser.parse(model):
        raise EngineError(f"{LIBRARY} cannot read the ONNX network: {parser.get_error(0).desc()}")
    kept = _lowered(network, rtx) if precision == "fp16" else []
    config = builder.create_builder_config()
    configure(config, capability)
    profile = builder.create_optimization_profile()
    size = tuple(network.get_input(0).shape)[1:]
    profile.set_shape(network.get_input(0).name, *((batch, *size) for batch in (SMALLEST, best, largest)))
    config.add_optimization_profile(profile)
    payload = builder.build_serialized_network(network, config)
    del kept  # the weights had to be there until now
    if payload is None:
        raise EngineError(f"{LIBRARY} cannot build this engine: {log}")
    return Plan(bytes(payload), **describe(network))


def configure(config: Any, capability: str | None) -> None:
    """What every engine of ours is built with. Raises EngineError: a compute capability that is not to be had."""
    import tensorrt_rtx as rtx

    config.clear_flag(rtx.BuilderFlag.TF32)  # FP32 is to be FP32
    config.profiling_verbosity = rtx.ProfilingVerbosity.DETAILED
    config.set_flag(rtx.BuilderFlag.REQUIRE_USER_ALLOCATION)  # a CUDA graph cannot be recorded without
    if capability is not None:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(rtx.ComputeCapability(number_of_capability(capability)), 0):
            raise EngineError(f"{LIBRARY} cannot build for compute capability {capability}")


def _lowered(network: Any, rtx: Any) -> list[Any]:
    """Bring a network into FP16, in place: weights and inputs of the convolutions, not what comes before and after.

    Returns what must live until the network is built.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    makers = {layer.get_output(index).name: layer for layer in layers for index in range(layer.num_outputs)}
    kept, lowered = list[Any](), set[str]()

    def cast(layer: Any, kind: Any) -> None:
        kept.append(network.add_cast(layer.get_input(0), kind))
        layer.set_input(0, kept[-1].get_output(0))

    for layer in layers:
        if layer.type == rtx.LayerType.CONVOLUTION:
            first = makers[layer.get_input(0).name]
            # The permutation of the channels, which is cheaper in FP16.
            if first.type == rtx.LayerType.SHUFFLE and first.name not in lowered:
                lowered.add(first.name)
                cast(first, rtx.DataType.HALF)
            layer.__class__ = rtx.IConvolutionLayer
            for name in ("kernel", "bias"):
                kept.append(np.asarray(getattr(layer, name)).astype(np.float16))
                setattr(layer, name, kept[-1])
        elif layer.type == rtx.LayerType.MATRIX_MULTIPLY:  # a head, after its pooling, which it may share
            pooling = makers[layer.get_input(0).name]
            if pooling.name not in lowered:
                lowered.add(pooling.name)
                cast(pooling, rtx.DataType.FLOAT)
    return kept
