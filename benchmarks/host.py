"""What Python allows the GPU path, without a GPU: `python -m benchmarks.host [--against COMMIT]`.

The listing, the reader, the pipeline, the check of structure, everything that the DALI decoder hands to DALI and the
writer are the real ones; the work of the GPU is replaced: a batch is decoded in WAIT seconds without the GIL, and the
engine takes no time. So the figure is the ceiling that the host sets, whatever the GPU. With `--against`, the same is
measured with the package as it was at a commit, in turn with this one.

Images by second of wall clock tell little on a machine that others use, those by second of CPU time do: where the
ratio of the two is 1.0 on an idle machine, the GIL is the bound, and the two figures are one.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
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


def measure(source: Path, size: int, images: int, threads: int) -> dict[str, float]:
    """Seconds and CPU seconds of a whole run over `source`, crops of `size` px; a run before it warms up."""
    from fiqa_trt.decoding.dali import DaliDecoder
    from fiqa_trt.engines.base import EngineInfo, finished
    from fiqa_trt.executors.in_process import InProcess
    from fiqa_trt.inputs.source import Source
    from fiqa_trt.models.spec import MEMBERS
    from fiqa_trt.runs.score import score_dataset

    class Decoder(DaliDecoder):
        def _empty(self, batch: int) -> Any:
            return Nothing()

        def _moved(self, array: object) -> Any:
            return Nothing()

        def _array(self, images: object) -> Any:
            return Nothing()

    class Engine:
        slots, place, kept = 2, "cuda", None
        info = EngineInfo("none", "none", "fp16", "fp16", BATCH, "0" * 64, MEMBERS)

        def submit(self, images: object) -> Any:
            return finished(np.full((BATCH, len(MEMBERS)), 0.5, np.float32))

        def close(self) -> None:
            """Nothing to do."""

    decoder = Decoder("cpu", workers=2)
    decoder.threads = threads
    decoder._ndd = cast(Any, Dali(decoder._ndd, size))
    with tempfile.TemporaryDirectory() as scratch:
        for turn in ("cold", "warm"):
            wall, cpu = time.perf_counter(), time.process_time()
            found = score_dataset(
                Source((str(source),)),
                Path(scratch) / f"{turn}.parquet",
                lambda: InProcess(cast(Any, Engine()), decoder),
            )
            seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            if found.images != images or decoder.failures:
                raise RuntimeError(f"{found}, {decoder.failures} failures")
    return seconds


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


def main() -> None:
    """Measure each kind of source in turn, several times, and record the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", metavar="COMMIT", help="to compare with")
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--threads", type=int, default=2, help="that decode")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        source, *numbers = options.measure
        print(json.dumps(measure(Path(source), *map(int, numbers))))
        return
    from benchmarks.common import machine, median, record
    from fiqa_trt.machine.benchmark import generate

    facts = machine()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        trees = {"now": ROOT}
        if options.against:
            trees["before"] = root / "before"
            trees["before"].mkdir()
            archive = subprocess.run(["git", "archive", options.against], cwd=ROOT, stdout=subprocess.PIPE, check=True)
            subprocess.run(["tar", "-x", "-C", trees["before"]], input=archive.stdout, check=True)
        for size in (224, 512):
            generate(root / f"{size} px", options.images, size)
        packed(root / "224 px", root / "224 px in tars")
        kinds = {"224 px": 224, "224 px in tars": 224, "512 px": 512}
        rounds: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            found = dict[str, float]()
            for kind, size in kinds.items():
                arguments = (root / kind, size, options.images, options.threads)
                for name, tree in trees.items():
                    for clock, seconds in measured(tree, arguments).items():
                        found[f"{kind}, {name}, images by second of {clock} time"] = options.images / seconds
                if options.against:
                    each = [found[f"{kind}, {name}, images by second of cpu time"] for name in ("now", "before")]
                    found[f"{kind}, now over before, cpu time"] = each[0] / each[1]
            arguments = (root / "224 px", 224, options.images, options.threads)
            found["224 px, now, two processes, images by second of wall time"] = side_by_side(
                ROOT, arguments, options.images
            )
            for name, value in found.items():
                rounds.setdefault(name, []).append(value)
            print({name: round(value, 2) for name, value in found.items()}, file=sys.stderr, flush=True)
    record(
        "host",
        {
            "what": f"{options.images} JPEGs, decoded in {WAIT} s a batch of {BATCH} by {options.threads} threads; "
            f"medians of {ROUNDS} rounds (also of the ratios)",
            "against": options.against,
            "machine": facts,
            "load_after": os.getloadavg()[0],
            "medians": {name: median(values) for name, values in rounds.items()},
            "rounds": {name: [round(value, 2) for value in values] for name, values in rounds.items()},
        },
    )


if __name__ == "__main__":
    main()
