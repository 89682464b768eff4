"""What scores the units of a run, and how it is asked to."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS
from fiqa_trt.engines.base import EngineInfo
from fiqa_trt.errors import UsageError
from fiqa_trt.fingerprint import FREE
from fiqa_trt.inputs.read_ahead import REQUESTS
from fiqa_trt.progress import Count

if TYPE_CHECKING:
    import pyarrow as pa


@dataclasses.dataclass(frozen=True)
class Setup:
    """How to score.

    Attributes:
        device: see `engines.opening.open_engine`, like the next three.
        precision: auto, fp32, fp16 or int8.
        engine: auto, a backend or an engine directory.
        batch: images per engine call; None for the engine's own choice.
        decoder: `cpu`, `dali`, or `auto`: DALI where the engine runs on a GPU and DALI is there, else the CPU's.
        threads: that decode.
        max_pixels: larger images are refused (`too_large`).
        requests: to object stores, at a time and process.
        cores: that the process may use; none for all of them.
        causes: whether rows tell of causes.
    """

    # Of the first four that counts which they led to: the EngineInfo.
    device: str = dataclasses.field(default="auto", metadata=FREE)
    precision: str = dataclasses.field(default="auto", metadata=FREE)
    engine: str = dataclasses.field(default="auto", metadata=FREE)
    batch: int | None = dataclasses.field(default=None, metadata=FREE)
    decoder: str = "auto"
    threads: int = dataclasses.field(default=2, metadata=FREE)
    max_pixels: int = DEFAULT_MAX_PIXELS
    requests: int = dataclasses.field(default=REQUESTS, metadata=FREE)
    cores: tuple[int, ...] = dataclasses.field(default=(), metadata=FREE)
    causes: bool = False

    def __post_init__(self) -> None:
        """Raise UsageError for a number that cannot be one."""
        for name in ("batch", "threads", "max_pixels", "requests"):
            value = getattr(self, name)
            if not (value is None or (isinstance(value, int) and value > 0)):
                raise UsageError(f"{name}={value!r}: give a whole number from 1 on")


class Units(Protocol):
    """The units of a run, by their numbers. Executors that score elsewhere send it there, so it can be pickled."""

    def pending(self) -> Iterator[int]:
        """Number of each unit that is not finished yet, in order."""
        ...

    def inputs(self, number: int) -> pa.Table:
        """The inputs of a unit, column `path` first."""
        ...

    def keep(self, number: int, rows: pa.Table) -> None:
        """Keep the rows of a unit, which is finished then. Raises RunError if that cannot be."""
        ...

    def deaths(self) -> dict[int, int]:
        """By unit how often it has ended the process that scored it, in this run and those that it goes on with."""
        ...

    def record_deaths(self, deaths: dict[int, int]) -> None:
        """Keep that. Raises RunError if it cannot be."""
        ...


class Alone:
    """An executor of one machine."""

    @property
    def at_work(self) -> str:
        """See `Executor.at_work`."""
        return ""

    @property
    def rates(self) -> Mapping[str, float]:
        """See `Executor.rates`."""
        return {}


class Executor(Protocol):
    """Scores the units of a run.

    Attributes:
        info: of the engine; that of several is the same.
        decoder: its name.
        setup: how it was asked to score, with that decoder.
    """

    info: EngineInfo
    decoder: str
    setup: Setup

    @property
    def at_work(self) -> str:
        """How many replicas of a cluster are at work, for the progress; empty elsewhere."""
        ...

    @property
    def rates(self) -> Mapping[str, float]:
        """Images a second of each node of a cluster; empty elsewhere."""
        ...

    def work(self, units: Units, report: Count) -> None:
        """Score every pending unit and keep its rows.

        Args:
            units: of the run.
            report: called after every batch with its rows and how many of them failed.

        Raises:
            RunError: the work cannot go on; what is finished is kept.
        """
        ...

    def close(self) -> None:
        """Release everything."""
        ...
