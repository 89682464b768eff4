"""Engines: the same ensemble on different hardware, behind one protocol. `open_engine` chooses."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path

from fiqa_trt.engines.base import PRECISIONS, Engine, EngineInfo
from fiqa_trt.engines.manifest import Manifest
from fiqa_trt.engines.store import best_engine, list_engines, store
from fiqa_trt.errors import EngineError, OutOfMemory
from fiqa_trt.libraries import import_library
from fiqa_trt.progress import Say, silent

RELEASED = Path(__file__).parent.parent / "weights"
CHECKPOINT = RELEASED / "ensemble.safetensors"
BACKENDS = ("openvino", "tensorrt", "torch")

__all__ = [
    "CHECKPOINT", "PRECISIONS", "RELEASED", "Engine", "EngineInfo", "Manifest", "choose_device", "open_engine",
    "open_sizes", "precisions_worth_building",
]  # fmt: skip


def open_engine(
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch: int | None = None,
    say: Say = silent,
) -> Engine:
    """The engine for this machine and these wishes.

    `auto` takes the best engine of the released checkpoint that was built here (see `store.best_engine`); without one,
    OpenVINO or PyTorch runs the released network as it is. A batch that a GPU has no memory for is halved until it
    fits, and `say` hears of it. Whatever it is, it has scored some crops whose scores are known before it is returned.

    Args:
        device: auto, cpu, cuda or cuda:i. Only `auto` falls back to the CPU, and tells `say` why.
        precision: auto, fp32, fp16 or int8.
        engine: auto, `openvino`, `tensorrt`, `torch`, or an engine directory.
        batch: images per call; the engine's own choice by default.
        say: receives one line for each decision that the user should know of.

    Raises:
        EngineError: what was asked for cannot be had here.
    """

    def opened(batch: int | None) -> tuple[Engine, Manifest]:
        tried = None
        while True:
            try:
                return _open(device, precision, engine, batch, say)
            except OutOfMemory as exc:
                if exc.batch < 2 or exc.batch == tried:  # an engine may not take fewer
                    raise
                tried, batch = exc.batch, exc.batch // 2
                say(f"{exc}: trying batches of {batch}")

    return check_known(lambda: opened(batch), say)


def open_sizes(
    device: str = "auto",
    precision: str = "auto",
    engine: str = "auto",
    batch: int | None = None,
    say: Say = silent,
) -> tuple[Engine, Engine]:
    """`open_engine`, and the same engine for the fewest images that it takes: one, on most.

    A batch costs the same however few of its places are filled, and shapes that change from call to call cost OpenVINO
    40 % of its speed; so small calls have an engine of their own. The two are one where the batch is that small, or
    where a GPU has no memory for both.
    """
    heard = set[str]()

    def once(message: str) -> None:
        if message not in heard:
            heard.add(message)
            say(message)

    large = open_engine(device, precision, engine, batch, once)
    if large.info.batch == 1:
        return large, large
    try:
        small = open_engine(large.place, precision, engine, 1, once)
    except OutOfMemory:
        return large, large
    except BaseException:
        large.close()
        raise
    return large, small


def check_known(opened: Callable[[], tuple[Engine, Manifest]], say: Say = silent) -> Engine:
    """The engine that `opened` opens, with the manifest that says what it must score; see `known.difference`.

    If it does not, and came from a cache, that is dropped, and it is opened once more.

    Raises:
        EngineError: it scores otherwise than it should; or what `opened` raises.
    """
    from fiqa_trt.engines.known import difference

    for last in (False, True):
        found, manifest = opened()
        problem = difference(found, manifest)
        if problem is None:
            return found
        found.close()
        if last or found.kept is None:
            break
        say(f"{problem}, so {found.kept.path} is not used: the network is compiled anew")
        found.kept.drop()
    raise EngineError(
        f"{found.info.backend} on {found.info.device} does not score as it should: {problem}; see fiqa-trt doctor, "
        "build the engine again (fiqa-trt build), or use another --engine"
    )


def _open(device: str, precision: str, engine: str, batch: int | None, say: Say) -> tuple[Engine, Manifest]:
    """An engine, and the manifest of what it runs."""
    _check_device(device)
    if precision not in ("auto", *PRECISIONS):
        raise EngineError(f"--precision {precision}: it is one of auto, {', '.join(PRECISIONS)}")
    if engine not in ("auto", *BACKENDS):
        if not Path(engine).is_dir():
            raise EngineError(
                f"--engine {engine}: no such directory; it is auto, {', '.join(BACKENDS)} or an engine directory"
            )
        return _open_directory(Path(engine), device, precision, batch, say)
    if engine == "openvino" and device.startswith("cuda"):
        raise EngineError(f"--engine openvino runs on the CPU; with --device {device} use --engine auto or torch")
    if device == "auto":
        device = "cuda" if engine != "openvino" and _usable_gpu(say) else "cpu"
    if engine == "tensorrt" and device == "cpu":
        raise EngineError("--engine tensorrt runs on a GPU; on a CPU use --engine auto or openvino")
    kind, released = "cpu" if device == "cpu" else "cuda", Manifest.read(RELEASED)
    if kind == "cuda":
        from fiqa_trt.engines.cuda import check_cuda

        check_cuda(device)
    if engine != "torch":
        found = list_engines(store(), released.model, None if kind == "cpu" else device)
        best = best_engine([entry for entry in found if _is_of(entry.manifest, engine)], kind, precision)
        if best is not None:
            say(f"using {best.folder}")
            return _open_directory(best.folder, device, precision, batch, say)
        if engine == "tensorrt":
            raise EngineError("there is no TensorRT engine that can be used here; make one with: fiqa-trt build")
    if kind == "cpu" and engine != "torch":
        from fiqa_trt.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(RELEASED, precision, batch, say), released
    from fiqa_trt.engines.torch import open_torch

    if kind == "cuda" and engine == "auto":
        from fiqa_trt.engines.tensorrt import INSTALL, tensorrt_version

        missing = f"TensorRT is missing ({INSTALL})"
        unbuilt = "no engine has been built here (fiqa-trt build makes one)"
        say(f"{missing if tensorrt_version() is None else unbuilt}, so PyTorch runs the network")
    return open_torch(CHECKPOINT, device, precision, batch), released


def _is_of(manifest: Manifest | None, engine: str) -> bool:
    return engine == "auto" or (manifest is not None and manifest.backend == engine)


def _open_directory(folder: Path, device: str, precision: str, batch: int | None, say: Say) -> tuple[Engine, Manifest]:
    """The engine of a directory, whatever runs it. Raises EngineError as `open_engine`."""
    manifest, released = Manifest.read(folder), Manifest.read(RELEASED)
    needed = "cpu" if manifest.backend in ("onnx", "openvino") else "cuda"
    if device != "auto" and device.partition(":")[0] != needed:
        raise EngineError(f"{folder} runs on {needed}, not on --device {device}")
    if manifest.model != released.model:
        models = f"{manifest.model[:12]}, not {released.model[:12]}"
        say(f"{folder} is of another checkpoint than the released one ({models})")
    if not manifest.reference:
        # Built by a version that recorded no scores. Of the released checkpoint, those of FP32 are at hand.
        if manifest.model == released.model:
            manifest = dataclasses.replace(manifest, reference=released.reference)
        else:
            say(f"{folder} does not record what it scores, so that cannot be checked; build it again")
    if needed == "cpu":
        from fiqa_trt.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(folder, precision, batch, say), manifest
    if precision not in ("auto", manifest.precision):
        raise EngineError(f"{folder} is an {manifest.precision} engine; build one for --precision {precision}")
    place = "cuda" if device == "auto" else device
    if manifest.backend == "tensorrt":
        from fiqa_trt.engines.tensorrt import open_tensorrt

        return open_tensorrt(folder, place, batch), manifest
    from fiqa_trt.engines.torch import open_torch_directory

    return open_torch_directory(folder, place, batch), manifest


def _check_device(device: str) -> None:
    kind, colon, index = device.partition(":")
    numbered = kind == "cuda" and index.isdecimal() and index == str(int(index))
    if kind not in ("auto", "cpu", "cuda") or (colon and not numbered):
        raise EngineError(f"--device {device}: it is one of auto, cpu, cuda, cuda:0, cuda:1, ...")


def choose_device(device: str, say: Say = silent) -> str:
    """A device for torch: `auto` becomes `cuda` where that can be used, else `cpu`, and `say` hears why.

    Raises:
        EngineError: not a device, or not one of this machine.
    """
    _check_device(device)
    if device == "auto":
        return "cuda" if _usable_gpu(say) else "cpu"
    if device != "cpu":
        from fiqa_trt.engines.cuda import check_cuda

        check_cuda(device)
    return device


def precisions_worth_building(device: str) -> tuple[str, ...]:
    """What may be quicker than FP32: on a GPU FP16, as INT8 seldom is; on a CPU 16 bits, if it has them, and INT8."""
    if device != "cpu":
        return ("fp16",)
    from fiqa_trt.engines.openvino import half_arithmetic

    return ("fp16" if half_arithmetic(import_library("openvino").Core()) else "fp32", "int8")


def _usable_gpu(say: Say) -> bool:
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
