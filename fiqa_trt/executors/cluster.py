"""What is asked of a cluster, what its driver and its replicas tell each other, and where they must agree."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping

from fiqa_trt.decoding.registry import libraries
from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.errors import EngineError, UsageError
from fiqa_trt.executors.base import Setup, Units
from fiqa_trt.models.spec import PreprocessSpec
from fiqa_trt.version import __version__

_ALIKE = ("backend", "precision", "executed", "batch", "model", "members")
Engines = Mapping[str, Mapping[str, bytes]]
"""Engine directories by name, and their files by name."""
_DISTRIBUTIONS = ("torch", "tensorrt", "openvino", "numpy", "pyarrow")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Which cluster, and what of it.

    Attributes:
        address: `auto` for the one that RAY_ADDRESS or this node names, `local` to start one here, or HOST:PORT.
        replicas: processes that score; None for as many as there is room for when the run begins.
        gpus: of a replica; None for one, or none where it scores on a CPU.
        cpus: of a replica; None for its share of the node that has fewest.
        memory: of a replica, in GB; None to ask for none.
        threads: of a replica that decode; None for one a CPU.
        shared_filesystem: whether every node sees the same files by the same paths.
        local: a path of an input or the output that is in no object store; empty if there is none.
    """

    address: str
    replicas: int | None = None
    gpus: float | None = None
    cpus: int | None = None
    memory: float | None = None
    threads: int | None = None
    shared_filesystem: bool = False
    local: str = ""

    def __post_init__(self) -> None:
        """Raise UsageError for numbers that cannot be."""
        given = {"--replicas": self.replicas, "--gpus-per-replica": self.gpus, "--cpus-per-replica": self.cpus}
        for name, value in {**given, "--memory-per-replica": self.memory}.items():
            if value is not None and not value > 0 and (name, value) != ("--gpus-per-replica", 0):
                raise UsageError(f"{name} {value:g}: give more than 0")
        if self.memory is not None and not math.isfinite(self.memory):
            raise UsageError(f"--memory-per-replica {self.memory:g}: give a number of GB")
        if self.gpus is not None and self.gpus > 1:
            raise UsageError(f"--gpus-per-replica {self.gpus:g}: a replica uses one GPU, or a part of it")

    def __str__(self) -> str:
        """As it was asked for."""
        return f"the cluster {self.address}"


@dataclasses.dataclass(frozen=True)
class Order:
    """What a replica is to be.

    Attributes:
        setup: how it scores.
        folder: that relative paths count from; empty if no path is a node's own.
        home: the node of the driver; only there may be files of no object store, unless all nodes see the same.
        engines: the one that was asked for, named "", or those that the replica may choose from; of none, its node's.
    """

    setup: Setup
    folder: str
    home: str
    engines: Engines = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Opened:
    """A replica is ready, and what it is; `identity` is the node's in the cluster, `node` its name for a person."""

    info: EngineInfo
    decoder: str
    setup: Setup
    versions: dict[str, str]
    identity: str
    node: str
    said: tuple[str, ...] = ()

    def difference(self, other: Opened) -> str | None:
        """What would make two of them score differently, in words; None if nothing does."""
        for name in _ALIKE:
            here, there = getattr(self.info, name), getattr(other.info, name)
            if here != there:
                return f"{name} is {_plain(here)} on {self.node} and {_plain(there)} on {other.node}"
        if self.decoder != other.decoder:
            return f"the decoder is {self.decoder} on {self.node} and {other.decoder} on {other.node}"
        return difference_of_versions(self.versions, other.versions, self.node, other.node)


@dataclasses.dataclass(frozen=True)
class Given:
    """A replica is to score a unit; if it is to be `careful`, without the images that end a process."""

    units: Units
    number: int
    careful: bool


@dataclasses.dataclass(frozen=True)
class Finished:
    """A replica has written the part of a unit, or another one had."""

    rows: int
    failed: int
    said: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class AtWork:
    """How many replicas are at work, of how many, and images by node, with the seconds since work began."""

    replicas: int
    wanted: int
    images: dict[str, int]
    seconds: float


def _plain(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def versions_here(decoder: str) -> dict[str, str]:
    """What rows depend on besides the engine, and the libraries that are installed."""
    import importlib.metadata  # it takes long, and runs that are of no cluster get here for nothing but their types

    found = {"fiqa-trt": __version__, "python": platform.python_version(), "preprocessing": PreprocessSpec().digest()}
    for name in _DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {**found, "decoding": libraries(decoder)}


def difference_of_versions(here: Mapping[str, str], there: Mapping[str, str], name: str, other: str) -> str | None:
    """The first that differs of what both have, in words; None if they agree."""
    for what in here:
        if what in there and here[what] != there[what]:
            return f"{what} is {here[what]} on {name} and {there[what]} on {other}"
    return None


def refuse_differences(opened: list[Opened], here: Mapping[str, str]) -> None:
    """Raise EngineError if replicas would not all score alike, or not as what this process knows of them."""
    for one in opened:
        ours = difference_of_versions(here, one.versions, "this machine", one.node)
        if ours is not None:
            raise EngineError(f"--cluster: {ours}; install the same on all of them")
        theirs = opened[0].difference(one)
        if theirs is not None:
            raise EngineError(
                f"--cluster: {theirs}, so their scores would differ; give --engine, --precision and --batch-size, or "
                "use like nodes"
            )
