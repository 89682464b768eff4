"""The same network in PyTorch: the reference for other engines, and the engine of a CUDA machine without TensorRT."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.base import Images
from fiqa_trt.engines.base import Engine, EngineInfo, Judged, Wanted
from fiqa_trt.engines.cache import Slot
from fiqa_trt.engines.cuda import CudaEngine, Launch, check_cuda, difference_from_here
from fiqa_trt.engines.manifest import Manifest, digest_of
from fiqa_trt.errors import EngineError, RunError, one_line
from fiqa_trt.libraries import has_torch
from fiqa_trt.models.causes import Causes
from fiqa_trt.models.spec import MEMBERS, ModelSpec
from fiqa_trt.progress import Say, silent
from fiqa_trt.shell import command_line

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from fiqa_trt.models.networks import Ensemble

_process: int | None = None
"""The one that first computed: threads of OpenMP do not survive a fork, and a child would wait for them for ever."""
DEFAULT_BATCH = {"cpu": 8, "cuda": 256}


def load_checkpoint(path: Path) -> Ensemble:
    """The ensemble with the weights of a safetensors file, in evaluation mode.

    Its members are the released ones, and whatever other networks the file has weights of; its causes are those that
    the file's metadata names, with their thresholds.

    Raises:
        EngineError: torch is not there, or the file is not a checkpoint of this ensemble, but of one member at most.
    """
    try:
        from safetensors import SafetensorError, safe_open
        from safetensors.torch import load_file

        from fiqa_trt.models.networks import NETWORKS, Ensemble
    except ImportError as exc:
        raise EngineError(f"a checkpoint needs {exc.name}: pip install 'fiqa-trt[gpu]'") from exc
    foreign = f"{path} is not a checkpoint of this ensemble"
    try:
        weights = load_file(path)
        with safe_open(path, "pt") as file:
            causes = Causes.of(file.metadata())
        found = {name.split(".")[1] for name in weights if name.startswith("members.")}
        members = tuple(name for name in NETWORKS if name in MEMBERS or name in found)
        network = Ensemble(ModelSpec(members=members, causes=causes))
        lacking = [name for name in MEMBERS if name not in found]
        if 0 < len(lacking) < len(MEMBERS):
            way_out = command_line("fiqa-trt", "train", "--member", lacking[0], "--init", str(path))
            raise EngineError(f"{foreign} but of one member: {way_out} adds the other one")
        if differing := sorted(weights.keys() ^ network.state_dict().keys()):
            which = "has" if differing[0] in weights else "lacks"
            raise EngineError(
                f"{foreign}: it {which} {differing[0]}; fiqa-trt train makes one, --init takes a backbone"
            )
        network.load_state_dict(weights)
    except (OSError, RuntimeError, ValueError, SafetensorError) as exc:
        raise EngineError(f"{foreign}: {one_line(exc)}") from exc
    return network.eval()


def missing() -> str | None:
    """See `registry.Opener`."""
    return None if has_torch() else "pip install 'fiqa-trt[gpu]'"


def unfit(device: str) -> None:
    """See `registry.Opener`: it runs on all of them."""


def open_unbuilt(released: Path, wanted: Wanted) -> Engine:
    """See `registry.Opener`."""
    return open_torch(released / "ensemble.safetensors", wanted.device, wanted.precision, wanted.batch, say=wanted.say)


def open_directory(folder: Path, wanted: Wanted) -> Engine:
    """See `registry.Opener`."""
    return open_torch_directory(folder, wanted.device, wanted.batch, wanted.say)


def open_torch(
    checkpoint: Path,
    device: str = "cpu",
    precision: str = "auto",
    batch: int | None = None,
    executed: str | None = None,
    *,
    compiled: bool = False,
    say: Say = silent,
) -> Engine:
    """The engine of a checkpoint on `device`.

    Args:
        checkpoint: safetensors.
        device: `cpu`, `cuda` or `cuda:i`.
        precision: fp32, fp16 (CUDA only) or auto: fp16 on CUDA, fp32 on a CPU.
        batch: images per call.
        executed: fp32, fp16 or bf16 where `precision` leaves a choice.
        compiled: through torch.compile; on CUDA only, and not for a batch of 1, which would take as long to compile as
            any other and is launched as one CUDA graph either way.
        say: hears of decisions that one should know of.

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
    if kind == "cpu":
        _refuse_fork()
    precision = "fp32" if kind == "cpu" or precision == "fp32" else "fp16"
    executed, compiled = executed or precision, compiled and batch != 1
    network = load_checkpoint(checkpoint)
    if executed != "fp32":
        network.lower(torch.float16 if executed == "fp16" else torch.bfloat16)
    where = torch.device(device)
    try:
        network = network.to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except RuntimeError as exc:
        raise EngineError(f"--device {device} cannot take the network: {one_line(exc)}") from exc
    if kind == "cuda" and executed == "fp32":
        torch.backends.cudnn.allow_tf32 = False  # FP32 is to be FP32
    info = EngineInfo(
        backend=f"torch {torch.__version__}",
        device=torch.cuda.get_device_name(where) if kind == "cuda" else "CPU",
        precision=precision,
        executed=executed + ", compiled" * compiled,
        batch=batch or DEFAULT_BATCH[kind],
        model=digest_of(checkpoint),
        members=network.spec.members,
        causes=network.spec.causes,
    )
    if kind == "cpu":
        return TorchCpuEngine(network, info)

    if compiled:
        torch._dynamo.reset()  # its limit of compilations is for the process, not for an engine

    def bind(images: Tensor, outputs: Sequence[Tensor], stream: torch.cuda.Stream) -> Launch:
        # Without `fullgraph` it would give up after some shapes and run eager, silently.
        function = torch.compile(network, dynamic=False, fullgraph=True) if compiled else network

        def launch() -> None:
            with torch.inference_mode():
                for output, values in zip(outputs, function(images), strict=True):
                    output.copy_(values)

        return launch

    return CudaEngine(bind, device, info, ModelSpec().preprocess.size, say)


def _refuse_fork() -> None:
    global _process  # noqa: PLW0603
    if _process not in (None, os.getpid()):
        raise EngineError(
            "PyTorch was used before this process was forked, which its threads do not survive: start processes with "
            "multiprocessing's `spawn`, or use --engine openvino"
        )
    _process = os.getpid()


def open_torch_directory(folder: Path, device: str = "cuda", batch: int | None = None, say: Say = silent) -> Engine:
    """The engine of a directory whose payload is a checkpoint: what `build --backend torch` found quickest.

    Raises:
        EngineError: as `open_torch`; a directory of another GPU.
    """
    manifest = Manifest.read(folder)
    check_cuda(device)
    if problem := difference_from_here(manifest, device):
        raise EngineError(f"{folder}: {problem}")
    manifest.read_payload(folder)
    executed, _, how = manifest.executed.partition(", ")
    return open_torch(
        folder / manifest.payload,
        device,
        manifest.precision,
        batch or manifest.batch[1],
        executed,
        compiled=how == "compiled",
        say=say,
    )


class TorchCpuEngine:
    """Eager PyTorch, channels-last, one call at a time in a thread of its own."""

    slots = 1
    place = "cpu"
    kept: Slot | None = None

    def __init__(self, network: Ensemble, info: EngineInfo) -> None:
        self._network = network
        self._thread = ThreadPoolExecutor(1, "torch")
        self.info = info

    def submit(self, images: Images) -> Future[Judged]:
        """See `Engine.submit`."""
        return self._thread.submit(self._run, np.asarray(images))

    def _run(self, images: npt.NDArray[np.uint8]) -> Judged:
        import torch

        try:
            with torch.inference_mode():
                return Judged.of([each.numpy() for each in self._network(torch.from_numpy(images))])
        except RuntimeError as exc:
            raise RunError(f"torch could not score a batch: {one_line(exc)}") from exc

    def close(self) -> None:
        """See `Engine.close`."""
        self._thread.shutdown(cancel_futures=True)
