"""An engine directory: `engine.json` beside one payload file. Read, checked against the machine, written atomically."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fiqa_trt.engines.base import EngineInfo, Judged
from fiqa_trt.engines.registry import BACKENDS
from fiqa_trt.errors import EngineError, one_line, storage_error
from fiqa_trt.models.causes import Causes
from fiqa_trt.models.spec import ModelSpec, PreprocessSpec
from fiqa_trt.storage.scratch import Scratch
from fiqa_trt.storage.writing import sync_file

MANIFEST = "engine.json"
_AGAIN = "build it again (fiqa-trt build)"
FORMAT = 2


@dataclasses.dataclass(frozen=True)
class Target:
    """What an engine was made for and measured on.

    Attributes:
        kind: `cpu` or `cuda`.
        name: of the processor or GPU; empty if the payload is the same for all.
        features: what its code may rely on: a processor's arithmetic (`BF16`, `INT8`), a GPU's `sm_90`.
    """

    kind: str
    name: str = ""
    features: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Manifest:
    """`engine.json`.

    Attributes:
        model: SHA-256 of the checkpoint that the payload was made from.
        backend: what runs it: `onnx` (any ONNX runtime; here OpenVINO) or one of `registry.names`.
        precision: fp32, fp16 or int8.
        executed: the arithmetic that was really used where it was built.
        target: where that was; of an engine that was built for a GPU elsewhere, what it was built for.
        batch: smallest, quickest and largest number of images of a call.
        payload: file name beside the manifest.
        payload_sha256: of that file.
        agreement: measured against the FP32 reference; see `fiqa_trt.models.verification.Fidelity`.
        throughput: images per second with the quickest batch, measured when it was built; 0 if it was not.
        seconds: that the build took.
        versions: of the libraries that made it.
        spec: the model's preprocessing and members.
        reference: member scores of the verification batch, which every start is checked against: by PyTorch in FP32 for
            an `onnx` payload and for an engine that was not verified when it was built, else by the engine itself when
            it was built; empty if an earlier version built it.
        severities: likewise of the causes; empty for a network that tells of none.
        gain: how many times as quick as what is used where nothing was built, both timed in turn; 0 if unknown.
        verified: whether it was compared with FP32 before it was written. Where it could not be, as it is for a GPU
            elsewhere, it is compared when it is opened on a GPU for the first time.
        verified_on: the GPU that this was then done on.
        version_compatible: whether later versions of TensorRT, and its lean runtime, can load it.
    """

    model: str
    backend: str
    precision: str
    executed: str
    target: Target
    batch: tuple[int, int, int]
    payload: str
    payload_sha256: str
    agreement: dict[str, float]
    throughput: float
    seconds: float
    versions: dict[str, str]
    spec: ModelSpec
    reference: tuple[tuple[float, ...], ...] = ()
    gain: float = 0.0
    verified: bool = True
    verified_on: str = ""
    version_compatible: bool = False
    severities: tuple[tuple[float, ...], ...] = ()

    @property
    def known(self) -> Judged:
        """What it records of the verification batch."""
        causes = np.array(self.severities, np.float32).reshape(len(self.reference), len(self.spec.causes))
        return Judged(np.array(self.reference, np.float32), causes)

    def info(self, backend: str, device: str, batch: int) -> EngineInfo:
        """What its engine is when it runs as it was built.

        Args:
            backend: library and version.
            device: by name.
            batch: images per call.
        """
        return EngineInfo(
            backend=backend,
            device=device,
            precision=self.precision,
            executed=self.executed,
            batch=batch,
            model=self.model,
            members=self.spec.members,
            payload=self.payload_sha256,
            causes=self.spec.causes,
        )

    def dump(self) -> str:
        """As JSON."""
        values = {"format": FORMAT, **dataclasses.asdict(self)}
        if self.spec.causes:
            values["spec"]["causes"] = self.spec.causes.named()
        else:  # then earlier versions know all that there is
            del values["spec"]["causes"], values["severities"]
        return json.dumps(values, indent=1) + "\n"

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read `engine.json` and check what it says of itself; the payload is not looked at (see `read_payload`).

        Raises:
            EngineError: not an engine directory, or one of another format.
        """
        try:
            values = json.loads((folder / MANIFEST).read_text())
            if values.pop("format") != FORMAT:
                raise EngineError(f"{folder} was made by another version of fiqa-trt; build it again")
            spec, target = values.pop("spec"), values.pop("target")
            preprocess, causes = PreprocessSpec(**spec.pop("preprocess")), Causes.by_name(spec.pop("causes", {}))
            spec = ModelSpec(**{key: tuple(value) for key, value in spec.items()}, preprocess=preprocess, causes=causes)
            target = Target(target["kind"], target["name"], tuple(target["features"]))
            low, best, high = values.pop("batch")
            tables = {"reference": values["reference"], "severities": values.get("severities", ())}
            values |= {name: tuple(tuple(map(float, row)) for row in rows) for name, rows in tables.items()}
            manifest = cls(**values, spec=spec, target=target, batch=(low, best, high))
            if manifest.backend not in BACKENDS or Path(manifest.payload).name != manifest.payload:
                raise ValueError(f"backend {manifest.backend!r}, payload {manifest.payload!r}")
            manifest.check_types()
        except FileNotFoundError as exc:
            raise EngineError(f"{folder} is not an engine directory: {MANIFEST} is missing") from exc
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as exc:
            reason = f"it lacks {exc}" if isinstance(exc, KeyError) else one_line(exc)
            raise EngineError(
                f"{folder} is not an engine directory: {MANIFEST} is damaged ({reason}); {_AGAIN}"
            ) from exc
        return manifest

    def check_types(self) -> None:
        """Raise ValueError for a value that cannot be what it stands for: somebody has edited the file."""
        kinds: dict[str, tuple[type, ...]] = {"str": (str,), "float": (int, float), "bool": (bool,)}
        for field in dataclasses.fields(self):  # whose types are strings
            value = getattr(self, field.name)
            if not isinstance(value, kinds.get(str(field.type), (object,))):
                raise ValueError(f"{field.name} is {value!r}")
        low, best, high = self.batch
        if not (all(isinstance(size, int) for size in self.batch) and 0 < low <= best <= high):
            raise ValueError(f"batch is {list(self.batch)}")
        if not all(isinstance(text, str) for text in (self.target.kind, self.target.name, *self.target.features)):
            raise ValueError(f"target is {self.target}")
        if any(len(row) != len(self.spec.members) for row in self.reference):
            raise ValueError("reference has not a score for each member")
        rows = len(self.reference) if self.spec.causes else 0
        if len(self.severities) != rows or any(len(row) != len(self.spec.causes) for row in self.severities):
            raise ValueError("severities has not a number for each image and cause")

    def read_payload(self, folder: Path) -> bytes:
        """The payload's bytes.

        Raises:
            EngineError: it is missing or not what it was.
        """
        path = folder / self.payload
        try:
            payload = path.read_bytes()
        except OSError as exc:
            reason = "is missing" if isinstance(exc, FileNotFoundError) else f"cannot be read: {exc.strerror}"
            raise EngineError(f"{folder} is not an engine directory: {self.payload} {reason}; {_AGAIN}") from exc
        if hashlib.sha256(payload).hexdigest() != self.payload_sha256:
            raise EngineError(f"{path} is damaged: it is not the file that {MANIFEST} describes; {_AGAIN}")
        return payload


class Draft:
    """An engine directory in the making, out of sight."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, manifest: Manifest, payload: bytes) -> None:
        """Put both files there and on the disk; may be repeated. Raises RunError if the disk is full or fails."""
        try:
            for name, content in ((manifest.payload, payload), (MANIFEST, manifest.dump().encode())):
                (self.folder / name).write_bytes(content)
                sync_file(self.folder / name)
        except OSError as exc:
            raise storage_error(self.folder, exc) from exc


@contextlib.contextmanager
def new_engine(folder: Path) -> Iterator[Draft]:
    """A draft that becomes `folder` when the block ends well, and vanishes when it does not.

    Of two builds of the same engine the last to finish wins.

    Raises:
        EngineError: `folder` holds something else than an engine.
        RunError: the disk is full or fails.
    """
    _refuse_foreign(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Scratch(folder.parent, f".{folder.name}.draft-")
    except OSError as exc:
        raise storage_error(folder, exc) from exc
    try:
        yield Draft(draft.path)
        try:
            draft.path.chmod(0o755)
            _replace(draft.path, folder)
        except OSError as exc:
            raise storage_error(folder, exc) from exc
    finally:
        draft.remove()


def _refuse_foreign(folder: Path) -> None:
    """An engine is `engine.json`, at most one file more, whatever they hold (a damaged one can be built again), and
    what GPUs have compiled for it (see `cache.Slot`).
    """
    try:
        names = [path.name for path in folder.iterdir() if path.suffix != ".blob"]
    except FileNotFoundError:
        return
    except OSError as exc:
        raise EngineError(f"{folder} cannot be replaced by an engine: {exc.strerror}; choose another -o") from exc
    if names and (MANIFEST not in names or len(names) > 2):
        raise EngineError(f"{folder} exists and is not just an engine; choose another -o")


def _replace(new: Path, folder: Path) -> None:
    """Put `new` in the place of `folder`. A directory cannot be replaced in one step, so the old one steps aside."""
    while True:
        try:
            new.rename(folder)
            return
        except OSError as exc:
            # That it was there may no longer be so: another build moves it aside for a moment.
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST) and not folder.exists():
                raise
        aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            with contextlib.suppress(FileNotFoundError):  # another build was quicker
                folder.rename(aside / "old")
            new.rename(folder)
            return
        except OSError as exc:
            if exc.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                if not folder.exists() and (aside / "old").exists():
                    (aside / "old").rename(folder)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def digest_of(checkpoint: Path) -> str:
    """SHA-256 of a checkpoint, by which engines know it. Raises EngineError if it cannot be read."""
    try:
        return hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    except OSError as exc:
        raise EngineError(f"cannot read {checkpoint}: {exc.strerror}") from exc


def processor_description() -> str:
    """What Linux says of the processors; empty elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def this_processor() -> str:
    """The processor by name."""
    lines = processor_description().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
