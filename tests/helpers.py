"""What the tests share: a tiny engine, images, archives, runs and what is in their outputs."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from click.testing import CliRunner, Result
from PIL import Image

from fiqa_trt.cli import group
from fiqa_trt.decoding.base import Images
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.engines.base import Engine, EngineInfo, Judged, finished
from fiqa_trt.engines.cache import Slot
from fiqa_trt.engines.manifest import Manifest, Target, new_engine, this_processor
from fiqa_trt.errors import FiqaError
from fiqa_trt.executors.base import Executor, Setup
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.inputs.containers.registry import kind_of
from fiqa_trt.inputs.marks import OURS
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.models.causes import NONE, Causes
from fiqa_trt.models.spec import MEMBERS, ModelSpec
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.progress import Progress
from fiqa_trt.runs.run import Options, Summary
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import read_output
from fiqa_trt.scores.schema import own_columns
from fiqa_trt.storage.registry import store_of

TOLD = Causes(("blur", "noise", "light", "occlusion"), (0.4, 0.5, 0.6, 0.5))


class MeanEngine:
    """Scores are the crop's mean red and green levels, and blue of a third member: quick, exact, of pixels alone.

    The first cause is the mean of red, every further one a tenth less.
    """

    slots = 1
    place = "cpu"
    kept: Slot | None = None

    def __init__(self, batch: int = 4, members: tuple[str, ...] = MEMBERS, causes: Causes = NONE) -> None:
        self.info = EngineInfo("mean 1", "none", "fp32", "fp32", batch, "0" * 64, members, causes=causes)

    def submit(self, images: Images) -> Future[Judged]:
        assert images.shape == (self.info.batch, 224, 224, 3)
        means = np.asarray(images).mean(axis=(1, 2))
        scores = (means[:, : len(self.info.members)] / 255).astype(np.float32)
        causes = means[:, :1] / 255 * (1 - np.arange(len(self.info.causes)) / 10)
        return finished(scores, causes.astype(np.float32))

    def close(self) -> None:
        pass


def in_process(engine: Engine, threads: int = 2, setup: Setup = Setup()) -> Executor:
    """This process with an engine and the CPU decoder."""
    return InProcess(engine, CpuDecoder(threads=threads), setup)


def mean_executor(batch: int = 4, threads: int = 2, members: tuple[str, ...] = MEMBERS) -> Executor:
    """This process with the engine above."""
    return in_process(MeanEngine(batch, members), threads)


def telling_executor(causes: Causes = TOLD) -> Executor:
    """This process with the engine above, and what it says of causes."""
    return in_process(MeanEngine(causes=causes), setup=Setup(causes=True))


def jpeg(image: Image.Image, **options: object) -> bytes:
    """Bytes of an image as JPEG of quality 90."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **{"quality": 90, **options})
    return buffer.getvalue()


def read_file(path: str) -> bytes:
    """All bytes of a file. Raises ImageError."""
    blob = store_of(path).read(path).blob
    if isinstance(blob, ImageError):
        raise blob
    return blob


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def read_members(suffix: str, data: bytes) -> tuple[list[tuple[str, bytes | Status]], ImageError | None]:
    """Key and bytes, or status, of each member of a container, and what is wrong with it."""
    with tempfile.NamedTemporaryFile(suffix=suffix) as file:
        file.write(data)
        file.flush()
        container = kind_of(file.name).open(file.name, None)
        keys = list(container.keys())
        blobs = container.read_all(keys)
    values = [blob.outcome.status if isinstance(blob, ImageError) else blob for blob in blobs]
    return list(zip(keys, values, strict=True)), container.error


def listed(*inputs: Path, **options: object) -> list[str]:
    source = Source(tuple(str(path) for path in inputs), **options)  # type: ignore[arg-type]
    return [path for batch in list_inputs(source) for path in batch.column(0).to_pylist()]


def scored(tmp_path: Path, *inputs: Path, **options: object) -> list[dict[str, object]]:
    source = Source(tuple(str(path) for path in inputs), **options)  # type: ignore[arg-type]
    output = tmp_path / "s.parquet"
    score_dataset(source, output, mean_executor, Options(unit_rows=4, restart=True))
    return list(pq.read_table(output).to_pylist())


SMALL = Options(unit_rows=4)


def score(folder: Path, output: Path, options: Options = SMALL, **more: object) -> Summary:
    return score_dataset(Source((str(folder),)), output, mean_executor, options, **more)  # type: ignore[arg-type]


def rows(output: Path) -> list[dict[str, object]]:
    return list(pa.concat_tables(read_output(output, own_columns(MEMBERS))).to_pylist())


class Stop(Exception):
    """What a kill is to these tests."""


def stop_after(count: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.done >= count:
            raise Stop

    return report


def spoil(crops: Path) -> None:
    """Failures of several kinds between the good crops."""
    (crops / "a" / "1.jpg").write_bytes(b"")
    (crops / "a" / "3.png").write_bytes(b"no image")
    (crops / "b" / "2.jpg").write_bytes((crops / "b" / "1.jpg").read_bytes()[:700])
    (crops / "b" / "gone.jpg").symlink_to("nowhere")


def tree(folder: Path) -> dict[str, bytes]:
    """Files by name, but for what `filter` itself leaves in a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in OURS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def wanted(crops: Path) -> dict[str, bytes]:
    found = tree(crops)
    return {name: data for name, data in found.items() if data != b"x" and name != "a/0.jpg"}


ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-m", "fiqa_trt"]


def call(*arguments: str | Path | bytes, code: int = 0, **options: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=600, check=False, **{"cwd": ROOT, **options}
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


PAYLOAD = b"an engine"
MODEL = "a" * 64


def manifest(precision: str = "fp16", rate: float = 100.0, **changes: object) -> Manifest:
    made = Manifest(
        model=MODEL,
        backend="openvino",
        precision=precision,
        executed="bf16",
        target=Target("cpu", this_processor(), ("BF16",)),
        batch=(1, 8, 32),
        payload="network.zip",
        payload_sha256=hashlib.sha256(PAYLOAD).hexdigest(),
        agreement={"max": 0.001},
        throughput=rate,
        seconds=1.5,
        versions={"openvino": "1"},
        spec=ModelSpec(),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def put(folder: Path, made: Manifest, payload: bytes = PAYLOAD) -> Path:
    with new_engine(folder) as draft:
        draft.write(made, payload)
    return folder


Row = dict[str, Any]


def row(path: str, score: float | None, other: float | None = None, **more: object) -> Row:
    other = score if other is None else other
    mean = None if score is None or other is None else (score + other) / 2
    return {
        "path": path, "score": mean, "score_mobilenet_v3_small": score, "score_shufflenet_v2_x1_0": other,
        "width": 1, "height": 1, "status": "corrupt" if score is None else "ok", "error": None, **more,
    }  # fmt: skip


def write(path: Path, rows: list[Row], group_rows: int = 1000) -> Path:
    kinds = {name: pa.string() for name in ("path", "status", "error", "person")}
    kinds |= {name: pa.int32() for name in ("width", "height")}
    names = list(rows[0])
    table = pa.table({n: pa.array([r[n] for r in rows], kinds.get(n, pa.float32())) for n in names})
    pq.write_table(table, path, row_group_size=group_rows)
    return path


def only(scores: Path, *names: str) -> Any:
    return np.array([path.endswith(names) for path in pq.read_table(scores)["path"].to_pylist()])


def invoke(*arguments: str | Path) -> Result:
    result = CliRunner().invoke(group, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, (SystemExit, FiqaError)):
        raise result.exception
    return result


def call_filter(*arguments: object, code: int = 0) -> str:
    done = CliRunner().invoke(group, ["filter", *map(str, arguments)])
    assert done.exit_code == code, done.output
    return str(done.exception) if isinstance(done.exception, FiqaError) else done.output
