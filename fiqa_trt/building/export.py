"""A checkpoint as an engine directory with the network as ONNX. Needs torch (`[build]`)."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fiqa_trt.building.measuring import recorded
from fiqa_trt.building.quantize import Ranges, with_qdq
from fiqa_trt.engines.base import Judged
from fiqa_trt.engines.known import agreement
from fiqa_trt.engines.manifest import Draft, Manifest, Target, digest_of, new_engine
from fiqa_trt.engines.opening import RELEASED
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.errors import EngineError
from fiqa_trt.libraries import import_library
from fiqa_trt.models.verification import check, verification_batch

if TYPE_CHECKING:
    import onnx

OPSET = 18
PAYLOAD = "ensemble.onnx"
DEFAULT_BATCH = 8  # on a CPU small batches stay in the caches; see benchmarks/
_TOLERANCE = 1e-5


def export(checkpoint: Path, folder: Path, ranges: Ranges | None = None) -> Manifest:
    """Write `ensemble.onnx` and `engine.json` for a checkpoint; returns the manifest.

    The network takes `images` (uint8 RGB [batch, 224, 224, 3], any batch) and gives `member_scores` (float32
    [batch, members]) and, if it tells of causes, `causes` (float32 [batch, causes]). It is compared in ONNX Runtime
    with PyTorch on the verification batch before anything is written.

    Args:
        checkpoint: safetensors.
        folder: to be made or replaced.
        ranges: with them the network is in INT8, with Q/DQ nodes.

    Raises:
        EngineError: the checkpoint does not fit, or the two differ by more than 1e-5 (INT8: than its tolerance).
        RunError: the folder cannot be written.
    """
    try:
        import onnx  # noqa: F401
        import torch  # noqa: F401

        import_library("onnxruntime")
    except ImportError as exc:
        raise EngineError(f"export needs {exc.name}: pip install 'fiqa-trt[build]'") from exc

    with new_engine(folder) as draft:  # a folder that cannot be is refused before the work
        return _exported(checkpoint, draft, str(folder), ranges)


def exported_network(checkpoint: Path, scratch: Path) -> Path:
    """An engine directory with a checkpoint's network as ONNX: the shipped one if it is of it, else one in `scratch`.

    Raises:
        EngineError: as `export`.
    """
    if Manifest.read(RELEASED).model == digest_of(checkpoint):
        return RELEASED
    export(checkpoint, scratch / "onnx")
    return scratch / "onnx"


def _exported(checkpoint: Path, draft: Draft, what: str, ranges: Ranges | None) -> Manifest:
    import onnx
    import torch

    network = load_checkpoint(checkpoint)
    model = digest_of(checkpoint)
    images = verification_batch()
    with torch.inference_mode():
        expected = Judged.of([each.numpy() for each in network(torch.from_numpy(images))])
    network.fold()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            network,
            (torch.from_numpy(images[:2]),),
            input_names=["images"],
            output_names=list(network.spec.outputs),
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    assert program is not None
    exported = _bare(program.model_proto)
    if ranges is not None:
        ranges.check_model(model)
        exported = with_qdq(exported, ranges)
    payload = exported.SerializeToString()
    session = import_library("onnxruntime").InferenceSession(payload, providers=["CPUExecutionProvider"])
    found = Judged.of(session.run(None, {"images": images}))
    near = agreement(found, expected)
    most = max(float(np.abs(a - b).max(initial=0)) for a, b in zip(found, expected, strict=True))
    if ranges is not None:
        check(near, "int8", what)
    elif not most <= _TOLERANCE:
        raise EngineError(f"the ONNX network differs from {checkpoint} by {most:.2g} (at most {_TOLERANCE:g})")
    manifest = Manifest(
        model=model,
        backend="onnx",
        precision="fp32" if ranges is None else "int8",
        executed="fp32",
        target=Target("cpu"),
        batch=(1, DEFAULT_BATCH, 1 << 16),
        payload=PAYLOAD,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        agreement=near.rounded(),
        throughput=0.0,
        seconds=0.0,
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "opset": str(OPSET)},
        spec=network.spec,
        **recorded(expected),
    )
    draft.write(manifest, payload)
    return manifest


def _bare(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the exporter's notes: they name source files of the machine that it ran on."""
    for entries in (model.metadata_props, model.graph.metadata_props):
        del entries[:]
    for item in (
        *model.graph.node,
        *model.graph.input,
        *model.graph.output,
        *model.graph.value_info,
        *model.graph.initializer,
    ):
        del item.metadata_props[:]
        item.doc_string = ""
    del model.graph.value_info[:]
    return model
