"""A checkpoint as an engine directory: the ONNX network beside its manifest. Needs torch (`[train]`)."""

from __future__ import annotations

import hashlib
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fiqa_trt.engines.base import MANIFEST, Manifest
from fiqa_trt.engines.torch import load_checkpoint
from fiqa_trt.errors import EngineError, storage_error
from fiqa_trt.spec import ModelSpec

if TYPE_CHECKING:
    import onnx

OPSET = 18
PAYLOAD = "ensemble.onnx"
TOLERANCE = 1e-5


def verification_batch(count: int = 16, size: int = 224, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Images that reach every range of the scores: uint8 [count, size, size, 3], smooth to noisy, dark to bright."""
    from PIL import Image

    rng = np.random.default_rng(seed)
    images = []
    for index in range(count):
        cells = int(np.geomspace(3, size, count)[index])
        coarse = rng.integers(0, 256, (cells, cells, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        images.append(np.asarray(smooth) * rng.uniform(0.2, 1))
    return np.stack(images).astype(np.uint8)


def export(checkpoint: Path, folder: Path) -> Manifest:
    """Write `ensemble.onnx` and `engine.json` for a checkpoint; returns the manifest.

    The network takes `images` (uint8 RGB [batch, 224, 224, 3], any batch) and gives `member_scores` (float32
    [batch, 2]). It is compared in ONNX Runtime with PyTorch on a verification batch before anything is written.

    Raises:
        EngineError: the checkpoint does not fit, or the two differ by more than 1e-5.
        RunError: the folder cannot be written.
    """
    try:
        import onnx
        import onnxruntime
        import torch
    except ImportError as exc:
        raise EngineError(f"export needs {exc.name}: pip install 'fiqa-trt[train]'") from exc

    spec = ModelSpec()
    network = load_checkpoint(checkpoint)
    images = verification_batch(size=spec.preprocess.size)
    with torch.inference_mode():
        expected = network(torch.from_numpy(images)).numpy()
    network.fold()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        program = torch.onnx.export(
            network,
            (torch.from_numpy(images[:2]),),
            input_names=["images"],
            output_names=["member_scores"],
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            verbose=False,
        )
    assert program is not None
    model = _bare(program.model_proto)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    difference = np.abs(session.run(None, {"images": images})[0] - expected)
    if not difference.max() <= TOLERANCE:
        raise EngineError(
            f"the ONNX network differs from {checkpoint} by {difference.max():.2g} (at most {TOLERANCE:g})"
        )
    payload = model.SerializeToString()
    manifest = Manifest(
        model=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        precision="fp32",
        target="cpu",
        payload=PAYLOAD,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        agreement={"images": len(images), "max": float(difference.max()), "mean": float(difference.mean())},
        versions={"torch": torch.__version__, "onnx": onnx.__version__, "opset": str(OPSET)},
        spec=spec,
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            manifest.write(Path(scratch))
            (Path(scratch) / PAYLOAD).write_bytes(payload)
            for name in (PAYLOAD, MANIFEST):
                (Path(scratch) / name).replace(folder / name)
    except OSError as exc:
        raise storage_error(folder, exc) from exc
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
