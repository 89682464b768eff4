"""Single images, as in a server: `Scorer` as it is against the best fixed batch. `python -m benchmarks.latency`."""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import machine, make_crops, median, record
from fiqa_trt import Scorer
from fiqa_trt.machine.latency import Latency, measure_latency

ROUNDS = 8
SECONDS = 1.0
FIXED = (1, 4, 8)
DEFAULT = "as it is"


class _Fixed(Scorer):
    """Every call is filled up to the batch."""

    def __init__(self, batch: int, precision: str) -> None:
        super().__init__("cpu", precision, batch=batch)
        if self._small is not self._engine:
            self._small.close()
            self._small = self._engine


def _scorers(precision: str) -> dict[str, Scorer]:
    return {DEFAULT: Scorer("cpu", precision)} | {f"batch {size}": _Fixed(size, precision) for size in FIXED}


def _summary(found: list[Latency]) -> dict[str, float]:
    names = [field.name for field in dataclasses.fields(Latency) if field.name not in ("threads", "calls")]
    return {name: median([getattr(each, name) for each in found]) for name in names}


def main() -> None:
    """Measure and record; each way in turn, in every round."""
    facts, results = machine(), dict[str, Any]()
    with tempfile.TemporaryDirectory() as scratch:
        crops = [path.read_bytes() for path in make_crops(Path(scratch), distinct=64)]
    for precision in ("fp32", "auto"):
        scorers = _scorers(precision)
        found: dict[int, dict[str, list[Latency]]] = {1: {}, 16: {}}
        for number in range(ROUNDS):
            for threads, ways in found.items():
                turn = list(scorers.items())
                for name, scorer in reversed(turn) if number % 2 else turn:
                    ways.setdefault(name, []).append(measure_latency(scorer, crops, threads, SECONDS))
        executed = scorers[DEFAULT].info.executed
        for scorer in scorers.values():
            scorer.close()
        one, many = found[1], found[16]
        best = max((f"batch {size}" for size in FIXED), key=lambda name: median([each.rate for each in many[name]]))
        # Of rounds, not of medians: what else the machine does, it does to both.
        times = [ours.p50_ms / theirs.p50_ms for ours, theirs in zip(one[DEFAULT], one["batch 1"], strict=True)]
        rates = [ours.rate / theirs.rate for ours, theirs in zip(many[DEFAULT], many[best], strict=True)]
        results[f"{precision} (run as {executed})"] = {
            "1 thread": {name: _summary(each) for name, each in one.items()},
            "16 threads": {name: _summary(each) for name, each in many.items()},
            "one image, of the time with batch 1": median(times),
            f"16 threads, of the best fixed batch ({best})": median(rates),
        }
    record("latency", {"what": f"single JPEGs of 224 px, medians of {ROUNDS}", "machine": facts, "results": results})


if __name__ == "__main__":
    main()
