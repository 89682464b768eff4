"""The same network in PyTorch: the reference for other engines, and the engine of a plain CUDA machine."""

from __future__ import annotations

import hashlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fiqa_trt.engines.base import EngineInfo, Scores
from fiqa_trt.errors import EngineError, RunError

if TYPE_CHECKING:
    from fiqa_trt.networks import Ensemble

DEFAULT_BATCH = {"cpu": 8, "cuda": 256}


def load_checkpoint(path: Path) -> Ensemble:
    """The ensemble with the weights of a safetensors file, in evaluation mode.

    Raises:
        EngineError: torch is not there, or the file is not a checkpoint of this ensemble.
    """
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from fiqa_trt.networks import Ensemble
    except ImportError as exc:
        raise EngineError(f"a checkpoint needs {exc.name}: pip install 'fiqa-trt[gpu]'") from exc
    network = Ensemble()
    try:
        network.load_state_dict(load_file(path))
    except (OSError, RuntimeError, SafetensorError) as exc:
        raise EngineError(f"{path} is not a checkpoint of this ensemble: {str(exc).splitlines()[0]}") from exc
    return network.eval()


def check_cuda(device: str) -> None:
    """Raise EngineError unless torch can use this CUDA device."""
    import torch

    if not torch.cuda.is_available():
        raise EngineError(f"--device {device}: torch {torch.__version__} sees no CUDA GPU; use --device cpu or auto")
    if (torch.device(device).index or 0) >= torch.cuda.device_count():
        raise EngineError(f"--device {device}: this machine has {torch.cuda.device_count()} CUDA GPU(s)")


class TorchEngine:
    """Eager PyTorch, channels-last, one call at a time in a thread of its own."""

    slots = 1

    def __init__(
        self, checkpoint: Path, device: str = "cpu", precision: str = "auto", batch: int | None = None
    ) -> None:
        """Load a checkpoint (safetensors).

        Args:
            checkpoint: the ensemble's weights.
            device: `cpu`, `cuda` or `cuda:i`.
            precision: fp32, fp16 (CUDA only) or auto: fp16 on CUDA, fp32 on a CPU.
            batch: images per call.

        Raises:
            EngineError: torch or CUDA is not there, the checkpoint does not fit, a precision that is not to be had.
        """
        try:
            import torch
        except ImportError as exc:
            raise EngineError("this engine needs torch: pip install 'fiqa-trt[gpu]'") from exc
        kind = device.partition(":")[0]
        if kind == "cuda":
            check_cuda(device)
        if precision == "int8" or (precision == "fp16" and kind == "cpu"):
            raise EngineError(f"the torch engine has no {precision} on {kind}; use another --precision or --engine")
        half = kind == "cuda" and precision != "fp32"
        network = load_checkpoint(checkpoint)
        network = network.to(device, torch.float16 if half else torch.float32)
        self._network = network.to(memory_format=torch.channels_last)
        self._device = torch.device(device)
        self._thread = ThreadPoolExecutor(1, "torch")
        name = torch.cuda.get_device_name(self._device) if kind == "cuda" else "CPU"
        precision = "fp16" if half else "fp32"
        model = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        members = tuple(network.members)
        batch = batch or DEFAULT_BATCH[kind]
        self.info = EngineInfo(f"torch {torch.__version__}", name, precision, precision, batch, model, members)

    def submit(self, images: npt.NDArray[np.uint8]) -> Future[Scores]:
        """See `Engine.submit`."""
        return self._thread.submit(self._run, images)

    def _run(self, images: npt.NDArray[np.uint8]) -> Scores:
        import torch

        try:
            with torch.inference_mode():
                scores = self._network(torch.from_numpy(images).to(self._device, non_blocking=True))
            return np.asarray(scores.cpu().numpy(), np.float32)
        except RuntimeError as exc:
            raise RunError(f"torch could not score a batch: {str(exc).splitlines()[0]}") from exc

    def close(self) -> None:
        """See `Engine.close`."""
        self._thread.shutdown(cancel_futures=True)
