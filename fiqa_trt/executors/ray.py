"""The replicas of a Ray cluster, which score units wherever they are.

Ray lives in a process of its own (`ray_driver`), so that this one prints what we print, keeps its environment, and
outlives whatever the cluster does to those that are connected to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import multiprocessing
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from fiqa_trt.engines.manifest import MANIFEST, Manifest
from fiqa_trt.engines.registry import names
from fiqa_trt.engines.store import store
from fiqa_trt.errors import EngineError, FiqaError, RunError
from fiqa_trt.executors.base import Setup, Units
from fiqa_trt.executors.cluster import AtWork, Cluster, Finished, Opened
from fiqa_trt.executors.ray_driver import Connected, Done, Told, Work, serve
from fiqa_trt.progress import Count, Say, silent
from fiqa_trt.storage.scratch import Scratch

_CONNECTING_SECONDS = 10.0
_STARTING_SECONDS = 60.0
_CLOSING_SECONDS = 10.0


def opened(where: Cluster, setup: Setup, say: Say) -> OnRay:
    """The replicas of a cluster. Raises EngineError."""
    if importlib.util.find_spec("ray") is None:
        raise EngineError("--cluster needs Ray: pip install 'fiqa-trt[ray]'")
    if where.address.startswith("ray://"):
        raise EngineError(
            f"--cluster {where.address}: Ray Client ends a run whose connection is away for half a minute; give the "
            "command on a node of the cluster (--cluster auto) or with ray job submit"
        )
    if where.address == "auto" and os.environ.get("RAY_ADDRESS") == "local":
        where = dataclasses.replace(where, address="local")
    return OnRay(where, setup, say)


class OnRay:
    """Replicas of a cluster."""

    def __init__(self, where: Cluster, setup: Setup, say: Say = silent) -> None:
        """Connect, start replicas and wait for the first of them. Raises EngineError and RunError."""
        self._where, self._say, self._said = where, say, set[str]()
        self._at_work: AtWork | None = None
        self._connected = False
        engines = _engines(setup.engine)
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._scratch = Scratch() if where.address == "local" else None
        arguments = (where, setup, engines, str(self._scratch.path) if self._scratch else "", theirs)
        self._process = context.Process(target=serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        try:
            self._await(Connected, _STARTING_SECONDS)  # Ray is imported
            local = where.address == "local"
            self._await(Connected, _STARTING_SECONDS if local else _CONNECTING_SECONDS)
            self._connected = True
            first = self._await(Opened, None)
        except BaseException:
            self.close()
            raise
        assert isinstance(first, Opened)
        self.info, self.decoder, self.setup = first.info, first.decoder, first.setup

    def _await(self, kind: type, seconds: float | None) -> object:
        """The next message of a kind; those that come before are heard."""
        while True:
            if not self._connection.poll(seconds):
                raise EngineError(
                    f"--cluster {self._where.address}: no answer for {seconds:.0f} s; is it a Ray cluster's head?"
                )
            message = self._received()
            if isinstance(message, kind):
                return message

    def _received(self) -> object:
        """The next message, if it is not for the user. Raises what the driver has raised."""
        try:
            message = self._connection.recv()
        except (EOFError, ConnectionError) as exc:
            raise RunError(f"the connection to {self._where} is gone; run the same command again to resume") from exc
        if isinstance(message, FiqaError):
            raise message
        if isinstance(message, Told) and message.message not in self._said:
            self._said.add(message.message)
            self._say(message.message)
        if isinstance(message, AtWork):
            self._at_work = message
        return message

    @property
    def at_work(self) -> str:
        """How many replicas are, for the progress."""
        found = self._at_work
        return "" if found is None else f"{found.replicas}/{found.wanted} replicas"

    @property
    def rates(self) -> Mapping[str, float]:
        """Images a second of each node."""
        found = self._at_work
        if found is None or not found.seconds:
            return MappingProxyType({})
        return {node: images / found.seconds for node, images in sorted(found.images.items())}

    def work(self, units: Units, report: Count) -> None:
        """See `Executor.work`."""
        try:
            self._connection.send(Work(units))
        except OSError as exc:
            raise RunError(f"the connection to {self._where} is gone; run the same command again to resume") from exc
        while True:
            message = self._received()
            if isinstance(message, Finished):
                report(message.rows, message.failed)
            elif isinstance(message, Done):
                return

    def close(self) -> None:
        """See `Executor.close`."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        if self._connected:  # what hangs on its way to a cluster hears nothing
            self._process.join(_CLOSING_SECONDS)
        self._process.kill()
        self._process.join()
        self._connection.close()
        if self._scratch is not None:
            self._scratch.remove()


def _engines(engine: str) -> dict[str, dict[str, bytes]]:
    """What nodes are sent: the files of the engine directory that was asked for, under "", or of those that were built
    here, by the names of their directories. Raises EngineError.
    """
    if engine in ("auto", *names()):
        here = store()
        return {path.parent.name: _files_of(path.parent) for path in here.glob(f"[!.]*/{MANIFEST}")}
    try:
        if Path(engine).is_dir():
            Manifest.read(Path(engine))  # what is no engine is not sent, however large
        return {"": _files_of(Path(engine))}
    except OSError as exc:
        known = f"auto, {', '.join(names())}"
        raise EngineError(f"--engine {engine}: {exc.strerror}; it is {known} or an engine directory") from exc


def _files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
