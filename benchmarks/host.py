"""What Python allows the GPU path, without a GPU: `python -m benchmarks.host [--against COMMIT]`.

The listing, the reader, the pipeline, the check of structure, everything that the DALI decoder hands to DALI and the
writer are the real ones; the work of the GPU is replaced: a batch is decoded in WAIT seconds without the GIL, and the
engine takes no time. With the CPU decoder everything but the engine is real. So the figures are the ceiling that the
host sets, whatever the engine. With `--against`, the same is measured with the package as it was at a commit, in turn.

Images by second of wall clock tell little on a machine that others use, those by second of CPU time do: where the
ratio of the two is 1.0 on an idle machine, the GIL is the bound, and the two figures are one.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

ROOT = Path(__file__).parents[1]
BATCH, WAIT = 256, 0.005
ROUNDS, IMAGES = 3, 20_000


class Nothing:
    """An array on a GPU that is not there: whatever is computed with it costs nothing and is nothing."""

    def _itself(self, *_: object, **__: object) -> Nothing:
        return self

    __getitem__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = _itself
    squeeze = round = clip = to = torch = _itself

    def __setitem__(self, rows: object, values: object) -> None:
        """Nothing to do."""


class Dali:
    """DALI's dynamic mode, whose operators take in their real inputs and compute nothing."""

    def __init__(self, real: Any, size: int) -> None:
        self.batch, self.as_batch = real.batch, real.as_batch
        self.decoders = SimpleNamespace(image=self._image)
        self._size = size

    def _image(self, encoded: Any, **_: object) -> Any:
        count = encoded.evaluate().batch_size
        time.sleep(WAIT)
        return SimpleNamespace(shape=[(self._size, self._size, 3)] * count)

    def resize(self, images: object, *, roi_start: Any, roi_end: Any, **_: object) -> Nothing:
        """Takes in where to cut."""
        roi_start.evaluate()
        roi_end.evaluate()
        return Nothing()

    def slice(self, images: object, start: Any, *_: object, **__: object) -> Nothing:
        """Takes in where to begin."""
        start.evaluate()
        return Nothing()


def released() -> list[float]:
    """Where the CPU seconds of every call are added that lets go of the GIL for nearly all of its time."""
    import simplejpeg
    from PIL import Image

    found = list[float]()

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                found.append(time.thread_time() - began)

        return call

    simplejpeg.decode_jpeg = timed(simplejpeg.decode_jpeg)
    Image.Image.resize = timed(Image.Image.resize)  # type: ignore[method-assign]
    return found


def measure(source: Path, size: int, images: int, threads: int, decoding: str) -> dict[str, float]:
    """Seconds, CPU seconds and those of them without the GIL that a whole run over `source` takes, when it is warm.

    Args:
        source: crops of `size` px, all JPEGs.
        size: in px.
        images: there are.
        threads: that decode.
        decoding: `dali` with nothing behind it, or `cpu`, whose decoder is the real one.
    """
    from fiqa_trt.decoding.cpu import CpuDecoder
    from fiqa_trt.decoding.dali import DaliDecoder
    from fiqa_trt.engines.base import EngineInfo, finished
    from fiqa_trt.executors.in_process import InProcess
    from fiqa_trt.inputs.source import Source
    from fiqa_trt.models.spec import MEMBERS
    from fiqa_trt.runs.score import score_dataset

    without_gil, on_cpu = released(), decoding == "cpu"

    class Decoder(DaliDecoder):
        def _empty(self, batch: int) -> Any:
            return Nothing()

        def _moved(self, array: object) -> Any:
            return Nothing()

        def _array(self, images: object) -> Any:
            return Nothing()

    class Engine:
        slots, place, kept = 2, "cpu" if on_cpu else "cuda", None
        info = EngineInfo("none", "none", "fp16", "fp16", 8 if on_cpu else BATCH, "0" * 64, MEMBERS)

        def submit(self, images: object) -> Any:
            return finished(np.full((self.info.batch, len(MEMBERS)), 0.5, np.float32))

        def close(self) -> None:
            """Nothing to do."""

    decoder: Any = CpuDecoder() if on_cpu else Decoder("cpu", workers=2)
    decoder.threads = threads
    if not on_cpu:
        decoder._ndd = Dali(decoder._ndd, size)
    with tempfile.TemporaryDirectory() as scratch:
        for turn in ("cold", "warm"):
            without_gil.clear()
            wall, cpu = time.perf_counter(), time.process_time()
            found = score_dataset(
                Source((str(source),)),
                Path(scratch) / f"{turn}.parquet",
                lambda: InProcess(cast(Any, Engine()), decoder),
            )
            seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            if found.images != images or (not on_cpu and decoder.failures):
                raise RuntimeError(f"not what was to be measured: {found}")
    return {**seconds, "released": sum(without_gil)}


def packed(folder: Path, shards: Path) -> None:
    """The files of each folder in `folder` as a tar."""
    shards.mkdir()
    for inner in sorted(folder.iterdir()):
        with tarfile.open(shards / f"{inner.name}.tar", "w") as tar:
            for path in sorted(inner.iterdir()):
                data = path.read_bytes()
                member = tarfile.TarInfo(path.name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))


def measured(tree: Path, arguments: Sequence[object]) -> dict[str, float]:
    """`measure` in a process of its own, with the package of another tree."""
    command = [sys.executable, __file__, "--measure", *map(str, arguments)]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(tree)}, stdout=subprocess.PIPE, check=True, text=True
    )
    found: dict[str, float] = json.loads(done.stdout)
    return found


def side_by_side(tree: Path, arguments: Sequence[object], images: int) -> float:
    """Images/s of two processes at once, each with all of the images: what two processes for one GPU would do."""
    with ThreadPoolExecutor(2) as pool:
        return sum(images / found["wall"] for found in pool.map(lambda _: measured(tree, arguments), range(2)))


def tree_of(commit: str, folder: Path) -> Path:
    """The project as it was at a commit, in a folder in `folder`."""
    tree = folder / commit
    tree.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    subprocess.run(["tar", "-x", "-C", tree], input=archive.stdout, check=True)
    return tree


def main() -> None:
    """Measure each kind of source in turn, several times, and record the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="COMMIT", help="to compare with")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=2, help="that decode")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        source, size, images, threads, decoding = options.measure
        print(json.dumps(measure(Path(source), int(size), int(images), int(threads), decoding)))
        return
    from benchmarks.common import machine, median, record
    from fiqa_trt.machine.benchmark import generate

    facts, images = machine(), options.images
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        trees = {"now": ROOT, **({"before": tree_of(options.against, root)} if options.against else {})}
        few = {"224 px, CPU decoder": 224, "512 px, CPU decoder": 512}
        for name, size in {"224 px": 224, "512 px": 512, **few}.items():
            generate(root / name, images // 10 if name in few else images, size)
        packed(root / "224 px", root / "224 px in tars")
        kinds = {"224 px": 224, "224 px in tars": 224, "512 px": 512, **few}
        rounds: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            found = dict[str, float]()
            for kind, size in kinds.items():
                count, decoding = (images // 10, "cpu") if kind in few else (images, "dali")
                arguments = (root / kind, size, count, options.threads, decoding)
                for name, tree in trees.items():
                    seconds = measured(tree, arguments)
                    found[f"{kind}, {name}, images/s"] = count / seconds["wall"]
                    found[f"{kind}, {name}, images by second of CPU time"] = count / seconds["cpu"]
                    under = seconds["cpu"] - seconds["released"]
                    found[f"{kind}, {name}, microseconds under the GIL by image"] = under / count * 1e6
                if options.against:
                    each = [found[f"{kind}, {name}, images by second of CPU time"] for name in ("now", "before")]
                    found[f"{kind}, now over before, CPU time"] = each[0] / each[1]
            arguments = (root / "224 px", 224, images, options.threads, "dali")
            found["224 px, now, two processes, images/s"] = side_by_side(ROOT, arguments, images)
            for name, value in found.items():
                rounds.setdefault(name, []).append(value)
            print({name: round(value, 2) for name, value in found.items()}, file=sys.stderr, flush=True)
    record(
        "host",
        {
            "what": f"{images} JPEGs (a tenth with the CPU decoder) and {options.threads} threads; a batch of {BATCH} "
            f"is decoded in {WAIT} s, or by the CPU decoder; what is under the GIL has the system calls of reading in "
            f"it; medians of {ROUNDS} rounds (also of the ratios)",
            "against": options.against,
            "machine": facts,
            "load_after": os.getloadavg()[0],
            "medians": {name: median(values) for name, values in rounds.items()},
            "rounds": {name: [round(value, 2) for value in values] for name, values in rounds.items()},
        },
    )


if __name__ == "__main__":
    main()
