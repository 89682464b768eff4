"""INT8: the ranges of every layer's input, how they are measured, and the same network with Q/DQ nodes.

Weights are quantised by output channel, activations by tensor, both symmetrically about 0, which is the one scheme that
OpenVINO, ONNX Runtime and TensorRT share. A range belongs to a layer of the folded network (`Ensemble.fold`) and
goes by its name there, so the same numbers serve the ONNX network and the one that Torch-TensorRT compiles.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.errors import EngineError

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from fiqa_trt.models.networks import Ensemble

Pixels = npt.NDArray[np.uint8]

LEVELS = 127  # of a signed 8-bit integer, without the -128 that would make the scale asymmetric
TARGET = 0.008  # change of the score; an engine may differ by 0.02, on images unlike the crops as well
CAUSES_TARGET = 0.02  # likewise of the severity of a cause, which may differ by 0.06
_OUTLIERS = 1e-4
_PROBE = 96
_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Largest absolute input of each quantised layer.

    Attributes:
        model: SHA-256 of the checkpoint that they were measured on.
        images: how many crops they were measured on.
        source: which crops, in words.
        layers: positive number by name of the layer in the folded ensemble.
    """

    model: str
    images: int
    source: str
    layers: dict[str, float]

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path) -> Ranges:
        """Read what `write` wrote.

        Raises:
            EngineError: not such a file.
        """
        try:
            values = json.loads(path.read_text())
            if values.pop("format") != _FORMAT:
                raise ValueError("another format")
            ranges = cls(**values)
            if not ranges.layers or not all(0 < float(value) < np.inf for value in ranges.layers.values()):
                raise ValueError("a range that is not a positive number")
        except OSError as exc:
            raise EngineError(f"cannot read {path}: {exc.strerror}") from exc
        except (ValueError, TypeError, KeyError, AttributeError) as exc:
            raise EngineError(f"{path} does not hold INT8 ranges ({exc}); --calibration DIR measures new ones") from exc
        return ranges

    def check_model(self, model: str) -> None:
        """Raise EngineError unless they were measured on the checkpoint with this digest."""
        if model != self.model:
            raise EngineError(
                f"the INT8 ranges are of another checkpoint ({self.model[:12]}, not {model[:12]}); "
                "measure those of this one with --calibration DIR"
            )


# Layers that are sensitive and cheap: each member's first convolution (its input is the image), squeeze-and-excitation
# (one value a channel decides over all of it) and the heads. Always in higher precision.
_SENSITIVE = re.compile(r"\.(features\.0\.0|conv1\.0|fc1|fc2|fc|head|causes)$")


def is_sensitive(layer: str) -> bool:
    """Whether the layer of that name is never quantised."""
    return _SENSITIVE.search(layer) is not None


def quantised_layers(network: Ensemble) -> dict[str, nn.Module]:
    """The layers that may run in INT8, by name: every convolution that is not sensitive."""
    from torch import nn

    modules = network.named_modules()
    return {name: module for name, module in modules if isinstance(module, nn.Conv2d) and not is_sensitive(name)}


def calibrate(network: Ensemble, crops: Pixels, target: float = TARGET) -> dict[str, float]:
    """Ranges of the layers that can be quantised without harm.

    Every layer's range is measured; then the layers are quantised one at a time, to see what each does to the scores
    and the causes; then the worst are left out, as few as it takes for all the others together to stay within what is
    allowed: `target`, and of the causes CAUSES_TARGET.

    Args:
        network: a folded ensemble in FP32 and evaluation mode.
        crops: uint8 [N, 224, 224, 3], like those to be scored.
        target: mean absolute change of the score.

    Raises:
        EngineError: not even a quarter of the layers can be quantised.
    """
    ranges = measure_ranges(network, crops)
    probe = crops[:: max(1, len(crops) // _PROBE)]
    exact, allowed = _judged(network, probe), (target, CAUSES_TARGET)

    def change(layers: dict[str, float]) -> float:
        """In shares of what is allowed."""
        with simulated(network, layers):
            found = zip(_judged(network, probe), exact, allowed, strict=False)
            return max(float((ours - theirs).abs().mean()) / most for ours, theirs, most in found)

    gentle_first = sorted(ranges, key=lambda name: change({name: ranges[name]}))
    for left_out in range(0, 3 * len(ranges) // 4, 2):
        kept = {name: ranges[name] for name in gentle_first[: len(ranges) - left_out]}
        if change(kept) <= 1:
            return {name: kept[name] for name in ranges if name in kept}
    raise EngineError(
        f"INT8 changes the scores of this checkpoint by more than {target:g}, or causes by {CAUSES_TARGET:g}, whatever "
        "is left out"
    )


def measure_ranges(network: Ensemble, crops: Pixels) -> dict[str, float]:
    """Range of every layer that may be quantised.

    It is the mean over the crops of what 99.99 % of a crop's absolute inputs stay below, so that neither one odd crop
    nor a few outliers cost all other values their resolution.
    """
    import torch

    seen: dict[str, list[Tensor]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            values = inputs[0].abs().flatten(1)
            outliers = max(1, round(values.shape[1] * _OUTLIERS))
            seen.setdefault(name, []).append(values.topk(outliers, dim=1).values[:, -1])

        return hook

    with contextlib.ExitStack() as stack:
        for name, layer in quantised_layers(network).items():
            stack.callback(layer.register_forward_pre_hook(watch(name)).remove)
        _judged(network, crops)
    return {name: max(float(torch.cat(values).mean()), 1e-6) for name, values in seen.items()}


def outputs(network: Ensemble, crops: Pixels) -> list[Tensor]:
    """What a network makes of any number of crops: member scores and, where it tells of such, causes."""
    import torch

    with torch.inference_mode():
        parts = [network(torch.from_numpy(crops[start : start + 16])) for start in range(0, len(crops), 16)]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


def _judged(network: Ensemble, crops: Pixels) -> list[Tensor]:
    scores, *causes = outputs(network, crops)
    return [scores.mean(dim=1), *causes]


@contextlib.contextmanager
def simulated(network: Ensemble, layers: dict[str, float]) -> Iterator[None]:
    """Within the block the layers compute as if in INT8, with these ranges."""
    modules = quantised_layers(network)

    def rounded(values: Tensor, scale: Tensor | float) -> Tensor:
        return (values / scale).round().clamp(-LEVELS, LEVELS) * scale

    def watch(scale: float) -> Callable[[nn.Module, tuple[Tensor, ...]], Tensor]:
        return lambda module, inputs: rounded(inputs[0], scale)

    with contextlib.ExitStack() as stack:
        for name, largest in layers.items():
            layer: Any = modules[name]
            exact = layer.weight.data
            stack.callback(layer.register_forward_pre_hook(watch(largest / LEVELS)).remove)
            stack.callback(setattr, layer.weight, "data", exact)
            scales = (exact.abs().amax(dim=(1, 2, 3), keepdim=True) / LEVELS).clamp(min=1e-12)
            layer.weight.data = rounded(exact, scales)
        yield


def with_qdq(model: onnx.ModelProto, ranges: Ranges, *, signed: bool = True) -> onnx.ModelProto:
    """The ONNX network with QuantizeLinear and DequantizeLinear about every layer that has a range.

    Args:
        model: as `fiqa_trt.building.export` makes it: a convolution's weight goes by the name of its layer.
        ranges: of the same network.
        signed: store activations as signed integers, as TensorRT wants them; else as unsigned ones about 128. Both
            stand for the same values. OpenVINO 2026.4 computes pointwise convolutions of signed activations wrongly
            (their scores are 0.03 off ONNX Runtime's), so its engines are made with unsigned ones.

    Raises:
        EngineError: the ranges name layers that the network does not have.
    """
    import onnx
    from onnx import helper, numpy_helper

    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    weights = {initializer.name: initializer for initializer in graph.initializer}
    nodes, added, done = list(graph.node), dict[str, str](), set[str]()
    zero = np.array(0, np.int8) if signed else np.array(128, np.uint8)
    del graph.node[:]

    def constant(name: str, values: npt.NDArray[np.generic]) -> str:
        graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    for node in nodes:
        layer = node.input[1].removesuffix(".weight") if node.op_type == "Conv" else ""
        if layer in ranges.layers:
            source, weight = node.input[0], numpy_helper.to_array(weights[node.input[1]])
            scale = np.float32(ranges.layers[layer] / LEVELS)
            # Layers that read the same tensor have the same range, so they share its quantisation.
            if source not in added:
                inputs = [constant(f"{source}.scale", np.array(scale)), constant(f"{source}.zero", zero)]
                graph.node.append(helper.make_node("QuantizeLinear", [source, *inputs], [f"{source}.int8"]))
                graph.node.append(helper.make_node("DequantizeLinear", [f"{source}.int8", *inputs], [f"{source}.dq"]))
                added[source] = f"{source}.dq"
            scales = (np.abs(weight).max(axis=(1, 2, 3)) / LEVELS).clip(1e-12).astype(np.float32)
            integers = np.rint(weight / scales[:, None, None, None]).astype(np.int8)
            graph.initializer.remove(weights.pop(node.input[1]))
            inputs = [
                constant(f"{layer}.weight", integers),
                constant(f"{layer}.scale", scales),
                constant(f"{layer}.zero", np.zeros(len(scales), np.int8)),
            ]
            graph.node.append(helper.make_node("DequantizeLinear", inputs, [f"{layer}.dq"], axis=0))
            node.input[0], node.input[1] = added[source], f"{layer}.dq"
            done.add(layer)
        graph.node.append(node)
    if missing := ranges.layers.keys() - done:
        raise EngineError(f"the INT8 ranges name layers that this network does not have, such as {min(missing)}")
    onnx.checker.check_model(quantised)
    return quantised
