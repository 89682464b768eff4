"""The CPU engine: OpenVINO on the exported ONNX network."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.engines.base import EngineInfo, Manifest, Scores
from fiqa_trt.errors import EngineError, RunError

DEFAULT_BATCH = 8  # Small batches stay in the caches; see benchmarks/.
_HALF = {"BF16": "bf16", "FP16": "f16"}


class OpenVinoEngine:
    """Asynchronous requests on as many streams as OpenVINO finds best for throughput."""

    def __init__(self, folder: Path, precision: str = "auto", batch: int | None = None) -> None:
        """Compile the network of an engine directory, or take it from the cache.

        Args:
            folder: with a manifest whose payload is ONNX.
            precision: fp32, fp16 or auto: fp16 where the processor has BF16 or FP16 arithmetic, else fp32.
            batch: images per call.

        Raises:
            EngineError: a directory that is not one, a precision that is not to be had here.
        """
        import openvino

        manifest = Manifest.read(folder)
        core = openvino.Core()
        hint = _precision_hint(core, precision)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": hint}
        settings["ENABLE_CPU_PINNING"] = False  # the decoding threads use the same cores
        cache = cache_folder()
        if cache is not None:
            settings["CACHE_DIR"] = str(cache / "openvino")
        batch = batch or DEFAULT_BATCH
        size = manifest.spec.preprocess.size
        try:
            network = core.read_model(folder / manifest.payload)
            # A fixed shape: an image's score must not depend on how many others happen to be beside it.
            network.reshape([batch, size, size, 3])
            compiled = core.compile_model(network, "CPU", settings)
        except RuntimeError as exc:
            raise EngineError(f"OpenVINO cannot use {folder / manifest.payload}: {str(exc).splitlines()[0]}") from exc
        self.slots = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self._tensor = openvino.Tensor
        self._idle: SimpleQueue[Any] = SimpleQueue()
        for _ in range(self.slots):
            self._idle.put(compiled.create_infer_request())
        # A thread waits for each request: unlike a callback, it hears of an inference that failed.
        self._threads = ThreadPoolExecutor(self.slots, "openvino")
        executed = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        self.info = EngineInfo(
            backend=f"openvino {openvino.__version__.split('-')[0]}",
            device=str(core.get_property("CPU", "FULL_DEVICE_NAME")).strip(),
            precision="fp32" if hint == "f32" else "fp16",
            executed={"f32": "fp32", "f16": "fp16"}.get(executed, executed),
            batch=batch,
            model=manifest.model,
            members=manifest.spec.members,
        )

    def submit(self, images: npt.NDArray[np.uint8]) -> Future[Scores]:
        """See `Engine.submit`."""
        return self._threads.submit(self._run, images)

    def _run(self, images: npt.NDArray[np.uint8]) -> Scores:
        request = self._idle.get()
        try:
            # OpenVINO shares only memory that it could write to; a read-only array is copied.
            tensor = self._tensor(np.require(images, np.uint8, ["C", "W"]), shared_memory=True)
            request.start_async({0: tensor}, share_inputs=True)
            request.wait()
            return np.array(request.get_output_tensor(0).data, np.float32)
        except RuntimeError as exc:
            raise RunError(f"OpenVINO could not score a batch: {str(exc).splitlines()[0]}") from exc
        finally:
            self._idle.put(request)

    def close(self) -> None:
        """See `Engine.close`."""
        self._threads.shutdown(cancel_futures=True)


def _precision_hint(core: Any, precision: str) -> str:
    if precision == "int8":
        raise EngineError("there is no INT8 engine yet; use --precision fp32, fp16 or auto")
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    half = next((hint for name, hint in _HALF.items() if name in able), None)
    if precision == "fp16" and half is None:
        raise EngineError("this processor has neither BF16 nor FP16 arithmetic; use --precision fp32 or auto")
    return "f32" if precision == "fp32" or half is None else half


def cache_folder() -> Path | None:
    """Where compiled networks are kept between runs: $FIQA_TRT_CACHE, else the user's cache; None if not writable."""
    base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(os.environ.get("FIQA_TRT_CACHE") or Path(base) / "fiqa-trt")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None
