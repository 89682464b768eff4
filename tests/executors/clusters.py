"""Ray clusters of this machine for tests: nodes of one CPU and one GPU that is a number only."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.cluster import Cluster
from fiqa_trt.executors.ray import OnRay
from fiqa_trt.inputs.source import Source
from fiqa_trt.progress import Progress
from fiqa_trt.runs.run import Options, Summary
from fiqa_trt.runs.score import score_dataset

SETUP = Setup(device="cpu", precision="fp32", batch=4)
UNIT = 8
_NODE: dict[str, Any] = {"num_cpus": 1, "num_gpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False}


class Nodes:
    """A cluster that a test may hurt."""

    def __init__(self, count: int = 2, **options: Any) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        from ray.cluster_utils import Cluster as Started

        ends = signal.getsignal(signal.SIGTERM)
        self._started = Started(initialize_head=True, head_node_args={**_NODE, **options})
        signal.signal(signal.SIGTERM, ends)  # Ray's ends the tests otherwise than one that kills them expects
        self.nodes: list[Any] = [self._started.head_node]
        for _ in range(count - 1):
            self.add(**options)

    @property
    def address(self) -> str:
        return str(self._started.address)

    def add(self, **options: Any) -> None:
        self.nodes.append(self._started.add_node(**{**_NODE, **options}))

    def raylet(self, index: int) -> psutil.Process:
        (found,) = self.nodes[index].all_processes["raylet"]
        return psutil.Process(found.process.pid)

    def replicas(self, index: int) -> list[psutil.Process]:
        """The processes that score on a node."""
        found = self.raylet(index).children()
        return [process for process in found if "Replica" in " ".join(process.cmdline())]

    def kill(self, index: int) -> None:
        """A node is gone with all that is on it."""
        self._started.remove_node(self.nodes.pop(index), allow_graceful=False)

    def close(self) -> None:
        self._started.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes, for tests that leave them as they are."""
    found = Nodes()
    yield found
    found.close()


def on(found: Nodes, say: Callable[[str], None] = print, **more: Any) -> Callable[[], OnRay]:
    asked = Cluster(found.address, **{"shared_filesystem": True, **more})
    return lambda: OnRay(asked, SETUP, say)


def score(folder: Path, output: Path, opened: Callable[[], Any], **more: Any) -> Summary:
    return score_dataset(Source((str(folder),)), output, opened, Options(unit_rows=UNIT), **more)


def once_at(rows: int, action: Callable[[], None]) -> Callable[[Progress], None]:
    """Does something when so many rows are done."""
    left = [action]

    def report(progress: Progress) -> None:
        while left and progress.done >= rows:
            left.pop()()

    return report
