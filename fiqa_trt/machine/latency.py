"""How long one image takes that is scored by itself, as in a server: from one thread, and from many at once."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Sequence

import numpy as np

from fiqa_trt.decoding.items import Item
from fiqa_trt.scorer import Scorer

THREADS = (1, 16)
SECONDS = 5.0
_WARM_UP = 10


@dataclasses.dataclass(frozen=True)
class Latency:
    """Of `Scorer.score([image])`, decoding included.

    Attributes:
        threads: that each score one image after the other.
        calls: that were timed.
        rate: images/s of all threads together.
        p50_ms: half of the calls took no longer, in milliseconds.
        p95_ms: 95 % of them.
        p99_ms: 99 % of them.
    """

    threads: int
    calls: int
    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


def measure_latency(scorer: Scorer, items: Sequence[Item], threads: int, seconds: float = SECONDS) -> Latency:
    """Score single images in turn from `threads` threads for so long.

    Args:
        scorer: open.
        items: at least one.
        threads: at once.
        seconds: that begin after some calls which are not counted.

    Raises:
        RunError: the engine failed.
    """
    for index in range(_WARM_UP):
        scorer.score([items[index % len(items)]])
    times = [list[float]() for _ in range(threads)]
    errors = list[BaseException]()
    began = time.perf_counter()

    def work(number: int) -> None:
        index = number
        try:
            while (start := time.perf_counter()) < began + seconds:
                scorer.score([items[index % len(items)]])
                times[number].append(time.perf_counter() - start)
                index += threads
        except BaseException as exc:
            errors.append(exc)

    workers = [threading.Thread(target=work, args=(number,), name="latency") for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    taken = time.perf_counter() - began
    every = np.concatenate([np.array(each) for each in times])
    p50, p95, p99 = (float(f"{value * 1000:.4g}") for value in np.percentile(every, (50, 95, 99)))
    return Latency(threads, len(every), float(f"{len(every) / taken:.4g}"), p50, p95, p99)
