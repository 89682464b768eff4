"""What every benchmark needs: crops to work on, facts about the machine, and a place for the results."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

RESULTS = Path(__file__).parent / "results"
COMMAND = [sys.executable, "-m", "fiqa_trt"]


def make_crops(folder: Path, distinct: int = 256, size: int = 224, seed: int = 0) -> list[Path]:
    """JPEGs of quality 90, each another piece of the demo's portrait, mirrored, shaded and grained."""
    from skimage import data

    photo = Image.fromarray(data.astronaut())  # type: ignore[no-untyped-call]
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for index in range(distinct):
        side = float(rng.uniform(120, 300))
        left, top = rng.uniform(60, 300 - side / 2), rng.uniform(0, 240 - side / 2)
        crop = photo.resize((size, size), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
        pixels = np.asarray(crop).astype(float) * rng.uniform(0.5, 1.2) + rng.normal(
            0, rng.uniform(0, 12), (size, size, 3)
        )
        pixels = pixels[:, ::-1] if rng.random() < 0.5 else pixels
        paths.append(folder / f"{index:05}.jpg")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def link_many(files: Sequence[Path], folder: Path, count: int) -> None:
    """`count` hard links to `files` in turn, a thousand to a folder."""
    for index in range(count):
        place = folder / f"{index // 1000:04}"
        place.mkdir(parents=True, exist_ok=True)
        os.link(files[index % len(files)], place / f"{index:07}.jpg")


def timed(arguments: Sequence[str | Path], code: int = 0) -> tuple[float, float]:
    """Run a command to its end; wall seconds and peak resident memory in MB.

    Raises:
        RuntimeError: it exited with something else than `code`.
    """
    began = time.perf_counter()
    with subprocess.Popen([str(argument) for argument in arguments], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    if process.returncode != code:
        raise RuntimeError(f"{arguments} exited with {process.returncode}: {said[-500:]}")
    return seconds, usage.ru_maxrss / 1024


def machine() -> dict[str, Any]:
    """Processor, cores, memory, versions, date."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = ("fiqa-trt", "openvino", "torch", "torchvision", "numpy", "pillow", "simplejpeg", "pyarrow")
    versions = {}
    for name in packages:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "date": datetime.date.today().isoformat(),
        "processor": names[0].partition(":")[2].strip() if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "versions": versions,
        "load_before": os.getloadavg()[0],
    }


def median(values: Sequence[float]) -> float:
    """Median to four significant digits."""
    return float(f"{statistics.median(values):.4g}")


def record(name: str, facts: dict[str, Any]) -> None:
    """Write and print `results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps(facts, indent=1)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)


def own_peak_mb() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def damage(data: bytes, rng: random.Random) -> bytes:
    """One kind of damage after another: cut, flipped bytes, garbage, nothing, another format, an enormous header."""
    kind = rng.randrange(7)
    if kind == 0:
        return data[: rng.randrange(1, len(data))]
    if kind == 1:
        flipped = bytearray(data)
        for _ in range(rng.choice((1, 4, 40))):
            flipped[rng.randrange(len(flipped))] = rng.randrange(256)
        return bytes(flipped)
    if kind == 2:
        return rng.randbytes(rng.randrange(1, 20000))
    if kind == 3:
        return b""
    if kind == 4:
        return rng.choice((b"%PDF-1.7\n", b"<html></html>", b"PK\x03\x04", b"8BPS\0\1")) + rng.randbytes(2000)
    if kind == 5:
        start = data.index(b"\xff\xc0")
        return data[: start + 5] + (60_000).to_bytes(2, "big") * 2 + data[start + 9 :]
    return bytes(len(data))
