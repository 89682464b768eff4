"""The CPU engine: OpenVINO on an engine directory, whose payload is the ONNX network or OpenVINO's own form of it."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import tempfile
import weakref
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.base import Images
from fiqa_trt.engines.base import EngineInfo, Judged, Wanted
from fiqa_trt.engines.cache import Slot, cache_folder
from fiqa_trt.engines.manifest import Manifest, processor_description, this_processor
from fiqa_trt.errors import EngineError, RunError, one_line
from fiqa_trt.libraries import import_library
from fiqa_trt.progress import Say, silent

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_XML, _BIN = "network.xml", "network.bin"
_FINE = "fine.xml"


def open_directory(folder: Path, wanted: Wanted) -> OpenVinoEngine:
    """See `registry.Opener`."""
    return OpenVinoEngine(folder, wanted.precision, wanted.batch, wanted.say)


open_unbuilt = open_directory  # from the network's ONNX form


def difference_from_here(manifest: Manifest, device: str = "cpu") -> str | None:
    """See `registry.Opener`."""
    here = this_processor()
    # It would run, but neither its speed nor its agreement were measured here.
    return None if manifest.target.name == here else f"built on {manifest.target.name}, this is {here}"


def missing() -> None:
    """See `registry.Opener`: it is installed with fiqa-trt."""


def unfit(device: str) -> None:
    """See `registry.Opener`: it runs on all of them."""


class OpenVinoEngine:
    """Asynchronous requests on as many streams as OpenVINO finds best for throughput."""

    place = "cpu"

    def __init__(
        self,
        folder: Path,
        precision: str = "auto",
        batch: int | None = None,
        say: Say = silent,
    ) -> None:
        """Compile the network of an engine directory, or take it from the cache.

        Args:
            folder: with a manifest whose payload OpenVINO reads.
            precision: fp32, fp16, int8 or auto. An ONNX payload runs in fp32 or in fp16 (auto: in fp16 where that can
                be expected to be quicker); another engine in the precision that it was built for.
            batch: images per call.
            say: hears of a cache that was damaged.

        Raises:
            EngineError: a directory that is not one, a precision that is not to be had here.
        """
        openvino = import_library("openvino")
        manifest = Manifest.read(folder)
        if manifest.backend not in ("onnx", "openvino"):
            raise EngineError(f"{folder} is for {manifest.backend}, not for a CPU; use --device cuda")
        try:
            core = openvino.Core()
            device = _processor(core)
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO cannot be used here: {one_line(exc)}") from exc
        arithmetic = _arithmetic(core, manifest, precision, folder)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": _HINTS[arithmetic]}
        settings["ENABLE_CPU_PINNING"] = False  # the decoding threads use the same cores
        batch = batch or manifest.batch[1]
        slot = _slot(core, manifest, batch, settings)
        payload = manifest.read_payload(folder)
        compiled = None if slot is None else _load(core, slot, settings, say)
        self.kept: Slot | None = None if compiled is None else slot
        if compiled is None:
            size = manifest.spec.preprocess.size
            try:
                network = read_network(core, payload, manifest.backend)
                # A fixed shape: an image's score must not depend on how many others happen to be beside it.
                network.reshape([batch, size, size, 3])
                compiled = core.compile_model(network, "CPU", settings)
            except (RuntimeError, zipfile.BadZipFile, KeyError) as exc:
                raise EngineError(f"OpenVINO cannot use {folder / manifest.payload}: {one_line(exc)}") from exc
            if slot is not None:
                _keep(compiled, slot)
        self.slots = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._tensor = openvino.Tensor
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.slots):
            self._idle.put(compiled.create_infer_request())
        _living.add(self)
        # A thread waits for each request: unlike a callback, it hears of an inference that failed.
        self._threads = ThreadPoolExecutor(self.slots, "openvino")
        executed = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        executed = {"f32": "fp32", "f16": "fp16"}.get(executed, executed)
        quantised = manifest.precision == "int8"
        self.info = EngineInfo(
            backend=f"openvino {openvino.__version__.split('-')[0]}",
            device=device,
            precision="int8" if quantised else "fp32" if arithmetic == "fp32" else "fp16",
            executed=f"int8 and {executed}" if quantised else executed,
            batch=batch,
            model=manifest.model,
            members=manifest.spec.members,
            payload=manifest.payload_sha256,
            causes=manifest.spec.causes,
        )

    def submit(self, images: Images) -> Future[Judged]:
        """See `Engine.submit`."""
        return self._threads.submit(self._run, np.asarray(images))

    def _run(self, images: npt.NDArray[np.uint8]) -> Judged:
        request = self._idle.get()
        try:
            # OpenVINO shares only memory that it could write to; a read-only array is copied.
            tensor = self._tensor(np.require(images, np.uint8, ["C", "W"]), shared_memory=True)
            request.start_async({0: tensor}, share_inputs=True)
            request.wait()
            return Judged.of([request.get_output_tensor(index).data for index in range(len(self.info.widths))])
        except RuntimeError as exc:
            raise RunError(f"OpenVINO could not score a batch: {str(exc).splitlines()[0]}") from exc
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """See `Engine.close`."""
        self._threads.shutdown(cancel_futures=True)


_living: weakref.WeakSet[OpenVinoEngine] = weakref.WeakSet()


def _keep_for_ever() -> None:
    """In a forked child: the engines that it inherits are not released, not even when it ends.

    OpenVINO would wait for threads that were left behind by the fork, for ever, or crash.
    """
    for engine in _living:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


os.register_at_fork(after_in_child=_keep_for_ever)


def _processor(core: Any) -> str:
    return str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip()


def _slot(core: Any, manifest: Manifest, batch: int, settings: dict[str, Any]) -> Slot | None:
    """Where the compiled network is kept; None if nothing can be.

    OpenVINO has a cache of its own, which takes whatever it finds in a file for what it once wrote there.
    """
    folder = cache_folder()
    if folder is None:
        return None
    facts = {
        "openvino": import_library("openvino").__version__,
        "processor": _processor(core),
        "arithmetic": sorted(core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")),
        "payload": manifest.payload_sha256,
        "size": manifest.spec.preprocess.size,
        "batch": batch,
        "settings": settings,
    }
    return Slot(folder / "openvino", facts)


def _load(core: Any, slot: Slot, settings: dict[str, Any], say: Say) -> Any | None:
    """The compiled network that is kept; None if there is none, or not what it was."""
    try:
        blob = slot.read()
        return None if blob is None else core.import_model(io.BytesIO(blob), "CPU", settings)
    except ValueError as exc:
        say(f"{exc}: the network is compiled anew")
    except RuntimeError:
        say(f"OpenVINO cannot load {slot.path}: the network is compiled anew")
    return None


def _keep(compiled: Any, slot: Slot) -> None:
    """For the next start. A network that OpenVINO cannot write is compiled every time."""
    with contextlib.suppress(RuntimeError):
        slot.write(compiled.export_model().getvalue())


def half_arithmetic(core: Any) -> list[str]:
    """The 16-bit arithmetic that this processor has: `bf16`, `fp16`, both or none."""
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return [name for name in ("bf16", "fp16") if name.upper() in able]


def _half_is_quicker() -> bool:
    """Whether 16-bit arithmetic, where a processor has it, can be expected to be quicker than FP32.

    On x86 it is with AMX tiles and on AMD's cores; on Intel's without AMX it was measured to be slower (see
    `benchmarks/results/engines.json`). `fiqa-trt build` measures instead of expecting.
    """
    text = processor_description()
    return "amx_bf16" in text or "AuthenticAMD" in text or "vendor_id" not in text


def _arithmetic(core: Any, manifest: Manifest, precision: str, folder: Path) -> str:
    """What OpenVINO is to compute in: fp32, bf16 or fp16. It would choose by itself, so it is always told."""
    halves = half_arithmetic(core)
    if manifest.backend == "onnx" and manifest.precision == "int8":
        # Its activations are signed; see `fiqa_trt.building.quantize.with_qdq`.
        raise EngineError(f"{folder} is for TensorRT and ONNX Runtime; here use fiqa-trt build --precision int8")
    if manifest.backend == "openvino":
        # Of an INT8 engine, what the layers that are not quantised are computed in.
        wanted = manifest.executed.split()[-1]
        if wanted not in ("fp32", *halves):
            raise EngineError(f"{folder} was built to run in {wanted}, which this processor lacks; build it again here")
        return wanted
    if precision == "int8":
        raise EngineError(
            "there is no int8 engine here yet; make one with: fiqa-trt build --precision int8 --device cpu"
        )
    if precision == "fp16" and not halves:
        raise EngineError("this processor has neither BF16 nor FP16 arithmetic; use --precision fp32 or auto")
    return halves[0] if precision == "fp16" or (precision == "auto" and halves and _half_is_quicker()) else "fp32"


def read_network(core: Any, payload: bytes, backend: str) -> Any:
    """An `openvino.Model` from a payload. Raises what OpenVINO and zipfile raise for one that is damaged."""
    openvino = import_library("openvino")
    if backend == "onnx":
        return core.read_model(io.BytesIO(payload))
    with zipfile.ZipFile(io.BytesIO(payload)) as archive:
        weights = np.frombuffer(archive.read(_BIN), np.uint8)
        return core.read_model(archive.read(_XML).decode(), openvino.Tensor(weights))


def pack_network(network: Any, *, half: bool) -> bytes:
    """OpenVINO's two files of an `openvino.Model` as one; `half` stores FP32 weights in FP16, but for the heads'.

    Raises:
        RunError: there is no place for temporary files, or no space in it.
    """
    openvino = import_library("openvino")
    packed = io.BytesIO()
    with _scratch() as scratch, zipfile.ZipFile(packed, "w") as archive:
        try:
            openvino.save_model(network, Path(scratch) / _XML, compress_to_fp16=half)
            if half:
                halved = openvino.Core().read_model(Path(scratch) / _XML)
                _restore_heads(halved)
                openvino.save_model(halved, Path(scratch) / _FINE, compress_to_fp16=False)
        except RuntimeError as exc:  # it does not say what the system said
            raise RunError(
                f"OpenVINO cannot write below {scratch} ({one_line(exc)}); is it full? Free some, or set TMPDIR"
            ) from exc
        saved = (Path(scratch) / (_FINE if half else _XML)).with_suffix
        for name in (_XML, _BIN):
            # A fixed date, so that the same network gives the same bytes.
            archive.writestr(zipfile.ZipInfo(name), saved(Path(name).suffix).read_bytes())
    return packed.getvalue()


def _restore_heads(network: Any) -> None:
    """Give the last layers of a network with FP16 weights FP32 ones, of the same values.

    With FP16 weights OpenVINO puts out scores in BF16, which has two hundred values where faces have theirs.
    """
    constant = importlib.import_module("openvino.opset13").constant
    for operation in network.get_ops():
        if operation.get_type_name() == "MatMul":
            halved = operation.input_value(1).get_node()
            if halved.get_type_name() == "Convert":
                values = halved.input_value(0).get_node().data.astype(np.float32)
                restored = constant(values, name=halved.get_friendly_name())
                operation.input(1).replace_source_output(restored.output(0))


def _scratch() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory()
    except OSError as exc:
        raise RunError(f"no folder for temporary files: {exc.strerror}; set TMPDIR to one that can be written") from exc
