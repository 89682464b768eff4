"""What works on this machine, and for each thing that does not, the one command that would make it work."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import os
import platform
import re
import tempfile
import textwrap
from typing import Any

from fiqa_trt.engines import cuda, rtx
from fiqa_trt.engines.cache import cache_folder
from fiqa_trt.engines.manifest import this_processor
from fiqa_trt.engines.tensorrt import FULL, LEAN
from fiqa_trt.errors import FiqaError, one_line
from fiqa_trt.libraries import import_library
from fiqa_trt.shell import command_line
from fiqa_trt.version import __version__

PACKAGES = (
    "openvino", "torch", "torchvision", "torch-tensorrt", "tensorrt", "tensorrt-lean-cu13", "torch-tensorrt-rtx",
    "tensorrt-rtx-cu13", "cuda-bindings", "nvidia-dali-cuda130", "nvidia-ml-py", "nvidia-modelopt", "nncf", "onnx",
    "onnxruntime", "numpy", "pillow", "simplejpeg", "pyarrow",
)  # fmt: skip
NO_GPU = "needs an NVIDIA GPU"
"""What stands for a remedy where there is none."""


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that may work here.

    Attributes:
        name: of it.
        works: whether it was seen to work.
        detail: what was seen.
        remedy: the command, or the words, that would make it work; empty if it does.
    """

    name: str
    works: bool
    detail: str
    remedy: str = ""


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU as NVML describes it; memory in bytes."""

    name: str
    memory: int
    driver: str


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """Everything that `fiqa-trt doctor` says."""

    version: str
    python: str
    system: str
    processor: str
    cores: int
    arithmetic: list[str]
    gpus: list[Gpu]
    versions: dict[str, str | None]
    checks: list[Check]


def examine() -> Diagnosis:
    """Try everything. Takes some seconds: it imports every library that is there."""
    gpus, nvml = _gpus()
    versions = {name: _version(name) for name in PACKAGES}
    has_gpu = bool(gpus)
    return Diagnosis(
        version=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        processor=this_processor(),
        cores=len(os.sched_getaffinity(0)),
        arithmetic=_arithmetic(),
        gpus=gpus,
        versions=versions,
        checks=[
            _openvino(),
            _decoder(),
            _cache(),
            nvml,
            _torch(has_gpu),
            _cuda(has_gpu),
            _tensorrt(has_gpu),
            _torch_tensorrt(has_gpu),
            _rtx(has_gpu),
            _dali(has_gpu),
            _importable("INT8 on a GPU (modelopt)", "modelopt", _gpu_only(has_gpu, "nvidia-modelopt[hf]")),
            _importable("calibrating INT8 on a CPU (NNCF)", "nncf", "pip install 'fiqa-trt[build]'"),
            _importable("building INT8 on a CPU (onnx)", "onnx", "pip install 'fiqa-trt[build]'"),
            *(
                _importable(f"{what} ({module})", module, _install(extra))
                for what, module, extra in (
                    ("export", "onnxruntime", "build"),
                    ("export", "onnxscript", "build"),
                    ("training and synthesize", "cv2", "train"),
                    ("training", "matplotlib", "train"),
                    ("eval", "scipy", "train"),
                    ("synthesize", "piq", "train"),
                    ("object stores", "obstore", "cloud"),
                    ("the Hub", "huggingface_hub", "hf"),
                    ("clusters", "ray", "ray"),
                )
            ),
        ],
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _arithmetic() -> list[str]:
    try:
        openvino = import_library("openvino")
        return [str(name) for name in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")]
    except Exception:  # the check of OpenVINO says why
        return []


def _gpus() -> tuple[list[Gpu], Check]:
    name = "GPU readings (nvidia-ml-py)"
    if importlib.util.find_spec("pynvml") is None:
        return [], Check(name, False, "not installed, so no GPU is seen", "pip install nvidia-ml-py")
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as exc:
        return [], Check(name, False, str(exc), "install NVIDIA's driver, if there is a GPU")
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        found = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)
            found.append(Gpu(_text(pynvml.nvmlDeviceGetName(handle)), memory, driver))
    except pynvml.NVMLError as exc:
        return [], Check(name, False, str(exc), "update NVIDIA's driver")
    finally:
        pynvml.nvmlShutdown()
    return found, Check(name, True, f"{len(found)} GPU(s), driver {driver}")


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _seen(name: str, function: Any, remedy: str) -> Check:
    """The check that `function` passes if it returns what it saw, and fails if it raises whatever a library raises."""
    try:
        return Check(name, True, function())
    except Exception as exc:
        return Check(name, False, _reason(exc), remedy)


def _reason(error: Exception) -> str:
    """What an error says, in a line: of others' long texts whole words; of ours all but what stands below it."""
    if isinstance(error, FiqaError):
        return re.split("[:;,] pip install ", str(error))[0]
    return textwrap.shorten(one_line(error, 2000), 160, placeholder=" ...")


def _openvino() -> Check:
    def try_it() -> str:
        from fiqa_trt.engines.manifest import Manifest
        from fiqa_trt.engines.opening import RELEASED, check_known
        from fiqa_trt.engines.openvino import OpenVinoEngine

        engine = check_known(lambda: (OpenVinoEngine(RELEASED, batch=1), Manifest.read(RELEASED)))
        engine.close()
        return f"{engine.info.backend}, auto runs in {engine.info.executed}"

    return _seen("CPU engine (OpenVINO)", try_it, "pip install --force-reinstall fiqa-trt")


def _decoder() -> Check:
    def try_it() -> str:
        from fiqa_trt.inputs.formats import DECODED
        from fiqa_trt.models.verification import portrait

        names = ", ".join(each.name for each in DECODED)
        return f"{names}; {portrait().shape[0]} px sample decoded"

    return _seen("CPU decoder (Pillow, libjpeg-turbo)", try_it, "pip install --force-reinstall fiqa-trt")


def _torch(has_gpu: bool) -> Check:
    def try_it() -> str:
        import torch

        from fiqa_trt.engines.opening import CHECKPOINT
        from fiqa_trt.engines.torch import load_checkpoint

        load_checkpoint(CHECKPOINT)
        return f"torch {torch.__version__}"

    return _seen("PyTorch engine", try_it, _install("gpu" if has_gpu else "build"))


def _cache() -> Check:
    """Networks are compiled anew at every start without it."""
    where = os.environ.get("FIQA_TRT_CACHE") or os.environ.get("XDG_CACHE_HOME") or "~/.cache"

    def try_it() -> str:
        folder = cache_folder()
        if folder is None:
            raise OSError(f"{where} cannot be written, so the network is compiled anew at every start")
        with tempfile.TemporaryFile(dir=folder) as file:  # a full disk and a read-only one look alike until then
            file.write(bytes(4096))
        return f"{folder} can be written"

    return _seen("cache of compiled networks", try_it, "set FIQA_TRT_CACHE to a folder that can be written")


def _cuda(has_gpu: bool) -> Check:
    name = "CUDA in PyTorch"
    try:
        import torch
    except Exception as exc:  # a library that is missing shows in many ways
        return Check(name, False, _reason(exc), _gpu_only(has_gpu, "fiqa-trt[gpu]"))
    if torch.cuda.is_available():
        return Check(name, True, f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} GPU(s)")
    remedy = "install a driver that knows CUDA " + str(torch.version.cuda) if has_gpu else NO_GPU
    return Check(name, False, f"torch {torch.__version__} sees no GPU", remedy)


def _tensorrt(has_gpu: bool) -> Check:
    def try_it() -> str:
        if FULL.version() is None and LEAN.version() is not None:
            return f"{LEAN}, which loads engines that were built with --version-compatible, and builds none"
        import tensorrt

        if not tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR)):
            raise RuntimeError("its builder cannot be made")
        return f"TensorRT {tensorrt.__version__}"

    return _seen("TensorRT", try_it, _gpu_only(has_gpu, "fiqa-trt[gpu]"))


def _rtx(has_gpu: bool) -> Check:
    """It builds without a GPU."""

    def try_it() -> str:
        import tensorrt_rtx  # whatever keeps it from being loaded is the reason

        known = ", ".join(rtx.capabilities())
        if has_gpu and not cuda.lacking() and (problem := rtx.unfit("cuda")):
            raise RuntimeError(problem)
        return f"{rtx.LIBRARY.title} {tensorrt_rtx.__version__}, for compute capability {known}"

    there = rtx.LIBRARY.version() is not None
    remedy = (
        "take --backend tensorrt or torch; --engine takes an engine of it all the same" if there else _install("rtx")
    )
    return _seen("TensorRT for RTX" if has_gpu else "building for GPUs elsewhere (TensorRT for RTX)", try_it, remedy)


def _torch_tensorrt(has_gpu: bool) -> Check:
    def try_it() -> str:
        from fiqa_trt.building.compile import import_torch_tensorrt

        try:
            return f"torch-tensorrt {import_torch_tensorrt().__version__}"
        except FiqaError as exc:  # what it says of the way out, the remedy says
            raise exc.__cause__ or exc from None

    return _seen("Torch-TensorRT", try_it, _gpu_only(has_gpu, "torch-tensorrt>=2.11,<2.15"))


def _dali(has_gpu: bool) -> Check:
    name = "DALI decoder"
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        return Check(name, False, "not installed", _gpu_only(has_gpu, "fiqa-trt[gpu]"))

    def try_it() -> str:
        import nvidia.dali

        from fiqa_trt.decoding.dali import DaliDecoder
        from fiqa_trt.models.verification import PORTRAIT

        said = list[str]()
        decoder = DaliDecoder("cuda" if has_gpu else "cpu", say=said.append)
        decoder.decode([PORTRAIT.read_bytes()], 1)
        if decoder.failures:
            raise RuntimeError("it fails on a sample")
        return "; ".join([f"DALI {nvidia.dali.__version__}, sample decoded by {decoder.name}", *said])

    return _seen(name, try_it, "pip install --force-reinstall nvidia-dali-cuda130")


def _install(extra: str) -> str:
    return command_line("pip", "install", f"fiqa-trt[{extra}]")


def _gpu_only(has_gpu: bool, package: str) -> str:
    """The command that installs what is of use on a GPU alone."""
    return command_line("pip", "install", package) if has_gpu else NO_GPU


def _importable(name: str, module: str, remedy: str) -> Check:
    if importlib.util.find_spec(module) is None:
        return Check(name, False, "not installed", remedy)

    def try_it() -> str:
        return f"{module} {getattr(import_library(module), '__version__', '')}".strip()

    return _seen(name, try_it, remedy)
