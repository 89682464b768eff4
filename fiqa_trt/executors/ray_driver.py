"""The process that is connected to a Ray cluster: it starts replicas and hands them units.

Plain actors that Ray restarts, and no retries of Ray's: what is lost is heard of at once, and `Dispatch` gives it to
another. Images and rows go from and to where they are stored; what passes here are numbers.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import socket
import time
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fiqa_trt.errors import EngineError, FiqaError, RunError, one_line
from fiqa_trt.executors.attempts import Dispatch
from fiqa_trt.executors.base import Setup, Units
from fiqa_trt.executors.cluster import (
    AtWork,
    Cluster,
    Engines,
    Finished,
    Given,
    Opened,
    Order,
    difference_of_versions,
    refuse_differences,
    versions_here,
)  # fmt: skip
from fiqa_trt.executors.replica import Replica
from fiqa_trt.executors.resources import Share, shares

_AT_ONCE = 2  # units of a replica, so that its engine does not wait from one to the next
_STEP_SECONDS = 1.0
_AWAITED_SECONDS = 10.0
_LATE_SECONDS = 15.0
_ALONE_SECONDS = 600.0
_CONNECT_SECONDS = 5.0
_OBJECT_STORE = 100 << 20
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SCHEDULER_EVENTS": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class Connected:
    """A step towards the cluster is done."""


@dataclasses.dataclass(frozen=True)
class Work:
    """The units to score."""

    units: Units


class Done:
    """They are scored."""


@dataclasses.dataclass(frozen=True)
class Told:
    """Something for the user."""

    message: str


class _Over(Exception):
    """The process that we work for is gone, or has had enough."""


def serve(where: Cluster, setup: Setup, engines: Engines, scratch: str, parent: Connection) -> None:
    """What the process does: connect, start replicas, score the units that arrive, until None does.

    `scratch`: a folder for the files of a cluster that it starts itself.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, whose end ends us
    with Path(os.devnull).open("wb") as nowhere:  # what Ray has to say
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    try:
        try:
            _connect(where, parent, scratch)
            driver = _Driver(where, setup, engines, parent)
            parent.send(driver.start())
            while (message := parent.recv()) is not None:
                driver.work(message.units)
                parent.send(Done())
        except FiqaError as exc:
            parent.send(exc)
    except (_Over, EOFError, OSError):
        pass
    finally:
        import ray

        ray.shutdown()
        if scratch:  # a parent that was killed does not do it
            shutil.rmtree(scratch, ignore_errors=True)


def _connect(where: Cluster, parent: Connection, scratch: str) -> None:
    """Connect to the cluster, or start one that keeps its files in `scratch`. Raises EngineError."""
    os.environ.update(_ENVIRONMENT)
    import ray

    parent.send(Connected())
    address = where.address
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS", address)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE, "_temp_dir": scratch}
        options |= {"num_cpus": len(os.sched_getaffinity(0))}
    elif address != "auto":
        _refuse_silent(address)
    try:
        ray.init(address=address, **options)
    except ConnectionError as exc:
        raise EngineError(
            f"--cluster {where.address}: no Ray cluster is known on this machine; give its HOST:PORT, or local"
        ) from exc
    except (RuntimeError, ValueError, OSError) as exc:
        said = one_line(exc, 400)
        if "ersion mismatch" in said:
            said = f"the cluster has another version of Ray or Python than this process ({said.partition(': ')[2]})"
        raise EngineError(f"--cluster {where.address}: {said}") from exc
    parent.send(Connected())


def _refuse_silent(address: str) -> None:
    """Raise EngineError unless somebody listens at an address."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or "/" in host:
        raise EngineError(f"--cluster {address}: it is auto, local or HOST:PORT, as in 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as exc:
        raise EngineError(f"--cluster {address}: no Ray cluster answers there: {one_line(exc)}") from exc


@dataclasses.dataclass(eq=False)
class _Hand:
    """A replica as its driver sees it."""

    actor: Any
    opened: Opened | None = None
    units: set[int] = dataclasses.field(default_factory=set)
    partial: tuple[int, int] = (0, 0)  # rows that are scored of them, and how many failed
    again: float = 0.0  # when it is asked to open, if it is not asked already
    asked: bool = False


class _Driver:
    def __init__(self, where: Cluster, setup: Setup, engines: Engines, parent: Connection) -> None:
        import ray

        self._ray, self._where, self._parent = ray, where, parent
        share = self._share = shares(where, setup, [node for node in ray.nodes() if node["Alive"]])  # type: ignore[no-untyped-call]
        home = ray.get_runtime_context().get_node_id()
        folder = os.getcwd() if where.shared_filesystem or (share.nodes == 1 and where.local) else ""
        order = Order(share.setup, folder, home, engines)
        self._order = ray.put(order)  # once for all of them
        self._hands = [_Hand(self._actor(share)) for _ in range(share.replicas)]
        self._first: Opened | None = None
        self._refs = dict[Any, tuple[_Hand, int | None]]()
        self._labels, self._said, self._told = dict[str, str](), set[str](), (0, 0)
        self._images, self._done, self._began = Counter[str](), (0, 0), 0.0
        self._polled = self._seen = time.monotonic()
        self._announced: int | None = None

    def _actor(self, share: Share) -> Any:
        options: dict[str, Any] = {"num_cpus": share.cpus, "num_gpus": share.gpus, "max_restarts": -1}
        options |= {"max_task_retries": 0, "max_concurrency": _AT_ONCE + 2}
        if share.memory:
            options["memory"] = share.memory
        return self._ray.remote(Replica).options(**options).remote(self._order)

    def _say(self, message: str) -> None:
        self._parent.send(Told(message))

    def _pass_on(self, node: str, answer: Opened | Finished) -> None:
        """What a replica has to say, once of all that say the same."""
        for message in answer.said:
            if message not in self._said:
                self._said.add(message)
                self._say(f"{node}: {message}")

    @property
    def _at_work(self) -> int:
        return sum(hand.opened is not None for hand in self._hands)

    def start(self) -> Opened:
        """Wait until there are as many replicas as there is room for, or a while has passed since the first.

        Raises:
            EngineError: one cannot be opened, or they would not score alike.
        """
        began, first = time.monotonic(), 0.0
        while self._at_work < min(self._share.room or 1, len(self._hands)):
            now = time.monotonic()
            if self._at_work:
                first = first or now
                if now - first > _LATE_SECONDS:
                    break
            elif now - began > _ALONE_SECONDS:
                raise RunError(f"{self._where}: no replica could be started; is there a node with room for one?")
            self._step(None)
            self._announce(now - began)
        opened = [hand.opened for hand in self._hands if hand.opened is not None]
        refuse_differences(opened, versions_here(opened[0].decoder))
        self._first = opened[0]
        return opened[0]

    def _announce(self, seconds: float) -> None:
        """Say how many replicas are missing, once, and again when that has changed."""
        there, wanted = self._at_work, len(self._hands)
        if seconds > _AWAITED_SECONDS and there < wanted and there != self._announced:
            self._announced = there
            self._say(f"{there} of {wanted} replicas at work, waiting for the rest")

    def work(self, units: Units) -> None:
        """Score every pending unit. Raises RunError."""
        dispatch = Dispatch(units, copies=True)
        self._began = self._seen = time.monotonic()
        while not dispatch.over:
            self._give(dispatch, units)
            self._step(dispatch)
            self._announce(time.monotonic() - self._began)
            self._tell()
            if self._at_work:
                self._seen = time.monotonic()
            elif time.monotonic() - self._seen > _ALONE_SECONDS:
                raise RunError(
                    f"no replica of {self._where} has been at work for {_ALONE_SECONDS:.0f} s; run the same command "
                    "again to resume"
                )
        for hand in self._hands:
            hand.partial = (0, 0)
        self._tell(last=True)

    def _give(self, dispatch: Dispatch, units: Units) -> None:
        for depth in range(_AT_ONCE):
            for hand in self._hands:
                if hand.opened is None or len(hand.units) != depth or (depth and not dispatch.waiting):
                    continue
                if (found := dispatch.give(hand)) is not None:
                    hand.units.add(found[0])
                    self._refs[hand.actor.score.remote(Given(units, *found))] = hand, found[0]

    def _step(self, dispatch: Dispatch | None) -> None:
        """Wait a moment for what the replicas answer, and hear it."""
        if self._parent.poll() and self._parent.recv() is None:
            raise _Over
        now = time.monotonic()
        for hand in self._hands:
            if hand.opened is None and not hand.asked and hand.again <= now:
                hand.asked = True
                self._refs[hand.actor.opened.remote()] = hand, None
        if now - self._polled > max(_STEP_SECONDS, len(self._hands) / 100):
            self._polled = now
            polled = {hand.actor.progress.remote(): (hand, -1) for hand in self._hands if hand.units}
            self._refs = {ref: key for ref, key in self._refs.items() if key[1] != -1} | polled
        if not self._refs:
            time.sleep(_STEP_SECONDS / 10)
            return
        ready, _ = self._ray.wait(list(self._refs), num_returns=1, timeout=_STEP_SECONDS)
        if ready:
            ready, _ = self._ray.wait(list(self._refs), num_returns=len(self._refs), timeout=0)
        for ref in ready:
            if (key := self._refs.pop(ref, None)) is not None:  # what it had is gone with it
                self._hear(ref, *key, dispatch)

    def _hear(self, ref: Any, hand: _Hand, number: int | None, dispatch: Dispatch | None) -> None:
        from ray.exceptions import RayActorError

        try:
            answer = self._ray.get(ref)
        except RayActorError as exc:
            if number != -1:
                self._lost(hand, exc, dispatch)
            return
        except Exception as exc:  # of Ray, or a fault of ours on the other side
            answer = RunError(one_line(exc))
        if number == -1:
            hand.partial = answer if isinstance(answer, tuple) else hand.partial
        elif number is None:
            self._opened(hand, answer)
        elif dispatch is not None:
            hand.units.discard(number)
            self._finished(hand, number, answer, dispatch)

    def _opened(self, hand: _Hand, answer: Opened | FiqaError) -> None:
        hand.asked = False
        if isinstance(answer, Opened):
            label = self._label(answer)
            self._pass_on(label, answer)
            answer = dataclasses.replace(answer, node=label, said=())
            different = self._first and (
                self._first.difference(answer)
                or difference_of_versions(self._first.versions, answer.versions, self._first.node, label)
            )
            if not different:
                hand.opened = answer
                return
            answer = EngineError(different)
        self._leave_out(hand, answer)

    def _leave_out(self, hand: _Hand, error: FiqaError) -> None:
        """Go on without a replica that cannot be used; raise the error if work has not begun yet."""
        if self._first is None:
            raise error
        self._say(f"a replica is left out: {error}")
        self._hands.remove(hand)
        self._ray.kill(hand.actor, no_restart=True)

    def _label(self, opened: Opened) -> str:
        """A node's name, with its number in the cluster where several nodes have that name."""
        others = {label.partition("/")[0] for identity, label in self._labels.items() if identity != opened.identity}
        name = f"{opened.node}/{opened.identity[:6]}" if opened.node in others else opened.node
        return self._labels.setdefault(opened.identity, name)

    def _finished(self, hand: _Hand, number: int, answer: Finished | FiqaError, dispatch: Dispatch) -> None:
        node = "" if hand.opened is None else hand.opened.node
        if isinstance(answer, Finished):
            self._pass_on(node, answer)
            hand.partial = (max(0, hand.partial[0] - answer.rows), max(0, hand.partial[1] - answer.failed))
            if dispatch.finished(hand, number):
                self._done = (self._done[0] + answer.rows, self._done[1] + answer.failed)
                self._images[node] += answer.rows
        elif isinstance(answer, RunError):
            self._say(f"{node}: unit {number} failed: {answer}")
            dispatch.failed(hand, number, f"on {node}: {answer}")
        else:
            raise answer

    def _lost(self, hand: _Hand, error: Exception, dispatch: Dispatch | None) -> None:
        """A replica is gone, and Ray starts it again where there is room."""
        node = hand.opened.node if hand.opened is not None else ""
        self._refs = {ref: key for ref, key in self._refs.items() if key[0] is not hand}
        hand.opened, hand.asked, hand.again = None, False, time.monotonic() + _STEP_SECONDS
        if getattr(error, "actor_init_failed", False):
            self._leave_out(hand, EngineError(f"--cluster: a replica cannot be started: {_cause(error)}"))
        if dispatch is not None and node:
            self._say(f"{node}: a replica died; others go on with its units")
            hand.units, hand.partial = set(), (0, 0)
            dispatch.lost(hand, f"a replica on {node} died")

    def _tell(self, *, last: bool = False) -> None:
        """Report what is new since the last time."""
        rows = self._done[0] + sum(hand.partial[0] for hand in self._hands)
        failed = self._done[1] + sum(hand.partial[1] for hand in self._hands)
        if (rows, failed) != self._told or last:
            seconds = time.monotonic() - self._began
            self._parent.send(AtWork(self._at_work, len(self._hands), dict(self._images), seconds))
            self._parent.send(Finished(rows - self._told[0], failed - self._told[1]))
            self._told = (rows, failed)


def _cause(error: Exception) -> str:
    """Why a replica could not be started: the last line of what Ray tells of it."""
    said = str(error)
    if "No module named 'fiqa_trt'" in said:
        return "fiqa-trt is not installed on its node"
    return one_line(RunError(said.strip().splitlines()[-1] if said.strip() else ""))
