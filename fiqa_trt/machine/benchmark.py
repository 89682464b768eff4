"""How fast each stage of a run is here, what they allow together, and what a whole run makes of it."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import io
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fiqa_trt.decoding.base import Decoded, Decoder
from fiqa_trt.decoding.registry import open_decoder
from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.opening import open_engine, precisions_worth_building
from fiqa_trt.engines.store import how_to_speed_up
from fiqa_trt.errors import InputError
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.read_ahead import READERS, REQUESTS, Reader
from fiqa_trt.inputs.reader import ContainerReader, read_addresses
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.models.verification import portrait
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.pipeline import bounded_map
from fiqa_trt.progress import Say, silent
from fiqa_trt.runs import run
from fiqa_trt.runs import score as scoring
from fiqa_trt.storage.base import Blob
from fiqa_trt.storage.registry import is_stored
from fiqa_trt.version import __version__

STAGES = ("list", "read", "decode", "engine")
ROUNDS = 3
_DISTINCT = 256
_SAMPLE_BYTES = 1 << 28  # of files that are held in memory to be decoded
_SAMPLE_BATCHES = 16  # of pixels that are held to be scored
_SAMPLING_SECONDS = 0.1
_REQUESTS = 32  # whose times are taken one by one


@dataclasses.dataclass(frozen=True)
class Usage:
    """What a GPU did during the whole run, by NVML; means over the run, but for the memory.

    Attributes:
        utilisation: share of the time with a kernel running, 0 to 1.
        power_w: watts.
        memory_mib: most that was in use.
    """

    utilisation: float
    power_w: float
    memory_mib: int


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What `fiqa-trt bench` found. Rates are images/s, medians of ROUNDS.

    Attributes:
        version: of fiqa-trt.
        date: ISO.
        what: the inputs in words.
        images: of a whole run.
        engine: `EngineInfo` as a dict.
        decoder: its name.
        stages: rate of each stage alone.
        shared: whether the stages share the processor's cores; else they overlap.
        bound: what the stages allow together.
        end_to_end: rate of a whole run, from the listing to the finished file.
        cores: processor cores that a whole run kept busy.
        gpu: during a whole run; None without one.
        quicker_engine: what would make the engine quicker, in words.
        request_ms: that a store takes for one request by itself, median; None where all images are on a disk.
    """

    version: str
    date: str
    what: str
    images: int
    engine: dict[str, Any]
    decoder: str
    stages: dict[str, float]
    shared: bool
    bound: float
    end_to_end: float
    cores: float
    gpu: Usage | None
    quicker_engine: str
    request_ms: float | None = None

    @property
    def in_flight(self) -> float | None:
        """Requests that were under way on average while only reading was done; None without a store."""
        return None if self.request_ms is None else self.stages["read"] * self.request_ms / 1000

    @property
    def share(self) -> float:
        """End to end as a share of the bound."""
        return self.end_to_end / self.bound

    @property
    def bottleneck(self) -> str:
        """The slowest stage."""
        return min(self.stages, key=lambda name: self.stages[name])

    def advice(self) -> str:
        """What the bottleneck is, in words, and what would help."""
        rate = self.stages[self.bottleneck]
        helps = {
            "list": "score from a --list, or pack the images into .tar shards",
            "read": "bring the files nearer (a local disk), or pack them into .tar shards",
            "decode": (
                "use more cores (--workers), smaller crops (224 px are enough), or a GPU with DALI (--decoder dali)"
                if self.decoder == "cpu"
                else "give DALI more threads (--workers), or use smaller crops (224 px are enough)"
            ),
            "engine": self.quicker_engine,
        }
        if self.request_ms is not None and self.bottleneck in ("list", "read"):
            helps["read"] = "raise --requests, run nearer to the store, or pack the images into .tar shards"
            way_out = helps[self.bottleneck]
            return f"the store bounds the run: {self.bottleneck} {rate:,.0f} images/s; to go faster, {way_out}"
        return f"the slowest stage is {self.bottleneck} ({rate:,.0f} images/s); to go faster, {helps[self.bottleneck]}"


def bound_of(stages: dict[str, float], *, shared: bool, afar: bool = False) -> float:
    """Rate that stages allow together: the harmonic sum if they share the same cores, else the slowest one's.

    `afar`: listing and reading wait for a store, and need hardly a core.
    """
    if shared and afar:
        here = {name: rate for name, rate in stages.items() if name not in ("list", "read")}
        return min(stages["list"], stages["read"], bound_of(here, shared=True))
    return 1 / sum(1 / rate for rate in stages.values()) if shared else min(stages.values())


def generate(folder: Path, count: int, size: int, seed: int = 0) -> None:
    """`count` JPEGs of quality 90 and `size` px, 256 of them distinct: pieces of a portrait, shaded and grained."""
    rng = np.random.default_rng(seed)
    photo = Image.fromarray(portrait())
    first = list[Path]()
    for index in range(count):
        path = folder / f"{index // 1000:04}" / f"{index:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if index >= _DISTINCT:
            try:
                os.link(first[index % _DISTINCT], path)
            except OSError:  # a file system without links
                shutil.copyfile(first[index % _DISTINCT], path)
            continue
        side = rng.uniform(100, 224)
        left, top = rng.uniform(0, 224 - side, 2)
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        grain = rng.normal(0, rng.uniform(0, 12), (size, size, 3))
        pixels = np.clip(np.asarray(crop) * rng.uniform(0.5, 1.2) + grain, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels).save(buffer, "JPEG", quality=90)
        path.write_bytes(buffer.getvalue())
        first.append(path)


def request_ms(paths: Sequence[str]) -> float | None:
    """Milliseconds that a store takes for an image, one after the other; None if none is in one."""
    afar = [path for path in paths if is_stored(path)]
    chosen = [Address.parse(path) for path in afar[:: max(1, len(afar) // _REQUESTS)][:_REQUESTS]]
    with contextlib.closing(ContainerReader()) as reader:
        times = [_seconds(functools.partial(read_addresses, [address], reader)) for address in chosen]
    return float(f"{1000 * statistics.median(times):.3g}") if times else None


def read_rate(paths: Sequence[str], batch: int, requests: int = REQUESTS) -> float:
    """Images/s of reading alone."""
    reader = Reader(requests)
    units = [paths[start : start + run.UNIT_ROWS] for start in range(0, len(paths), run.UNIT_ROWS)]

    def chunks() -> Iterator[list[Address]]:
        for plan in bounded_map(reader.plan, units, lambda: 2):
            yield from (plan.addresses[start : start + batch] for start in range(0, len(plan.addresses), batch))

    try:
        return len(paths) / _seconds(lambda: _exhaust(bounded_map(reader.submit, chunks(), lambda: 2 * READERS)))
    finally:
        reader.close()


def decode_rate(decoder: Decoder, blobs: Sequence[Blob], batch: int, count: int) -> float:
    """Images/s of decoding alone, in the decoder's threads: `blobs` in turn until `count` are done."""
    chunks = [[blobs[(start + i) % len(blobs)] for i in range(batch)] for start in range(0, count, batch)]
    with ThreadPoolExecutor(decoder.threads, "decode") as pool:
        done = bounded_map(lambda chunk: pool.submit(decoder.decode, chunk, batch), chunks, lambda: 2 * decoder.threads)
        return len(chunks) * batch / _seconds(lambda: _exhaust(done))


def engine_rate(engine: Engine, batches: Sequence[Decoded], count: int) -> float:
    """Images/s of the engine alone, its copies included: `batches` in turn until `count` images are done."""
    turns = [batches[index % len(batches)] for index in range(max(1, count // engine.info.batch))]
    done = bounded_map(lambda decoded: engine.submit(decoded.pixels), turns, lambda: 2 * engine.slots + 1)
    return len(turns) * engine.info.batch / _seconds(lambda: _exhaust(done))


def _exhaust(items: Iterator[Any]) -> None:
    for _ in items:
        pass


def _seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


class _Watch:
    """Samples a GPU in a thread while the block runs; without one, or without NVML, sees nothing."""

    def __init__(self, place: str) -> None:
        self._place = None if place == "cpu" else place
        self._samples = list[tuple[int, float, int]]()
        self._stop = threading.Event()

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self._stop.clear()
        thread = threading.Thread(target=self._sample, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join()

    def _sample(self) -> None:
        if self._place is None:
            return
        try:
            import pynvml
            import torch

            # NVML counts all GPUs of the machine, CUDA may be shown some of them.
            uuid = torch.cuda.get_device_properties(self._place).uuid
            pynvml.nvmlInit()
            try:
                handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
                while not self._stop.wait(_SAMPLING_SECONDS):
                    use = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
                    power = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
                    self._samples.append((use, power, pynvml.nvmlDeviceGetMemoryInfo(handle).used >> 20))
            finally:
                pynvml.nvmlShutdown()
        except Exception:  # a driver that does not tell is no reason not to measure the rest
            return

    def usage(self) -> Usage | None:
        """Over all samples so far."""
        if not self._samples:
            return None
        use, power, memory = zip(*self._samples, strict=True)
        return Usage(round(statistics.fmean(use) / 100, 3), round(statistics.fmean(power), 1), max(memory))


def run_benchmark(source: Source, setup: Setup, what: str, say: Say = silent) -> Benchmark:
    """Measure every stage, and a whole run, on the inputs of `source`.

    Raises:
        InputError: not one of them can be decoded.
        FiqaError: as scoring does.
    """
    engine = open_engine(setup.device, setup.precision, setup.engine, setup.batch, say)
    try:
        decoder = open_decoder(setup.decoder, engine.place, setup.threads, setup.max_pixels, say)
        return _measure(source, what, engine, decoder, setup.requests, say)
    finally:
        engine.close()


def _measure(source: Source, what: str, engine: Engine, decoder: Decoder, requests: int, say: Say) -> Benchmark:
    batch = engine.info.batch
    paths = [path for table in list_inputs(source) for path in table.column(0).to_pylist()]
    blobs = sample_blobs(paths)
    chunks = [blobs[start : start + batch] for start in range(0, len(blobs), batch)][:_SAMPLE_BATCHES]
    batches = [decoder.decode(chunk, batch) for chunk in chunks]
    if all(outcome.status is not Status.OK for decoded in batches for outcome in decoded.outcomes):
        raise InputError(f"not one of the first images of {what} can be decoded, so there is nothing to measure")
    count = max(len(paths), 4 * batch)
    measures: dict[str, Callable[[], float]] = {
        "list": lambda: len(paths) / _seconds(lambda: _exhaust(list_inputs(source))),
        "read": lambda: read_rate(paths, batch, requests),
        "decode": lambda: decode_rate(decoder, blobs, batch, count),
        "engine": lambda: engine_rate(engine, batches, count),
    }
    rounds: dict[str, list[float]] = {name: [] for name in (*STAGES, "end_to_end", "cores")}
    watch = _Watch(engine.place)
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(ROUNDS + 1):
            say("warming up" if number == 0 else f"round {number} of {ROUNDS}")
            found = {name: measure() for name, measure in measures.items()}
            began, busy = time.perf_counter(), time.process_time()
            with watch() if number else contextlib.nullcontext():
                _whole_run(source, Path(scratch) / f"{number}.parquet", engine, decoder, requests)
            seconds = time.perf_counter() - began
            found |= {"end_to_end": len(paths) / seconds, "cores": (time.process_time() - busy) / seconds}
            for name, value in found.items() if number else ():
                rounds[name].append(value)
    medians = {name: float(f"{statistics.median(values):.4g}") for name, values in rounds.items()}
    stages = {name: medians[name] for name in STAGES}
    shared, waited = engine.place == "cpu", request_ms(paths)
    bound = bound_of(stages, shared=shared, afar=waited is not None)
    return Benchmark(
        version=__version__,
        date=datetime.date.today().isoformat(),
        what=what,
        images=len(paths),
        engine=dataclasses.asdict(engine.info),
        decoder=decoder.name,
        stages=stages,
        shared=shared,
        bound=float(f"{bound:.4g}"),
        end_to_end=medians["end_to_end"],
        cores=medians["cores"],
        gpu=watch.usage(),
        quicker_engine=how_to_speed_up(
            engine.info, "cpu" if shared else "cuda", precisions_worth_building(engine.place)
        ),
        request_ms=waited,
    )


def sample_blobs(paths: Sequence[str]) -> list[Blob]:
    """Files, until they hold enough."""
    reader, blobs, held = Reader(), list[Blob](), 0
    try:
        for start in range(0, len(paths), 64):
            addresses = reader.plan(paths[start : start + 64]).result().addresses
            for blob, _ in reader.submit(addresses).result():
                held += 0 if isinstance(blob, ImageError) else len(blob)
                blobs.append(blob)
            if held > _SAMPLE_BYTES:
                break
    finally:
        reader.close()
    return blobs


class _Borrowed(InProcess):
    """Leaves the engine open for the next round."""

    def close(self) -> None:
        """Nothing to do."""


def _whole_run(source: Source, output: Path, engine: Engine, decoder: Decoder, requests: int) -> None:
    scoring.score_dataset(source, output, lambda: _Borrowed(engine, decoder, Setup(requests=requests)))
