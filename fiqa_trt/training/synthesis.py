"""A training set from clean faces: crops, degraded and labelled, as image files and a table.

The label of a crop is the product of four things, each in (0, 1]:

- what is left of it after the degradations: full-reference metrics against the undamaged crop (`labels.py`);
- how good the undamaged crop was: a first-round model's opinion of it and of its mirror image, and the `quality` that
  the input table may give;
- how much of the face the crop shows;
- how much of the eyes, the nose, the mouth and the rest of it nothing covers.

Beside it stands, for each cause, how severe the damage that it names is; empty where it cannot be told (`damage.py`).
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import math
import multiprocessing
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.cpu import decode_image, fit
from fiqa_trt.errors import InputError, RunError, already_there, storage_error
from fiqa_trt.fingerprint import FREE, Fingerprint, counted
from fiqa_trt.inputs.address import DEFAULT_COLUMN
from fiqa_trt.inputs.reader import ContainerReader, read_recorded
from fiqa_trt.inputs.source import Source, list_inputs
from fiqa_trt.inputs.whole_tables import is_empty
from fiqa_trt.models.networks import Ensemble
from fiqa_trt.models.spec import ModelSpec, digest
from fiqa_trt.outcomes import ImageError
from fiqa_trt.progress import Progress, Report, Say, silent
from fiqa_trt.storage.record import Record
from fiqa_trt.storage.writing import atomic
from fiqa_trt.training.crops import HIDDEN, Crop, Face, draw_other, make_crop
from fiqa_trt.training.damage import CAUSE_COLUMN
from fiqa_trt.training.degradations import FAMILIES, Image
from fiqa_trt.training.labels import METRICS, equalise, full_reference
from fiqa_trt.training.occlusions import OCCLUDERS
from fiqa_trt.version import __version__

TABLE = "labels.csv"
BAD_CROP = "bad_crop"
PARTS = "parts"
CHUNK = 16
COVER = 0.6  # of the score, where eyes, nose, mouth and the rest of the face are all covered


_GROUP = "group"
_BOX = ("face_x", "face_y", "face_w", "face_h")
_POINTS = tuple(
    f"{point}_{axis}" for point in ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right") for axis in "xy"
)
_FACE_COLUMNS = ("path", "split", "quality", "pose", *_BOX, *_POINTS)


def read_faces(source: Source, say: Say = silent, group_column: str | None = None) -> list[Face]:
    """Faces of a folder, or of a list with the optional columns `group`, `split`, `quality`, `pose`, `face_x`,
    `face_y`, `face_w`, `face_h`, and `left_eye_x`, `left_eye_y` and so on for `right_eye`, `nose`, `mouth_left` and
    `mouth_right`.

    Args:
        source: what to list.
        say: receives lines for the user.
        group_column: what the list calls the column `group`.

    Raises:
        InputError: as `list_inputs`; a list without the column that was named; a `quality`, a pose, landmarks or a box
            that are not what they should be.
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
            group, split = ("" if row.get(name) is None else str(row[name]) for name in (named, "split"))
            faces.append(_face(row, group, split))
    return faces


def _face(row: dict[str, Any], group: str, split: str) -> Face:
    try:
        box = tuple(float(row[name]) for name in _BOX) if row.get("face_w") else None
        points = None if is_empty(row.get(_POINTS[0])) else tuple(float(row[name]) for name in _POINTS)
        quality, pose = float(row.get("quality") or 1), None if is_empty(row.get("pose")) else float(row["pose"])
    except (KeyError, TypeError, ValueError) as exc:
        raise InputError(f"{row['path']}: its face box, landmarks, pose or quality is not a number ({exc})") from exc
    if not 0 < quality <= 1 or not 0 <= (pose or 0) <= 1 or (box and min(box[2:]) <= 0):
        raise InputError(f"{row['path']}: quality must be in (0, 1], pose in [0, 1] and a face box have a size")
    return Face(row["path"], group or row["path"], split, quality, box, pose, points)  # type: ignore[arg-type]


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
    photos, crops, rows, failed = list[tuple[int, Image, Face]](), list[Crop](), list[dict[str, object]](), list[str]()
    reader = ContainerReader()
    for index, face in job.faces:
        try:
            blob = read_recorded(face.path, reader)
            if isinstance(blob, ImageError):
                raise blob
            photos.append((index, np.asarray(decode_image(blob)), face))
        except (ImageError, OSError) as exc:
            failed.append(f"{face.path}: {exc}")
    faces = [face for _, _, face in photos]
    for place, (index, photo, face) in enumerate(photos):
        for copy in range(job.per_face):
            rng = np.random.default_rng([job.seed, index, copy])
            _, other, whose = photos[draw_other(faces, place, rng)]
            crop = make_crop(photo, face, (other, whose), rng, job.size)
            name = f"{index // 1000:04d}/{index:07d}_{copy}.png"
            (job.out / name).parent.mkdir(exist_ok=True)
            if not cv2.imwrite(str(job.out / name), crop.damaged[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1]):
                raise OSError(f"cannot write {job.out / name}")
            crops.append(crop)
            place_of = {"path": name, "group": face.group, "split": face.split, "source": face.path}
            rows.append(place_of | _described(crop, face))
    if rows:
        clean = _at_input_size([crop.clean for crop in crops])
        values = full_reference(_at_input_size([crop.damaged for crop in crops]), clean)
        opinions = _opinions(job.reference, clean)
        for row, metrics, opinion in zip(rows, values, opinions, strict=True):
            row |= {name: round(float(value), 6) for name, value in zip(METRICS, metrics, strict=True)}
            row["reference"] = round(float(opinion), 5)
    return _Made(rows, failed)


def _described(crop: Crop, face: Face) -> dict[str, object]:
    """What was done to a crop, as columns."""
    levels = dict.fromkeys((BAD_CROP, *OCCLUDERS, *FAMILIES), 0.0) | {BAD_CROP: crop.framing}
    for family, level in crop.chain:
        levels[family] = max(levels[family], level)
    return {
        "chain": json.dumps([[family, round(level, 3)] for family, level in crop.chain]),
        "quality": face.quality,
        "visible": 1 - HIDDEN * crop.framing,
        "covered": round(crop.covered, 4),
        **{family: round(level, 3) for family, level in levels.items()},
        **{CAUSE_COLUMN + cause: "" if math.isnan(level) else round(level, 3) for cause, level in crop.causes.items()},
    }


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
    scores = equalise(metrics, metrics[pool]) * clean * column("visible") * (1 - COVER * column("covered"))
    for row, score in zip(rows, scores, strict=True):
        row["score"] = round(float(score), 5)
