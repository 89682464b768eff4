"""CPU engines: OpenVINO, in FP32, FP16 or INT8."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fiqa_trt.building.calibration import (
    Pixels,
    Trial,
    are_crops,
    prefers_shipped,
    read_crops,
    read_ranges,
    shipped_for,
)
from fiqa_trt.building.export import exported_network
from fiqa_trt.building.measuring import Measured, batch_sizes, measure_engine, quickest, with_figures
from fiqa_trt.building.quantize import Ranges, is_sensitive, with_qdq
from fiqa_trt.building.request import Request
from fiqa_trt.engines.base import Judged
from fiqa_trt.engines.manifest import Draft, Manifest, Target, this_processor
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.errors import EngineError
from fiqa_trt.libraries import import_library
from fiqa_trt.progress import Say

BATCHES = (4, 8, 16, 32)  # not 1: what an engine gains by it, if anything, the other stages of a run lose
_PREFERRED = 8


def build_openvino(request: Request, device: str, draft: Draft, scratch: Path, say: Say) -> tuple[Manifest, bytes]:
    """OpenVINO's form of the exported network, in the arithmetic that is asked for; its own INT8 needs no GPU tools."""
    from fiqa_trt.engines.openvino import (
        OpenVinoEngine,
        half_arithmetic,
        pack_network,
        read_network,
    )

    openvino = import_library("openvino")
    source = exported_network(request.checkpoint, scratch)
    exported, core = Manifest.read(source), openvino.Core()
    onnx = exported.read_payload(source)
    versions = {"openvino": openvino.__version__}
    if request.precision != "int8":
        network = read_network(core, onnx, "onnx")
    elif request.calibration is not None and are_crops(request.calibration):
        network = _from_crops(core, onnx, read_crops(request.calibration, say), exported.model, versions, say)
    else:
        network = _from_ranges(core, onnx, read_ranges(request.calibration), exported.model, versions)
    payload = pack_network(network, half=request.precision != "fp32")
    largest = request.max_batch or BATCHES[-1]
    manifest = dataclasses.replace(
        exported,
        backend="openvino",
        precision=request.precision,
        target=Target("cpu", this_processor(), tuple(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"))),
        batch=(1, min(_PREFERRED, largest), largest),
        payload="network.zip",
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        versions=versions,
        reference=(),
        severities=(),
    )
    halves = half_arithmetic(core)
    choices = {"fp32": ["fp32"], "fp16": halves, "int8": [f"int8 and {name}" for name in ("fp32", *halves)]}
    if not choices[request.precision]:
        raise EngineError("this processor has neither BF16 nor FP16 arithmetic; use --precision fp32 or int8")

    ways = choices[request.precision]
    sizes = sorted(batch_sizes(BATCHES, largest), key=lambda size: abs(math.log2(size / _PREFERRED)))
    with contextlib.closing(OpenVinoEngine(RELEASED)) as unbuilt:  # what `score` runs where nothing was built

        def measured(executed: str, batches: Sequence[int]) -> Measured:
            draft.write(dataclasses.replace(manifest, executed=executed), payload)
            return measure_engine(
                lambda batch: OpenVinoEngine(draft.folder, request.precision, batch),
                batches, exported.known, request.precision, executed, say, beside=unbuilt,
            )  # fmt: skip

        say(f"timing it in {', '.join(ways)} beside what runs without it")
        way = ways[0]
        if len(ways) > 1:
            way, _ = quickest(lambda executed: measured(executed, sizes[:1]), ways, say)
        return with_figures(manifest, measured(way, sizes)), payload


def _judge(core: Any, network: Any) -> Callable[[Pixels], Judged]:
    """A network as a function of uint8 [N, 224, 224, 3]."""
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def judge(images: Pixels) -> Judged:
        count = len(compiled.outputs)
        found = (compiled(images[start : start + 8]) for start in range(0, len(images), 8))
        parts = [[np.array(each[index]) for index in range(count)] for each in found]
        return Judged.of([np.concatenate(each) for each in zip(*parts, strict=True)])

    return judge


def _from_crops(core: Any, onnx: bytes, crops: Pixels, model: str, versions: dict[str, str], say: Say) -> Any:
    """The network quantised on some crops, or by the shipped ranges where those serve the crops better."""
    from fiqa_trt.engines.openvino import read_network

    say(f"measuring INT8 ranges on {len(crops)} crops, which takes a minute or two")
    before = dict(versions)
    network = _calibrated(read_network(core, onnx, "onnx"), crops, versions)
    shipped = shipped_for(model)
    if shipped is None:
        return network
    theirs = _from_ranges(core, onnx, shipped, model, before)
    exact = _judge(core, read_network(core, onnx, "onnx"))
    trials = [Trial.of(_judge(core, each), exact, crops) for each in (network, theirs)]
    if not prefers_shipped(trials[0], trials[1], say):
        return network
    versions.clear()
    versions.update(before)
    return theirs


def _from_ranges(core: Any, payload: bytes, ranges: Ranges, model: str, versions: dict[str, str]) -> Any:
    from fiqa_trt.engines.openvino import read_network

    try:
        import onnx
    except ImportError as exc:
        raise EngineError("building an int8 engine needs onnx: pip install 'fiqa-trt[build]'") from exc
    ranges.check_model(model)
    versions["onnx"] = onnx.__version__
    quantised = with_qdq(onnx.ModelProto.FromString(payload), ranges, signed=False)
    return read_network(core, quantised.SerializeToString(), "onnx")


def _calibrated(network: Any, crops: Pixels, versions: dict[str, str]) -> Any:
    """The network quantised by NNCF's post-training quantisation on some crops."""
    try:
        nncf = import_library("nncf")
    except ImportError as exc:
        raise EngineError(
            "calibrating on a CPU needs nncf: pip install 'fiqa-trt[build]' (or leave --calibration out)"
        ) from exc
    versions["nncf"] = nncf.__version__
    kept = [
        operation.get_friendly_name()
        for operation in network.get_ops()
        if operation.get_type_name() in ("Convolution", "MatMul") and is_sensitive(_layer(operation))
    ]
    data = nncf.Dataset([crops[index : index + 1] for index in range(len(crops))])
    # The mixed preset keeps activations unsigned; see `with_qdq` for why that matters.
    preset, ignored = nncf.QuantizationPreset.MIXED, nncf.IgnoredScope(names=kept)
    with _without_nncf_notes():
        return nncf.quantize(network, data, preset=preset, ignored_scope=ignored, subset_size=len(crops))


@contextlib.contextmanager
def _without_nncf_notes() -> Iterator[None]:
    """It writes of every layer that it leaves alone, and draws bars, to standard output."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


def _layer(operation: Any) -> str:
    """Name of the layer that an OpenVINO operation came from, by its weight; empty if it has none."""
    name: str = operation.input_value(1).get_node().get_friendly_name()
    return name.removesuffix(".weight")
