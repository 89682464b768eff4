"""End to end against a plain script, and against the bound of its stages. `python -m benchmarks.throughput`."""

from __future__ import annotations

import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.common import COMMAND, link_many, machine, make_crops, median, record, timed
from fiqa_trt.decode import CpuDecoder
from fiqa_trt.engines import Engine, open_engine
from fiqa_trt.engines.base import Scores
from fiqa_trt.scoring import Options, score_dataset
from fiqa_trt.sources import Source, read_file

IMAGES, ROUNDS, THREADS = 6000, 5, 2


def decode_only(paths: list[str], batch: int) -> float:
    """Images/s of reading and decoding alone, in the threads that a run uses."""
    decoder = CpuDecoder()

    def work(start: int) -> None:
        out = np.zeros((batch, 224, 224, 3), np.uint8)
        decoder.decode([read_file(path) for path in paths[start : start + batch]], out)

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(0, len(paths), batch)))
    return len(paths) / (time.perf_counter() - began)


def engine_only(engine: Engine, images: npt.NDArray[np.uint8], count: int) -> float:
    """Images/s of the engine alone, fed with decoded batches from memory."""
    batch = engine.info.batch
    waiting: deque[Future[Scores]] = deque()
    began = time.perf_counter()
    for index in range(count // batch):
        start = index * batch % (len(images) - batch)
        waiting.append(engine.submit(images[start : start + batch]))
        if len(waiting) > 2 * engine.slots:
            waiting.popleft().result()
    for future in waiting:
        future.result()
    return count // batch * batch / (time.perf_counter() - began)


def end_to_end(folder: Path, output: Path) -> float:
    """Images/s of a whole run in this process, from listing the folder to the finished file; its engine is open."""
    engine = open_engine()
    began = time.perf_counter()
    summary = score_dataset(Source((str(folder),)), output, lambda: engine, Options(workers=THREADS, restart=True))
    return summary.images / (time.perf_counter() - began)


def main() -> None:
    """Run all sides in turn, several times, and record medians and ratios."""
    facts = machine()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        files = make_crops(root / "distinct")
        link_many(files, root / "many", IMAGES)
        paths = sorted(str(path) for path in (root / "many").rglob("*.jpg"))
        engine = open_engine()
        batch = engine.info.batch
        images = np.zeros((len(files), 224, 224, 3), np.uint8)
        CpuDecoder().decode([path.read_bytes() for path in files], images)
        end_to_end(root / "many", root / "s.parquet")
        rounds: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            decode, alone = decode_only(paths, batch), engine_only(engine, images, IMAGES)
            whole = end_to_end(root / "many", root / "s.parquet")
            bound = 1 / (1 / decode + 1 / alone)
            ours, _ = timed([*COMMAND, "score", root / "many", "-o", root / "c.parquet", "--restart"])
            plain, _ = timed([sys.executable, "-m", "benchmarks.plain", root / "many", root / "p.csv"])
            measured = {
                "decode_only": decode,
                "engine_only": alone,
                "bound": bound,
                "end_to_end_in_process": whole,
                "share_of_bound": whole / bound,
                "command": IMAGES / ours,
                "plain_script": IMAGES / plain,
                "command_over_plain": plain / ours,
            }
            for name, value in measured.items():
                rounds.setdefault(name, []).append(value)
            print({name: round(value, 3) for name, value in measured.items()}, file=sys.stderr, flush=True)
        record(
            "throughput",
            {
                "what": f"images/s on {IMAGES} JPEGs of 224 px, medians of {ROUNDS} rounds (also of the ratios)",
                "machine": facts,
                "engine": {"executed": engine.info.executed, "backend": engine.info.backend, "batch": batch},
                "medians": {name: median(values) for name, values in rounds.items()},
                "rounds": {name: [round(value, 3) for value in values] for name, values in rounds.items()},
            },
        )


if __name__ == "__main__":
    main()
