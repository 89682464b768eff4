"""A run against the bound of its stages, and the whole command. `python -m benchmarks.throughput`."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import COMMAND, link_many, machine, make_crops, median, record, timed
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.opening import open_engine
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine.benchmark import bound_of, decode_rate, engine_rate, read_rate
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset

IMAGES, ROUNDS, THREADS = 4000, 5, 2


def end_to_end(folder: Path, output: Path) -> float:
    """Images/s of a whole run in this process, from listing the folder to the finished file; its engine is open."""
    workers = InProcess(open_engine(), CpuDecoder(threads=THREADS))
    began = time.perf_counter()
    summary = score_dataset(Source((str(folder),)), output, lambda: workers, Options(restart=True))
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
        decoder = CpuDecoder(threads=THREADS)
        blobs = [path.read_bytes() for path in files]
        batches = [decoder.decode(blobs[start : start + batch], batch) for start in range(0, len(blobs), batch)]
        end_to_end(root / "many", root / "s.parquet")
        rounds: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            decode, alone = decode_rate(decoder, blobs, batch, IMAGES), engine_rate(engine, batches, IMAGES)
            read = read_rate(paths, batch)
            whole = end_to_end(root / "many", root / "s.parquet")
            bound = bound_of({"read": read, "decode": decode, "engine": alone}, shared=True)
            ours, _ = timed([*COMMAND, "score", root / "many", "-o", root / "c.parquet", "--restart"])
            measured = {
                "read_only": read,
                "decode_only": decode,
                "engine_only": alone,
                "bound": bound,
                "end_to_end_in_process": whole,
                "share_of_bound": whole / bound,
                "command": IMAGES / ours,
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
