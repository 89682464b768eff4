"""Seconds to `--help` and to a first score. `python -m benchmarks.startup`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.common import COMMAND, machine, make_crops, median, record, timed

ROUNDS = 9


def main() -> None:
    """Measure and record. Cold: no compiled network in the cache; warm: the second run of a user."""
    facts = machine()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (crop, *_) = make_crops(root / "crops", distinct=1)
        score: list[str | Path] = [*COMMAND, "score", crop, "-o", root / "s.parquet", "--restart", "-q"]
        helps, cold, warm = list[float](), list[float](), list[float]()
        for index in range(ROUNDS):
            helps.append(timed([*COMMAND, "--help"])[0])
            os.environ["FIQA_TRT_CACHE"] = str(root / f"cache{index}")
            cold.append(timed(score)[0])
            warm.append(timed(score)[0])
    record(
        "startup",
        {
            "what": f"seconds of whole commands, medians of {ROUNDS}",
            "machine": facts,
            "help": median(helps),
            "first_score_cold_cache": median(cold),
            "first_score_warm_cache": median(warm),
            "slowest": {"help": max(helps), "cold": max(cold), "warm": max(warm)},
        },
    )


if __name__ == "__main__":
    main()
