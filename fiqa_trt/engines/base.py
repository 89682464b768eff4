"""What an engine is, and the manifest of an engine directory: `engine.json` beside one payload file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from concurrent.futures import Future
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fiqa_trt.errors import EngineError
from fiqa_trt.spec import ModelSpec, PreprocessSpec

Scores = npt.NDArray[np.float32]
MANIFEST = "engine.json"
FORMAT = 1
PRECISIONS = ("fp32", "fp16", "int8")


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
    """

    backend: str
    device: str
    precision: str
    executed: str
    batch: int
    model: str
    members: tuple[str, ...]


class Engine(Protocol):
    """Both networks behind one call."""

    info: EngineInfo
    slots: int
    """How many batches it works on at once."""

    def submit(self, images: npt.NDArray[np.uint8]) -> Future[Scores]:
        """Start scoring a full batch: uint8 RGB [batch, 224, 224, 3] to float32 [batch, members] in [0, 1].

        Returns at once; a batch beyond `slots` waits. `images` must not change until the result is there.
        The future raises RunError if the backend fails.
        """
        ...

    def close(self) -> None:
        """Wait for what is running and release the device."""
        ...


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`engine.json`.

    Attributes:
        model: SHA-256 of the checkpoint that the payload was made from.
        precision: arithmetic that the payload asks for.
        target: `cpu` or a GPU's name.
        payload: file name beside the manifest.
        payload_sha256: of that file.
        agreement: measured against the FP32 reference: `max`, `mean` (absolute), on `images` verification images.
        versions: of the libraries that made it.
        spec: the model's preprocessing and members.
    """

    model: str
    precision: str
    target: str
    payload: str
    payload_sha256: str
    agreement: dict[str, float]
    versions: dict[str, str]
    spec: ModelSpec

    def write(self, folder: Path) -> None:
        """Write `engine.json` into `folder`."""
        (folder / MANIFEST).write_text(json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read and check an engine directory.

        Raises:
            EngineError: not an engine directory, one of another format, or its payload is not what it was.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text())
            if values.pop("format") != FORMAT:
                raise EngineError(f"{folder} was made by another version of fiqa-trt; build it again")
            spec = values.pop("spec")
            preprocess = PreprocessSpec(**spec.pop("preprocess"))
            spec = ModelSpec(**{key: tuple(value) for key, value in spec.items()}, preprocess=preprocess)
            manifest = cls(**values, spec=spec)
            payload = (folder / manifest.payload).read_bytes()
        except FileNotFoundError as exc:
            raise EngineError(f"{folder} is not an engine directory: {Path(exc.filename).name} is missing") from exc
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
            raise EngineError(f"{folder} is not an engine directory: {exc}") from exc
        if hashlib.sha256(payload).hexdigest() != manifest.payload_sha256:
            raise EngineError(f"{folder / manifest.payload} is damaged: it is not the file that {MANIFEST} describes")
        return manifest


def finished(scores: Scores) -> Future[Scores]:
    """A future that already has its result."""
    future: Future[Scores] = Future()
    future.set_result(scores)
    return future
