"""Peak memory for 5,000 and 100,000 inputs; the freezing of a million-row list. `python -m benchmarks.memory`."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from pathlib import Path

from benchmarks.common import COMMAND, link_many, machine, make_crops, own_peak_mb, record, timed
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.runs.state import RunFolder

SMALL, LARGE, LIST = 5_000, 100_000, 1_000_000


def freeze(listing: str, output: str, results: multiprocessing.Queue[tuple[int, float, float]]) -> None:
    """List and freeze in a process of its own, so that its peak memory is its own."""
    began = time.perf_counter()
    with RunFolder(Path(output), 8192) as folder:
        _, count = folder.freeze(list_inputs(Source(list_file=listing)))
    results.put((count, time.perf_counter() - began, own_peak_mb()))


def main() -> None:
    """Measure and record."""
    facts = machine()
    peaks: dict[str, float] = {}
    rates: dict[str, float] = {}
    frozen = {}
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        files = make_crops(root / "distinct")
        for count in (SMALL, LARGE):
            link_many(files, root / str(count), count)
            seconds, peak = timed([*COMMAND, "score", root / str(count), "-o", root / f"{count}.parquet", "-q"])
            peaks[str(count)], rates[str(count)] = round(peak, 1), round(count / seconds, 1)
        context = multiprocessing.get_context("spawn")
        results: multiprocessing.Queue[tuple[int, float, float]] = context.Queue()
        lines = [f"/data/faces/identity_{index // 40:06}/{index:08}.jpg" for index in range(LIST)]
        (root / "l.txt").write_text("\n".join(lines))
        (root / "l.csv").write_text(
            "path,person\n" + "\n".join(f"{line},{index // 40:06}" for index, line in enumerate(lines))
        )
        for name in ("l.txt", "l.csv"):
            process = context.Process(target=freeze, args=(str(root / name), str(root / f"{name}.parquet"), results))
            process.start()
            rows, seconds, peak = results.get(timeout=600)
            process.join()
            frozen[name] = {"rows": rows, "seconds": round(seconds, 2), "peak_mb": round(peak)}
    record(
        "memory",
        {
            "what": "peak resident memory (MB) of `fiqa-trt score`; freezing a list of a million paths",
            "machine": facts,
            "peak_mb": peaks,
            "ratio": round(peaks[str(LARGE)] / peaks[str(SMALL)], 3),
            "images_per_second": rates,
            "million_row_list": frozen,
        },
    )


if __name__ == "__main__":
    main()
