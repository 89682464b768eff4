"""What an engine is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.base import Images
from fiqa_trt.engines.cache import Slot
from fiqa_trt.fingerprint import FREE
from fiqa_trt.models.causes import NONE, Causes
from fiqa_trt.progress import Say, silent

Scores = npt.NDArray[np.float32]
PRECISIONS = ("fp32", "fp16", "int8")


class Judged(NamedTuple):
    """What an engine says of N images.

    Attributes:
        scores: float32 [N, members] in [0, 1].
        causes: float32 [N, causes] in [0, 1], the severity of each; of an engine that tells of none, [N, 0].
    """

    scores: Scores
    causes: Scores

    @classmethod
    def of(cls, outputs: Sequence[Any]) -> Judged:
        """From the outputs of a network, arrays that are copied: the scores and, where it has such, the causes."""
        scores, *rest = (np.array(each, np.float32) for each in outputs)
        return cls(scores, rest[0] if rest else np.zeros((len(scores), 0), np.float32))


@dataclasses.dataclass(frozen=True)
class Wanted:
    """How an engine is to be opened; each backend takes what it leaves a choice of.

    Attributes:
        device: cpu, cuda or cuda:i.
        precision: auto, fp32, fp16 or int8.
        batch: images per call; None for the engine's own choice.
        say: receives one line for each decision that the user should know of.
    """

    device: str
    precision: str = "auto"
    batch: int | None = None
    say: Say = silent


@dataclasses.dataclass(frozen=True)
class EngineInfo:
    """What a running engine is; recorded in every output.

    Attributes:
        backend: library and version.
        device: processor or GPU by name.
        precision: as asked for: fp32, fp16 or int8.
        executed: the arithmetic that the backend really uses (`bf16` counts as fp16 on a CPU).
        batch: images per call; results do not depend on an image's place in it.
        model: SHA-256 of the checkpoint.
        members: names of the members, in the order of the scores' columns.
        payload: SHA-256 of the engine's payload; empty if it runs straight from a checkpoint.
        causes: that it tells of, in the order of their columns, and from where on each is named.
    """

    backend: str
    device: str = dataclasses.field(metadata=FREE)  # likes of one precision score alike
    precision: str
    executed: str
    batch: int = dataclasses.field(metadata=FREE)
    model: str
    members: tuple[str, ...]
    payload: str = ""
    causes: Causes = dataclasses.field(default=NONE, metadata=FREE)  # the model's

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each output of the network."""
        return (len(self.members), *([len(self.causes)] if self.causes else []))


class Engine(Protocol):
    """Both networks behind one call."""

    info: EngineInfo
    place: str
    """Where it takes its images without a detour: `cpu`, `cuda` or `cuda:i`."""
    slots: int
    """How many batches it works on at once."""
    kept: Slot | None
    """Where what it was loaded from is kept; None if it was made anew."""

    def submit(self, images: Images) -> Future[Judged]:
        """Start scoring a full batch: uint8 RGB [batch, 224, 224, 3].

        Returns at once; a batch beyond `slots` waits. `images` must not change until the result is there.
        The future raises RunError if the backend fails.
        """
        ...

    def close(self) -> None:
        """Wait for what is running and release the device."""
        ...


def finished(*outputs: Scores) -> Future[Judged]:
    """A future that already has its result: scores, and causes if there are such."""
    future: Future[Judged] = Future()
    future.set_result(Judged.of(outputs))
    return future
