"""Which engine is opened: the best for this machine and what is asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fiqa_trt.engines.base import PRECISIONS, Engine, Wanted
from fiqa_trt.engines.manifest import MANIFEST, Manifest
from fiqa_trt.engines.registry import BACKENDS, names, obstacle, unbuilt_on
from fiqa_trt.engines.store import best_engine, list_engines, store
from fiqa_trt.errors import EngineError, OutOfMemory
from fiqa_trt.libraries import import_library
from fiqa_trt.progress import Say, silent

RELEASED = Path(__file__).parent.parent / "weights"
CHECKPOINT = RELEASED / "ensemble.safetensors"
_NONE_BUILT = "no engine has been built here (fiqa-trt build makes one)"


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
        engine: auto, one of `registry.names`, or an engine directory.
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
    if engine not in ("auto", *names()):
        if not Path(engine).is_dir():
            raise EngineError(
                f"--engine {engine}: no such directory; it is auto, {', '.join(names())} or an engine directory"
            )
        return _open_directory(Path(engine), Wanted(device, precision, batch, say))
    kinds = {"cpu", "cuda"} if engine == "auto" else BACKENDS[engine].kinds
    falls_back = device == "auto"
    if falls_back:
        device = "cuda" if "cuda" in kinds and _usable_gpu(say) else "cpu"
    kind = device.partition(":")[0]
    if kind not in kinds:
        runs, here = ("a GPU", "on a CPU") if kind == "cpu" else ("the CPU", f"with --device {device}")
        raise EngineError(f"--engine {engine} runs on {runs}; {here} use --engine auto or {unbuilt_on(kind)}")
    if kind == "cuda":
        from fiqa_trt.engines.cuda import check_cuda

        check_cuda(device)
    wanted, released = Wanted(device, precision, batch, say), Manifest.read(RELEASED)
    if engine == "auto" or BACKENDS[engine].stored:
        found = list_engines(store(), released.model, None if kind == "cpu" else device)
        best = best_engine([entry for entry in found if _is_of(entry.manifest, engine)], kind, precision)
        if best is not None:
            say(f"using {best.folder}")
            return _open_directory(best.folder, wanted)
    if engine == "auto" and kind == "cuda" and (problem := obstacle(unbuilt_on(kind), device)):
        without = f"{_NONE_BUILT}, and {problem}, which runs the network without one"
        if not falls_back:
            raise EngineError(without)
        say(f"{without}; so this runs on the CPU")
        return _open("cpu", precision, engine, batch, say)
    return _open_unbuilt(engine, kind, wanted), released


def _open_unbuilt(engine: str, kind: str, wanted: Wanted) -> Engine:
    """What runs on `cpu` or `cuda` where no engine was built. Raises EngineError as `open_engine`."""
    name = unbuilt_on(kind) if engine == "auto" else engine
    backend = BACKENDS[name]
    if kind not in backend.unbuilt:
        raise EngineError(f"there is no {backend.title} engine that can be used here; make one with: fiqa-trt build")
    if engine == "auto":
        better = [each for each in names() if BACKENDS[each].kind == kind and kind not in BACKENDS[each].unbuilt]
        reasons = [reason for each in better if (reason := obstacle(each, wanted.device))]
        if better:
            why = ", ".join(reasons) if len(reasons) == len(better) else _NONE_BUILT
            wanted.say(f"{why}, so {backend.title} runs the network")
    return backend.load().open_unbuilt(RELEASED, wanted)


def _is_of(manifest: Manifest | None, engine: str) -> bool:
    return engine == "auto" or (manifest is not None and manifest.backend == engine)


def _open_directory(folder: Path, wanted: Wanted) -> tuple[Engine, Manifest]:
    """The engine of a directory, whatever runs it. Raises EngineError as `open_engine`."""
    manifest, released = Manifest.read(folder), Manifest.read(RELEASED)
    backend = BACKENDS[manifest.backend]
    if wanted.device == "auto":
        wanted = dataclasses.replace(wanted, device=backend.kind)
    if wanted.device.partition(":")[0] != backend.kind:
        raise EngineError(f"{folder} runs on {backend.kind}, not on --device {wanted.device}")
    if manifest.model != released.model:
        models = f"{manifest.model[:12]}, not {released.model[:12]}"
        wanted.say(f"{folder} is of another checkpoint than the released one ({models})")
    if len(manifest.reference) not in (0, len(released.reference)):
        raise EngineError(
            f"{folder}: {MANIFEST} is damaged (it records scores of {len(manifest.reference)} images, not of "
            f"{len(released.reference)}); build it again (fiqa-trt build)"
        )
    if not manifest.reference:
        # Built by a version that recorded no scores. Of the released checkpoint, those of FP32 are at hand.
        if manifest.model == released.model:
            manifest = dataclasses.replace(manifest, reference=released.reference, severities=released.severities)
        else:
            wanted.say(f"{folder} does not record what it scores, so that cannot be checked; build it again")
    if backend.built and wanted.precision not in ("auto", manifest.precision):
        raise EngineError(f"{folder} is an {manifest.precision} engine; build one for --precision {wanted.precision}")
    if backend.kind == "cuda" and (problem := _lacking()):
        raise EngineError(f"{folder} {problem}; here --engine auto runs on the CPU")
    from fiqa_trt.engines.known import verified

    engine = backend.load().open_directory(folder, wanted)
    return engine, verified(folder, engine, manifest, wanted.say)


def _lacking() -> str | None:
    from fiqa_trt.engines.cuda import lacking

    return lacking()


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
    if problem := _lacking():
        say(f"there is an NVIDIA GPU, but this {problem}, so this runs on the CPU")
    return problem is None
