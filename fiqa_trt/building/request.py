"""What a build is asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from fiqa_trt.engines.opening import CHECKPOINT
from fiqa_trt.storage.places import Place


@dataclasses.dataclass(frozen=True)
class Request:
    """What to build.

    Attributes:
        precision: fp32, fp16 or int8.
        checkpoint: safetensors.
        device: auto, cpu, cuda or cuda:i.
        backend: auto, openvino, tensorrt, tensorrt-rtx or torch.
        max_batch: largest batch; None for 32 on a CPU and 512 on a GPU.
        calibration: for int8: crops in a folder, a shard or a list, or a file of ranges; None for the shipped ones.
        output: the engine directory; None for one in the store, named after backend and precision.
        target: `here`, or `cuda` for a GPU of another machine.
        capability: that GPU's compute capability, as in 8.6; None for all that an engine is for by default.
        version_compatible: for later versions of TensorRT, and its lean runtime, too.
    """

    precision: str = "fp16"
    checkpoint: Path = CHECKPOINT
    device: str = "auto"
    backend: str = "auto"
    max_batch: int | None = None
    calibration: Place | None = None
    output: Path | None = None
    target: str = "here"
    capability: str | None = None
    version_compatible: bool = False
