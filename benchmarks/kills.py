"""SIGKILL at random moments, resume, compare with an uninterrupted run. `python -m benchmarks.kills`."""

from __future__ import annotations

import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.common import COMMAND, damage, link_many, machine, make_crops, record

IMAGES, KILLS, SEED = 5_000, 20, 0


def main() -> None:
    """Kill and resume, then compare row for row; fails loudly if anything differs."""
    facts, rng = machine(), random.Random(SEED)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        files = make_crops(root / "distinct")
        for path in files[::25]:
            path.write_bytes(damage(path.read_bytes(), rng))
        link_many(files, root / "many", IMAGES)
        command = [*COMMAND, "score", str(root / "many"), "--unit-size", "256", "-q", "-o"]
        began = time.perf_counter()
        subprocess.run([*command, root / "whole.parquet"], check=True)
        whole = time.perf_counter() - began
        killed, parts = list[float](), list[int]()
        while len(killed) < KILLS:
            wait = rng.uniform(0, min(1.5 + whole / KILLS, whole))
            process = subprocess.Popen([*command, root / "killed.parquet"])
            time.sleep(wait)
            process.send_signal(signal.SIGKILL)
            if process.wait() != -signal.SIGKILL:
                break  # it was finished before
            killed.append(round(wait, 3))
            parts.append(len(list((root / "killed.parquet.partial" / "parts").glob("0*.parquet"))))
        subprocess.run([*command, root / "killed.parquet"], check=True)
        expected, got = pq.read_table(root / "whole.parquet"), pq.read_table(root / "killed.parquet")
        equal = expected.equals(got)
        left = [path.name for path in root.iterdir() if path.name.endswith((".partial", ".tmp"))]
    record(
        "kills",
        {
            "what": f"{len(killed)} SIGKILLs in a run of {IMAGES} images (1 in 25 damaged), each followed by a resume",
            "machine": facts,
            "killed_after_seconds": killed,
            "finished_parts_then": parts,
            "rows": got.num_rows,
            "equal_row_for_row": equal,
            "left_over": left,
        },
    )
    if not equal or len(killed) < KILLS or left:
        raise SystemExit("not as it should be")


if __name__ == "__main__":
    main()
