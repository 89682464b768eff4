"""A billion images on 512 replicas: who gets which unit, simulated; and the state of as many units, read and assembled.

`python -m benchmarks.scale` takes some minutes and 1 GB of disk. Times of units are lognormal with the spread of units
that were scored here, one in a hundred takes three times as long, and replicas and nodes die and freeze at given rates.
"""

from __future__ import annotations

import functools
import heapq
import math
import random
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import machine, make_crops, own_peak_mb, record
from fiqa_trt.executors.attempts import Dispatch
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.runs.state import FolderUnits
from fiqa_trt.scores.files import write_output
from fiqa_trt.scores.schema import output_schema
from fiqa_trt.scores.tally import Tally

UNITS, UNIT_ROWS, REPLICAS, NODE = 122_000, 8192, 512, 8
IMAGES_PER_SECOND = 2_000.0
"""Of a replica: what a GPU does beside few CPU cores; a quicker one makes the run shorter and the driver busier."""
SLOW, SLOW_FACTOR = 0.01, 3.0
CRASHES = 1e-4  # of a replica, in a unit
RESTART_SECONDS, NOTICE_SECONDS, FREEZE_SECONDS, STEP_SECONDS = 30.0, 3.0, 64.0, 1.0
TINY_ROWS = 8


class Numbers:
    """Units that are numbers alone."""

    def __init__(self, count: int) -> None:
        self._count = count

    def pending(self) -> Iterator[int]:
        """See `Units.pending`."""
        return iter(range(self._count))

    def inputs(self, number: int) -> pa.Table:
        """See `Units.inputs`."""
        raise AssertionError("nothing is scored")

    def keep(self, number: int, rows: pa.Table) -> None:
        """See `Units.keep`."""
        raise AssertionError("nothing is scored")

    def deaths(self) -> dict[int, int]:
        """See `Units.deaths`."""
        return {}

    def record_deaths(self, deaths: dict[int, int]) -> None:
        """See `Units.record_deaths`."""


class Simulated:
    """Replicas that only take time. `lost_nodes` die and as many freeze, at times spread over the run."""

    def __init__(self, units: int, replicas: int, spread: float, crashes: float, lost_nodes: int, seed: int) -> None:
        self.now, self._random = 0.0, random.Random(seed)
        self._dispatch = Dispatch(Numbers(units), lambda: self.now, copies=True)
        self._spread, self._crashes, self._order = spread, crashes, 0
        self._events = list[tuple[float, int, Callable[[], None]]]()
        self._queues = [deque[int]() for _ in range(replicas)]
        self._lives, self._up = [0] * replicas, [True] * replicas
        self.done = self.copies = self.losses = 0
        self.busy = 0.0
        expected = units / replicas * UNIT_ROWS / IMAGES_PER_SECOND
        for index in range(2 * lost_nodes):
            node = self._random.randrange(replicas // NODE)
            notice = FREEZE_SECONDS if index % 2 else NOTICE_SECONDS
            self._at(self._random.uniform(0, expected), functools.partial(self._node, node, notice))

    def _at(self, seconds: float, action: Callable[[], None]) -> None:
        self._order += 1
        heapq.heappush(self._events, (self.now + seconds, self._order, action))

    def _seconds(self) -> float:
        usual = UNIT_ROWS / IMAGES_PER_SECOND * self._random.lognormvariate(-(self._spread**2) / 2, self._spread)
        return usual * (SLOW_FACTOR if self._random.random() < SLOW else 1.0)

    def _node(self, node: int, notice: float) -> None:
        for replica in range(node * NODE, node * NODE + NODE):
            self._die(replica, notice)

    def _die(self, replica: int, notice: float) -> None:
        """Silent at once, noticed after a while, and back after another."""
        if not self._up[replica]:
            return
        self._up[replica] = False
        self._lives[replica] += 1
        self.losses += 1

        def noticed() -> None:
            self._queues[replica].clear()
            self._dispatch.lost(replica, "simulated")
            self._at(RESTART_SECONDS, back)

        def back() -> None:
            self._up[replica] = True

        self._at(notice, noticed)

    def _begin(self, replica: int) -> None:
        number, life, seconds = self._queues[replica][0], self._lives[replica], self._seconds()
        if self._random.random() < self._crashes:
            self._at(seconds * self._random.random(), lambda: self._die(replica, NOTICE_SECONDS))
            return

        def finished() -> None:
            if life != self._lives[replica]:
                return
            self._queues[replica].popleft()
            self.busy += seconds
            if self._dispatch.finished(replica, number):
                self.done += 1
            else:
                self.copies += 1
            if self._queues[replica]:
                self._begin(replica)
            self._give(replica)

        self._at(seconds, finished)

    def _give(self, replica: int) -> None:
        queue = self._queues[replica]
        while self._up[replica] and len(queue) < 2 and (self._dispatch.waiting or not queue):
            found = self._dispatch.give(replica)
            if found is None:
                return
            queue.append(found[0])
            if len(queue) == 1:
                self._begin(replica)

    def run(self) -> float:
        """Seconds that the run takes, of its clock."""

        def tick() -> None:
            for replica in range(len(self._queues)):
                self._give(replica)
            if not self._dispatch.over:
                self._at(STEP_SECONDS, tick)

        self._at(0, tick)
        while not self._dispatch.over:
            self.now, _, action = heapq.heappop(self._events)
            action()
        return self.now


def measured_spread(root: Path) -> float:
    """Standard deviation of the logarithm of units' times, of units that are scored here."""
    files = [str(path) for path in make_crops(root / "crops", 64)]
    executor = InProcess.open(Setup(device="cpu"))
    table, times = pa.table({"path": files * 8}), list[float]()
    for number in range(12):
        began = time.perf_counter()
        task = executor.task(Tables(table), number, careful=False)
        list(executor.score([task], lambda rows, failed: None))
        times.append(time.perf_counter() - began)
    executor.close()
    return statistics.stdev(math.log(seconds) for seconds in times[2:])


class Tables(Numbers):
    """Units that all have the same inputs."""

    def __init__(self, table: pa.Table) -> None:
        super().__init__(1)
        self._table = table

    def inputs(self, number: int) -> pa.Table:
        """See `Units.inputs`."""
        return self._table


def simulate(spread: float, crashes: float, lost_nodes: int) -> dict[str, Any]:
    """One run, and what its driver needs."""
    began = time.perf_counter()
    run = Simulated(UNITS, REPLICAS, spread, crashes, lost_nodes, seed=1)
    makespan, wall = run.run(), time.perf_counter() - began
    bound = run.busy / REPLICAS
    return {
        "makespan_seconds": round(makespan),
        "bound_seconds": round(bound),
        "ratio": round(makespan / bound, 4),
        "lost_replicas": run.losses,
        "copies_in_vain": run.copies,
        "units_per_second": round(UNITS / makespan, 1),
        "state_requests_per_second": round(2 * UNITS / makespan, 1),
        "image_requests_per_second": round(UNITS * UNIT_ROWS / makespan),
        "driver_microseconds_per_unit": round(wall / UNITS * 1e6, 1),
        "driver_peak_mb": round(own_peak_mb()),
    }


def assemble(root: Path, units: int, rows: int) -> dict[str, Any]:
    """Time what a run of so many units reads of its state, and its end, with parts of a few rows."""
    schema = output_schema(MEMBERS, pa.schema([("path", pa.string())]))
    names = [f"s3://bucket/faces/identity_{index // 40:06}/{index:08}.jpg" for index in range(rows)]
    part = schema.empty_table().to_pydict()
    values = {"path": names, "status": ["ok"] * rows}
    part = {name: values.get(name, [0.5 if name.startswith("score") else None] * rows) for name in part}
    table = pa.table(part, schema=schema)
    folder = root / "s.parquet.partial"
    state, parts = FolderUnits(folder, folder), folder / "parts"
    parts.mkdir(parents=True)
    inputs = pa.table({"path": names})
    with pq.ParquetWriter(state.path_of_inputs, inputs.schema, compression="zstd", write_statistics=False) as writer:
        for _ in range(units):
            writer.write_table(inputs, row_group_size=rows)
    state.keep(0, table)
    content = (parts / "00000000.parquet").read_bytes()
    for number in range(1, units):
        (parts / f"{number:08}.parquet").write_bytes(content)

    def seconds(action: Callable[[], object]) -> float:
        began = time.perf_counter()
        action()
        return time.perf_counter() - began

    last = units - 1
    tally = Tally()
    found = {
        "units": units,
        "rows_of_each": rows,
        "list_footer_mb": round(pq.read_metadata(state.path_of_inputs).serialized_size / 1e6, 1),
        "inputs_of_a_unit_first_seconds": round(seconds(lambda: state.inputs(last)), 3),
        "inputs_of_a_unit_next_seconds": round(seconds(lambda: state.inputs(last - 1)), 3),
        "pending_seconds": round(seconds(lambda: list(state.pending())), 1),
        "resume_seconds": round(seconds(lambda: list(tally.count(state.finished()))), 1),
    }
    output = root / "s.parquet"
    found["finish_seconds"] = round(
        seconds(lambda: write_output(output, schema, Tally().count(state.parts()), units * rows)), 1
    )
    found["finish_rows_per_second"] = round(units * rows / found["finish_seconds"])
    found["bytes_per_row"] = round(output.stat().st_size / (units * rows), 1)
    found["peak_mb"] = round(own_peak_mb())
    return found


def main() -> None:
    """Measure and record."""
    facts = machine()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        spread = measured_spread(root)
        simulated = {
            "nothing fails": simulate(spread, 0.0, 0),
            "replicas crash, four nodes die and four freeze": simulate(spread, CRASHES, 4),
        }
        states = {}
        for name, units, rows in (("many parts", UNITS, TINY_ROWS), ("whole parts", 300, UNIT_ROWS)):
            states[name] = assemble(root / name, units, rows)
            shutil.rmtree(root / name)
    record(
        "scale",
        {
            "what": "a billion images in 122,000 units on 512 replicas, simulated; the state of 122,000 units",
            "machine": facts,
            "spread": round(spread, 3),
            "simulated": simulated,
            "state": states,
        },
    )


if __name__ == "__main__":
    main()
