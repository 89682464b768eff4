"""Reading ahead: where the images of a unit are, in which order they are best read, and threads that read them."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from itertools import groupby

import numpy as np
import numpy.typing as npt

from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.containers.registry import is_table
from fiqa_trt.inputs.reader import ContainerReader, read_addresses
from fiqa_trt.storage.base import Read
from fiqa_trt.storage.registry import is_stored

READERS = 8
"""Threads that wait for the disk: more than there may be cores, because a network's disk answers late."""
REQUESTS = 64
"""The same for object stores, which answer later still: at most. What is read waits for the decoders, and no more is
asked for meanwhile, so that of a store that answers quickly only a few are."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """The images of a unit in the order in which they are best read: those of a container as they stand in it.

    Attributes:
        addresses: of the images, in that order.
        order: number of each in the unit; None if the order is that of the unit.
    """

    addresses: list[Address]
    order: npt.NDArray[np.intp] | None

    def places(self) -> npt.NDArray[np.intp]:
        """Where in that order each image of the unit is."""
        return np.arange(len(self.addresses)) if self.order is None else np.argsort(self.order)


class Reader:
    """Reads the files of a chunk: in several threads, but rows of tables, which are best read in turn, in one."""

    def __init__(self, requests: int = REQUESTS) -> None:
        """`requests` to object stores, at most, are under way at a time."""
        counts = {"read": READERS, "far": requests, "rows": 1, "plan": 1}
        self._pools = [ThreadPoolExecutor(count, name) for name, count in counts.items()]
        self._files, self._far, self._tables, self._plans = self._pools
        self._containers = ContainerReader()
        self._closed = False

    def plan(self, paths: Sequence[str]) -> Future[Plan]:
        """Start to find out where recorded paths lead, and in which order they are best read."""
        return self._plans.submit(self._plan, paths)

    def _plan(self, paths: Sequence[str]) -> Plan:
        known = dict[str, bool]()
        addresses = [Address.parse(path, known) for path in paths]
        inside = dict[tuple[str, str], list[int]]()
        for index, (file, key, column) in enumerate(addresses):
            if key is not None:
                inside.setdefault((file, column), []).append(index)
        if not inside:
            return Plan(addresses, None)

        def positions(found: list[int]) -> list[int]:
            return [] if self._closed else self._containers.positions([addresses[index] for index in found])

        # Whole containers in the order in which they first occur; plain files stay together where the first of them is.
        homes = [None if key is None else (file, column) for file, key, column in addresses]
        rank = {home: number for number, home in enumerate(dict.fromkeys(homes))}
        within = list(range(len(addresses)))
        for members, found in zip(inside.values(), self._files.map(positions, inside.values()), strict=True):
            for index, position in zip(members, found, strict=False):
                within[index] = position
        order = sorted(
            range(len(addresses)), key=[(rank[h], w) for h, w in zip(homes, within, strict=True)].__getitem__
        )
        if order == list(range(len(addresses))):
            return Plan(addresses, None)
        return Plan([addresses[index] for index in order], np.array(order, np.intp))

    def submit(self, addresses: Sequence[Address]) -> Future[list[Read]]:
        """Start reading; the result holds the bytes of each, or why there are none."""
        in_tables = any(key is not None and is_table(file) for file, key, _ in addresses)
        if in_tables or not any(is_stored(file) for file, _, _ in addresses):
            return self._begin(self._tables if in_tables else self._files, addresses)
        return _whole([self._begin(self._far, part) for part in _requests(addresses)])

    def _begin(self, pool: ThreadPoolExecutor, addresses: Sequence[Address]) -> Future[list[Read]]:
        return pool.submit(read_addresses, addresses, self._containers, lambda: self._closed)

    def close(self) -> None:
        """Begin nothing more, and release what is open; waits for nobody, as a disk may never answer."""
        self._closed = True
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        self._containers.close()


def _requests(addresses: Sequence[Address]) -> Iterator[Sequence[Address]]:
    """What is read at once from afar: an object by itself, neighbours in a shard together."""
    for (_, _, plain), group in groupby(addresses, key=lambda one: (one.file, one.column, one.key is None)):
        together = [*group]
        yield from ([one] for one in together) if plain else [together]


def _whole(parts: list[Future[list[Read]]]) -> Future[list[Read]]:
    """The results of several, one after the other, once all are there."""
    whole, lock, left = Future[list[Read]](), threading.Lock(), len(parts)

    def done(_: Future[list[Read]]) -> None:
        nonlocal left
        with lock:
            left -= 1
            if left:
                return
        try:
            whole.set_result([read for part in parts for read in part.result()])
        except (Exception, CancelledError) as exc:
            whole.set_exception(exc)

    for part in parts:
        part.add_done_callback(done)
    return whole
