"""Shuffled lists over shards against lists in order, and members against files. `python -m benchmarks.shuffled`."""

from __future__ import annotations

import io
import random
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.common import machine, make_crops, median, record
from fiqa_trt import Scorer
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.opening import open_engine
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.source import Source
from fiqa_trt.machine.benchmark import read_rate
from fiqa_trt.runs.run import Options
from fiqa_trt.runs.score import score_dataset

IMAGES, TARS, GROUP_ROWS, ROUNDS, THREADS = 6000, 12, 500, 5, 2
TINY, TINY_TARS = 200_000, 100
API_IMAGES = 2000


def write_tars(folder: Path, count: int, blobs: Sequence[bytes], images: int) -> list[str]:
    """`images` members in `count` tars, `blobs` in turn; their recorded paths in order."""
    folder.mkdir()
    recorded = list[str]()
    for number in range(count):
        path = folder / f"{number:04}.tar"
        with tarfile.open(path, "w") as archive:
            for index in range(number * images // count, (number + 1) * images // count):
                entry, data = tarfile.TarInfo(f"{index:08}.jpg"), blobs[index % len(blobs)]
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
                recorded.append(f"{path}::{entry.name}")
    return recorded


def write_table(path: Path, blobs: Sequence[bytes], images: int) -> list[str]:
    """`images` rows of a Parquet table; their recorded paths in order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [blobs[index % len(blobs)] for index in range(images)]})
    pq.write_table(table, path, row_group_size=GROUP_ROWS, use_dictionary=False)
    return [f"{path}::{index}" for index in range(images)]


def shuffled(paths: Sequence[str]) -> list[str]:
    """The same in another order."""
    return random.Random(0).sample(paths, len(paths))


def end_to_end(paths: Sequence[str], scratch: Path) -> float:
    """Images/s of scoring a list in this process; its engine is open."""
    workers, listed = InProcess(open_engine(), CpuDecoder(threads=THREADS)), scratch / "list.txt"
    listed.write_text("\n".join(paths) + "\n")
    began = time.perf_counter()
    source = Source(list_file=str(listed))
    summary = score_dataset(source, scratch / "s.parquet", lambda: workers, Options(restart=True))
    if summary.failed:
        raise RuntimeError(f"{summary.failed} of {summary.images} failed")
    return summary.images / (time.perf_counter() - began)


def api_rate(scorer: Scorer, paths: Sequence[str]) -> float:
    """Images/s of `Scorer.score`."""
    began = time.perf_counter()
    scores = scorer.score(paths)
    if any(score.status != "ok" for score in scores):
        raise RuntimeError("an image failed")
    return len(scores) / (time.perf_counter() - began)


def main() -> None:
    """Run all sides in turn, several times, and record medians, also of the ratios."""
    facts = machine()
    with tempfile.TemporaryDirectory() as scratch, Scorer(device="cpu", threads=THREADS) as scorer:
        root = Path(scratch)
        blobs = [path.read_bytes() for path in make_crops(root / "distinct")]
        files = list[str]()
        (root / "files").mkdir()
        for index in range(IMAGES):
            path = root / "files" / f"{index:08}.jpg"
            path.write_bytes(blobs[index % len(blobs)])
            files.append(str(path))
        members = write_tars(root / "tars", TARS, blobs, IMAGES)
        rows = write_table(root / "table.parquet", blobs, IMAGES)
        tiny = write_tars(root / "tiny", TINY_TARS, [b"%d" % number for number in range(1000)], TINY)
        sides: dict[str, Callable[[], float]] = {
            "files_in_order": lambda: end_to_end(files, root),
            "tars_in_order": lambda: end_to_end(members, root),
            "tars_shuffled": lambda: end_to_end(shuffled(members), root),
            "table_in_order": lambda: end_to_end(rows, root),
            "table_shuffled": lambda: end_to_end(shuffled(rows), root),
            "api_files": lambda: api_rate(scorer, files[:API_IMAGES]),
            "api_members": lambda: api_rate(scorer, members[:API_IMAGES]),
            "api_members_shuffled": lambda: api_rate(scorer, shuffled(members)[:API_IMAGES]),
            "reads_in_order": lambda: read_rate(tiny, 64),
            "reads_shuffled": lambda: read_rate(shuffled(tiny), 64),
            "row_reads_in_order": lambda: read_rate(rows, 64),
            "row_reads_shuffled": lambda: read_rate(shuffled(rows), 64),
        }
        pairs = {
            "tars_shuffled / tars_in_order": ("tars_shuffled", "tars_in_order"),
            "table_shuffled / table_in_order": ("table_shuffled", "table_in_order"),
            "tars_in_order / files_in_order": ("tars_in_order", "files_in_order"),
            "api_members / api_files": ("api_members", "api_files"),
            "api_members_shuffled / api_files": ("api_members_shuffled", "api_files"),
            "reads_shuffled / reads_in_order": ("reads_shuffled", "reads_in_order"),
            "row_reads_shuffled / row_reads_in_order": ("row_reads_shuffled", "row_reads_in_order"),
        }
        end_to_end(files[:500], root)
        rounds: dict[str, list[float]] = {}
        for _ in range(ROUNDS):
            measured = {name: measure() for name, measure in sides.items()}
            measured |= {name: measured[above] / measured[below] for name, (above, below) in pairs.items()}
            for name, value in measured.items():
                rounds.setdefault(name, []).append(value)
            print({name: round(value, 3) for name, value in measured.items()}, file=sys.stderr, flush=True)
        info = scorer.info
        record(
            "shuffled",
            {
                "what": f"images/s on {IMAGES} JPEGs of 224 px in {TARS} tars and in a table with row groups of "
                f"{GROUP_ROWS}, {API_IMAGES} through the API; reads/s of {TINY} tiny members of {TINY_TARS} tars, with "
                f"their indexing; medians of {ROUNDS} rounds (also of the ratios)",
                "machine": facts,
                "engine": {"executed": info.executed, "backend": info.backend, "batch": info.batch},
                "medians": {name: median(values) for name, values in rounds.items()},
                "rounds": {name: [round(value, 3) for value in values] for name, values in rounds.items()},
            },
        )


if __name__ == "__main__":
    main()
