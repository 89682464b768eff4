"""What runs on a node of a cluster: an engine, a decoder and a pipeline, which score units by their numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from fiqa_trt.errors import EngineError, FiqaError, InputError, RunError
from fiqa_trt.executors.base import Units
from fiqa_trt.executors.cluster import Finished, Given, Opened, Order, versions_here
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.storage.registry import is_stored
from fiqa_trt.storage.scratch import scratch

T = TypeVar("T")
_PATIENCE_SECONDS = 120.0
_MOST_SECONDS = 16.0


class Replica:
    """One of them. Its methods return what they would raise, and may be called from several threads."""

    def __init__(self, order: Order) -> None:
        import ray

        self._order, self._name = order, socket.gethostname()
        self._node = ray.get_runtime_context().get_node_id()
        self._said, self._lock = list[str](), threading.Lock()
        self._executor: InProcess | None = None
        self._rows = self._failed = 0

    def opened(self) -> Opened | FiqaError:
        """Open what scores, unless that is done."""
        return _returned(self._opened)

    def _opened(self) -> Opened:
        executor = self._ready()
        versions = versions_here(executor.decoder)
        return Opened(executor.info, executor.decoder, executor.setup, versions, self._node, self._name, self._heard())

    def _ready(self) -> InProcess:
        with self._lock:
            if self._executor is None:
                self._executor = self._open()
            return self._executor

    def _open(self) -> InProcess:
        order = self._order
        if order.folder:
            try:
                os.chdir(order.folder)
            except OSError as exc:
                raise EngineError(
                    f"--shared-filesystem: {order.folder} is not on {self._name}: {exc.strerror}"
                ) from exc
        if not order.engines:
            return InProcess.open(order.setup, self._say)
        with scratch() as there:
            folder = str(there)
            for name, files in order.engines.items():
                (there / name).mkdir(exist_ok=True)
                for file, content in files.items():
                    (there / name / file).write_bytes(content)
            setup = order.setup
            if "" in order.engines:
                setup = dataclasses.replace(setup, engine=folder)
            else:
                os.environ["FIQA_TRT_ENGINES"] = folder  # this process is ours
            # Its user knows neither the folder nor what is in it.
            named = {folder: order.setup.engine} if "" in order.engines else {f"{folder}/": ""}
            ((path, here),) = named.items()
            try:
                return InProcess.open(setup, lambda message: self._say(message.replace(path, here)))
            except EngineError as exc:
                raise type(exc)(str(exc).replace(path, here)) from exc

    def score(self, given: Given) -> Finished | FiqaError:
        """Score a unit and write its part."""
        return _returned(lambda: self._score(given))

    def _score(self, given: Given) -> Finished:
        executor = self._ready()
        task = executor.task(given.units, given.number, careful=given.careful)
        if not self._order.folder and self._node != self._order.home:
            self._refuse_local(task.inputs.column(0).to_pylist())
        (_, rows), *_ = executor.score([task], self._count)
        self._keep(given.units, given.number, rows)
        failed = rows["score"].null_count
        self._count(-rows.num_rows, -failed)
        return Finished(rows.num_rows, failed, self._heard())

    def _refuse_local(self, paths: list[str]) -> None:
        for path in paths:
            if not is_stored(path):
                raise InputError(
                    f"{path} is a file of one machine, and {self._name} is another one: --shared-filesystem says that "
                    "all nodes see the same files"
                )

    def _keep(self, units: Units, number: int, rows: object) -> None:
        """Write a part; a store that refuses for a while is asked again."""
        began, wait = time.monotonic(), 1.0
        while True:
            try:
                return units.keep(number, rows)
            except RunError as exc:
                if time.monotonic() - began > _PATIENCE_SECONDS:
                    raise
                self._say(f"{str(exc).partition(';')[0]}; it is tried again")
            time.sleep(wait)
            wait = min(2 * wait, _MOST_SECONDS)

    def progress(self) -> tuple[int, int]:
        """Rows of units that are not finished, and how many of them failed."""
        return self._rows, self._failed

    def _count(self, rows: int, failed: int) -> None:
        with self._lock:
            self._rows, self._failed = self._rows + rows, self._failed + failed

    def _say(self, message: str) -> None:
        self._said.append(message)

    def _heard(self) -> tuple[str, ...]:
        found, self._said = tuple(dict.fromkeys(self._said)), []
        return found


def _returned(action: Callable[[], T]) -> T | FiqaError:
    try:
        return action()
    except FiqaError as exc:
        with contextlib.suppress(AttributeError):
            exc.__cause__ = exc.__context__ = None  # a library's exception may not be one that can be sent
        return exc
