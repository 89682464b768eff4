"""Engines: the same ensemble on different hardware, behind one protocol. `open_engine` chooses."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from fiqa_trt.engines.base import PRECISIONS, Engine, EngineInfo, Manifest
from fiqa_trt.errors import EngineError

RELEASED = Path(__file__).parent.parent / "weights"
CHECKPOINT = RELEASED / "ensemble.safetensors"

__all__ = ["CHECKPOINT", "PRECISIONS", "RELEASED", "Engine", "EngineInfo", "Manifest", "choose_device", "open_engine"]


def open_engine(
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch: int | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> Engine:
    """The engine for this machine and these wishes.

    Args:
        device: auto, cpu, cuda or cuda:i. Only `auto` falls back to the CPU, and tells `say` why.
        precision: auto, fp32, fp16 or int8.
        engine: auto, `openvino`, `torch`, or an engine directory.
        batch: images per call; the engine's own choice by default.
        say: receives one line for each decision that the user should know of.

    Raises:
        EngineError: what was asked for cannot be had here.
    """
    _check_device(device)
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"--precision {precision}: it is one of auto, {', '.join(PRECISIONS)}")
    if engine not in ("auto", "openvino", "torch") and not Path(engine).is_dir():
        raise EngineError(f"--engine {engine}: no such directory; it is auto, openvino, torch or an engine directory")
    if device == "auto":
        device = "cuda" if engine in ("auto", "torch") and precision != "int8" and _usable_gpu(say) else "cpu"
    if engine == "torch" or (engine == "auto" and device.startswith("cuda")):
        from fiqa_trt.engines.torch import TorchEngine

        return TorchEngine(CHECKPOINT, device, precision, batch)
    if device.startswith("cuda"):
        raise EngineError(f"--engine {engine} runs on the CPU; with --device {device} use --engine auto or torch")
    from fiqa_trt.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(RELEASED if engine in ("auto", "openvino") else Path(engine), precision, batch)


def _check_device(device: str) -> None:
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        raise EngineError(f"--device {device}: it is one of auto, cpu, cuda, cuda:0, cuda:1, …")


def choose_device(device: str, say: Callable[[str], None] = lambda message: None) -> str:
    """A device for torch: `auto` becomes `cuda` where that can be used, else `cpu`, and `say` hears why.

    Raises:
        EngineError: not a device, or not one of this machine.
    """
    _check_device(device)
    if device == "auto":
        return "cuda" if _usable_gpu(say) else "cpu"
    if device != "cpu":
        from fiqa_trt.engines.torch import check_cuda

        check_cuda(device)
    return device


def _usable_gpu(say: Callable[[str], None]) -> bool:
    """Whether CUDA can be used; where there is a GPU that cannot, `say` hears why. Costs nothing without a GPU."""
    if not Path("/proc/driver/nvidia/version").exists():
        return False
    if importlib.util.find_spec("torch") is None:
        say("there is an NVIDIA GPU, but torch is not installed, so this runs on the CPU: pip install 'fiqa-trt[gpu]'")
        return False
    import torch

    if not torch.cuda.is_available():
        say(f"there is an NVIDIA GPU, but torch {torch.__version__} cannot use it, so this runs on the CPU")
        return False
    return True
