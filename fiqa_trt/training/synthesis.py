"""A training set from clean faces: crops, degraded and labelled, as image files and a table.

The label of a crop is the product of three things, each in (0, 1]:

- what is left of it after the degradations: full-reference metrics against the undamaged crop (`labels.py`);
- how good the undamaged crop was: a first-round model's opinion of it and of its mirror image, and the `quality` that
  the input table may give;
- how much of the face the crop shows.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.cpu import decode_image, fit
from fiqa_trt.errors import InputError, RunError, already_there, storage_error
from fiqa_trt.fingerprint import FREE, Fingerprint, counted
from fiqa_trt.inputs.address import DEFAULT_COLUMN
from fiqa_trt.inputs.reader import ContainerReader, read_recorded
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.models.networks import Ensemble
from fiqa_trt.models.spec import ModelSpec, digest
from fiqa_trt.outcomes import ImageError
from fiqa_trt.progress import Progress, Report, Say, silent
from fiqa_trt.storage.record import Record
from fiqa_trt.storage.writing import atomic
from fiqa_trt.training.degradations import FAMILIES, Image, apply_chain, draw_chain
from fiqa_trt.training.labels import METRICS, equalise, full_reference
from fiqa_trt.version import __version__

TABLE = "labels.csv"
PARTS = "parts"
BAD_CROP = "bad_crop"
CHUNK = 16
_BAD_CROPS = 0.07
_HIDDEN = 0.75
_BORDERS = ("constant", "edge", "reflect")


@dataclasses.dataclass(frozen=True)
class Face:
    """A clean photograph of a face.

    Attributes:
        path: as the input listed it.
        group: person or photographer; no group stands on both sides of a split. Where none is given, it is the
            photograph itself.
        split: `train`, `val` or `test`, or empty where the table does not say: `train` draws it.
        quality: of the undamaged photograph in (0, 1], as far as something outside the pixels' fidelity tells (pose).
        box: left, top, width, height of the face in pixels; None if the photograph is itself a crop.
    """

    path: str
    group: str = ""
    split: str = ""
    quality: float = 1.0
    box: tuple[float, float, float, float] | None = None


_GROUP = "group"
_FACE_COLUMNS = ("path", "split", "quality", "face_x", "face_y", "face_w", "face_h")


def read_faces(source: Source, say: Say = silent, group_column: str | None = None) -> list[Face]:
    """Faces of a folder, or of a list with the optional columns `group`, `split`, `quality` and `face_x`, `face_y`,
    `face_w`, `face_h`.

    Args:
        source: what to list.
        say: receives lines for the user.
        group_column: what the list calls the column `group`.

    Raises:
        InputError: as `list_inputs`; a list without the column that was named; a `quality` or a box that is not what it
            should be.
    """
    faces, named = list[Face](), group_column or _GROUP
    for number, batch in enumerate(list_inputs(source, say)):
        names = batch.schema.names
        if not number and named not in names:
            if group_column:
                only = ", ".join(names)
                raise InputError(f"--group-column {group_column}: {source.list_file} has no such column, only: {only}")
            if source.list_file and len(names) > 1:
                say("no column `group` (--group-column names another): each image counts as a person of its own")
        for row in batch.select([name for name in names if name in {*_FACE_COLUMNS, named}]).to_pylist():
            try:
                box = tuple(float(row[f"face_{side}"]) for side in "xywh") if row.get("face_w") else None
                quality = float(row.get("quality") or 1)
            except (KeyError, TypeError, ValueError) as exc:
                raise InputError(f"{row['path']}: its face box or quality is not a number ({exc})") from exc
            if not 0 < quality <= 1 or (box and min(box[2:]) <= 0):
                raise InputError(f"{row['path']}: quality must be in (0, 1] and a face box have a size")
            group, split = ("" if row.get(name) is None else str(row[name]) for name in (named, "split"))
            faces.append(Face(row["path"], group or row["path"], split, quality, box))  # type: ignore[arg-type]
    return faces


def cut(photo: Image, face: Face, hidden: float, rng: np.random.Generator, size: int) -> Image:
    """A square crop, 1.1 to 2 times the face and slightly off its centre, half of the time mirrored.

    Args:
        photo: uint8 RGB [H, W, 3].
        face: where the face is.
        hidden: share of the face's box that is moved out of the crop, 0 to 1; at 0 the crop stays within the photo.
        rng: of everything random.
        size: side of the crop in pixels; the result is uint8 [size, size, 3].
    """
    from PIL import Image as Pillow

    height, width = photo.shape[:2]
    x, y, w, h = face.box or (0.0, 0.0, float(width), float(height))
    side = min(max(w, h) * (rng.uniform(1.1, 2.0) if face.box else rng.uniform(0.9, 1)), width, height)
    left, top = (start + length / 2 + rng.uniform(-0.06, 0.06) * side - side / 2 for start, length in ((x, w), (y, h)))
    left, top = min(max(left, 0), width - side), min(max(top, 0), height - side)
    border, edge = _BORDERS[rng.integers(len(_BORDERS))], rng.integers(4)
    if hidden:
        # Over one of the four edges, until only the wanted share of the face's box is inside.
        if edge < 2:
            left = x + hidden * w if edge == 0 else x + (1 - hidden) * w - side
        else:
            top = y + hidden * h if edge == 2 else y + (1 - hidden) * h - side
        margin = int(np.ceil(max(0, -left, -top, left + side - width, top + side - height)))
        photo = np.pad(photo, ((margin, margin), (margin, margin), (0, 0)), border)  # type: ignore[call-overload]
        left, top = left + margin, top + margin
    crop = Pillow.fromarray(photo).resize(
        (size, size), Pillow.Resampling.BILINEAR, box=(left, top, left + side, top + side)
    )
    pixels = np.asarray(crop)
    return pixels[:, ::-1].copy() if rng.random() < 0.5 else pixels


@dataclasses.dataclass(frozen=True)
class _Job:
    """Photographs to make a chunk of crops of, and what decides the result."""

    faces: list[tuple[int, Face]] = dataclasses.field(metadata=FREE)  # a part of those that count
    out: Path = dataclasses.field(metadata=FREE)
    per_face: int
    seed: int
    reference: Path | None
    size: int

    @property
    def part(self) -> Path:
        """Where the result is kept until all are there."""
        return self.out / PARTS / f"{self.faces[0][0]:07d}.json"


@dataclasses.dataclass(frozen=True)
class _Made:
    """Rows of the table without their scores, and photographs that could not be used."""

    rows: list[dict[str, object]]
    failed: list[str]


def _make(job: _Job) -> _Made:
    if not job.part.exists():
        partial = job.part.with_suffix(".tmp")
        partial.write_text(json.dumps(dataclasses.asdict(_render(job))))
        partial.replace(job.part)
    return _Made(**json.loads(job.part.read_text()))


def _render(job: _Job) -> _Made:
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    clean, degraded, rows, failed = list[Image](), list[Image](), list[dict[str, object]](), list[str]()
    reader = ContainerReader()
    for index, face in job.faces:
        try:
            blob = read_recorded(face.path, reader)
            if isinstance(blob, ImageError):
                raise blob
            photo = np.asarray(decode_image(blob))
        except (ImageError, OSError) as exc:
            failed.append(f"{face.path}: {exc}")
            continue
        for copy in range(job.per_face):
            rng = np.random.default_rng([job.seed, index, copy])
            severity = float(max(rng.random(), 0.01)) if rng.random() < _BAD_CROPS else 0.0
            crop, chain = cut(photo, face, _HIDDEN * severity, rng, job.size), draw_chain(rng)
            clean.append(crop)
            degraded.append(apply_chain(crop, chain, rng))
            name = f"{index // 1000:04d}/{index:07d}_{copy}.png"
            (job.out / name).parent.mkdir(exist_ok=True)
            if not cv2.imwrite(str(job.out / name), degraded[-1][..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1]):
                raise OSError(f"cannot write {job.out / name}")
            levels = dict.fromkeys((BAD_CROP, *FAMILIES), 0.0) | {BAD_CROP: severity}
            for family, level in chain:
                levels[family] = max(levels[family], level)
            row: dict[str, object] = {"path": name, "group": face.group, "split": face.split, "source": face.path}
            row["chain"] = json.dumps([[family, round(level, 3)] for family, level in chain])
            row |= {"quality": face.quality, "visible": 1 - _HIDDEN * severity}
            rows.append(row | {family: round(level, 3) for family, level in levels.items()})
    if rows:
        values = full_reference(_at_input_size(degraded), _at_input_size(clean))
        opinions = _opinions(job.reference, _at_input_size(clean))
        for row, metrics, opinion in zip(rows, values, opinions, strict=True):
            row |= {name: round(float(value), 6) for name, value in zip(METRICS, metrics, strict=True)}
            row["reference"] = round(float(opinion), 5)
    return _Made(rows, failed)


def _at_input_size(images: list[Image]) -> list[Image]:
    from PIL import Image as Pillow

    size = ModelSpec().preprocess.size
    return [fit(Pillow.fromarray(image), size) for image in images]


def _opinions(checkpoint: Path | None, images: list[Image]) -> npt.NDArray[np.float32]:
    if checkpoint is None:
        return np.ones(len(images), np.float32)
    import torch

    crops = torch.from_numpy(np.stack(images))
    with torch.inference_mode():
        # A crop and its mirror image are equally good; the mean of the two is the steadier opinion.
        scores = torch.stack([_network(checkpoint)(side)[0].mean(dim=1) for side in (crops, crops.flip(2))]).mean(dim=0)
    return np.asarray(scores.numpy(), np.float32)


@functools.lru_cache(1)
def _network(checkpoint: Path) -> Ensemble:
    from fiqa_trt.engines.torch import load_checkpoint

    return load_checkpoint(checkpoint).eval()


@dataclasses.dataclass(frozen=True)
class Synthesized:
    """What a synthesis gave.

    Attributes:
        table: the labels.
        crops: its rows.
        failed: a line for each photograph that could not be used, with its reason.
    """

    table: str
    crops: int
    failed: list[str]


def synthesize(
    faces: list[Face],
    out: Path,
    per_face: int,
    seed: int = 0,
    reference: Path | None = None,
    workers: int = 2,
    size: int = ModelSpec().preprocess.size,
    restart: bool = False,
    report: Report = silent,
) -> Synthesized:
    """Write `per_face` degraded crops of each face below `out`, and `labels.csv` with a row for each.

    The same arguments give the same files, whatever the number of workers. A call that was killed is continued by the
    next one.

    Args:
        faces: of `read_faces`.
        out: a folder, made if need be.
        per_face: crops of each face.
        seed: of everything random.
        reference: a checkpoint whose scores of the undamaged crops, relative to the best twentieth, become part of the
            labels; without one every undamaged crop counts as perfect.
        workers: processes.
        size: side of the crops in pixels; labels are computed at 224 px whatever it is.
        restart: forget what is in `out`.
        report: receives the number of photographs done.

    Raises:
        InputError: not one photograph could be decoded.
        DifferentRun: `out` holds the work of another call, or a finished one.
        RunError: the disk is full or fails.
    """
    numbered = list(enumerate(faces))
    chunk = max(1, CHUNK // per_face)
    every = _Job(numbered, out, per_face, seed, reference, size)
    jobs = [dataclasses.replace(every, faces=numbered[at : at + chunk]) for at in range(0, len(faces), chunk)]
    rows, failed, done = list[dict[str, object]](), list[str](), 0
    try:
        _begin(out, _fingerprint(every), restart)
        before = sum(len(job.faces) for job in jobs if job.part.exists())
        with _processes(workers) as pool:
            for job, made in zip(jobs, pool.map(_make, jobs), strict=True):
                rows += made.rows
                failed += made.failed
                done += len(job.faces)
                report(Progress(done, len(faces), len(failed), before))
        if not rows:
            raise InputError(f"none of the {len(faces)} photographs can be read; the first: {failed[0]}")
        _score(rows)
        _write_table(out / TABLE, rows)
        shutil.rmtree(out / PARTS)
    except BrokenProcessPool as exc:
        raise RunError("a worker process was killed (no memory?); run the same command again to resume") from exc
    except OSError as exc:
        raise storage_error(out, exc) from exc
    return Synthesized(str(out / TABLE), len(rows), failed)


def _write_table(path: Path, rows: list[dict[str, object]]) -> None:
    with atomic(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


@contextlib.contextmanager
def _processes(count: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that are killed when the block fails: what they have finished is kept."""
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _ignore_interrupts) as pool:
        try:
            yield pool
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
            raise


def _ignore_interrupts() -> None:
    """Ctrl-C is the parent's to handle; it ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _fingerprint(job: _Job) -> Fingerprint:
    """What all the crops depend on."""
    return {
        "version": __version__,
        "faces": digest([dataclasses.astuple(face) for _, face in job.faces]),
        **counted(job),
        "reference": None if job.reference is None else hashlib.sha256(job.reference.read_bytes()).hexdigest(),
        "image_column": DEFAULT_COLUMN,  # as versions noted where paths did not name a column; now the faces have it
    }


def _begin(out: Path, fingerprint: Fingerprint, restart: bool) -> None:
    """Take over the folder, or go on with what the same call left there."""
    parts, table = out / PARTS, out / TABLE
    record = Record(parts / "run.json")
    if not restart:
        if record.continues(out, fingerprint):
            return
        if table.exists():
            raise already_there(table, "makes it anew")
    shutil.rmtree(parts, ignore_errors=True)
    table.unlink(missing_ok=True)
    parts.mkdir(parents=True, exist_ok=True)
    record.write(fingerprint)


def _score(rows: list[dict[str, object]]) -> None:
    """Add the `score` of every row; those to validate and to test with are ranked among the others."""

    def column(name: str) -> npt.NDArray[np.float64]:
        return np.array([row[name] for row in rows], np.float64)

    metrics = np.stack([column(name) for name in METRICS], axis=1)
    pool = np.array([row["split"] in ("", "train") for row in rows])
    pool = pool if pool.any() else ~pool
    opinions = column("reference")
    clean = np.minimum(opinions / np.quantile(opinions[pool], 0.95), 1) * column("quality")
    scores = equalise(metrics, metrics[pool]) * clean * column("visible")
    for row, score in zip(rows, scores, strict=True):
        row["score"] = round(float(score), 5)
