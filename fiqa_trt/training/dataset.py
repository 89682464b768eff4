"""The training data: a table of labels, and its images decoded once into one array on disk."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fiqa_trt.decode import CpuDecoder
from fiqa_trt.errors import InputError, storage_error
from fiqa_trt.progress import Progress
from fiqa_trt.records import Outcome, Status, open_path
from fiqa_trt.shards import ShardReader, locate, read_recorded
from fiqa_trt.spec import PreprocessSpec, digest
from fiqa_trt.storage import atomic
from fiqa_trt.user_tables import read_columns

MIN_ROWS = 32
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class Labels:
    """Rows of a label table.

    Attributes:
        paths: N recorded paths, joined with the folder of images.
        scores: float32 [N] in [0, 1].
        weights: float32 [N], positive.
        train: bool [N]; the other rows are for validation. No group stands on both sides.
    """

    paths: list[str]
    scores: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    train: npt.NDArray[np.bool_]

    def digest(self) -> str:
        """Of everything that it holds."""
        arrays = [array.tolist() for array in (self.scores, self.weights, self.train)]
        return digest([self.paths, *arrays])

    def select(self, rows: npt.NDArray[np.bool_]) -> Labels:
        """The rows where `rows`, bool [N], is true."""
        paths = [path for path, kept in zip(self.paths, rows, strict=True) if kept]
        return Labels(paths, self.scores[rows], self.weights[rows], self.train[rows])


def read_labels(
    table: Path,
    images: Path | None = None,
    score_range: tuple[float, float] = (0.0, 1.0),
    val_share: float = 0.1,
    seed: int = 0,
) -> Labels:
    """A .csv or .parquet with the columns `path` and `score`, and maybe `weight`, `group` and `split`.

    Args:
        table: the file.
        images: folder that relative paths start from; default: the table's own.
        score_range: worst and best possible score, mapped to 0 and 1.
        val_share: of the groups (of the images, without that column) that validate, where there is no column `split`;
            chosen by a hash of their names and `seed`, so that adding rows moves no group.
        seed: of that choice.

    Raises:
        InputError: a missing column, a score that is no number or out of range, constant scores, a weight that is not
            positive, a split other than `train` and `val` or with a group on both sides, too few rows.
    """
    columns = read_columns(table, ("path", "score"))
    name = str(table)
    count = len(columns["path"])
    if count < MIN_ROWS:
        raise InputError(f"{name} has {count} rows; training needs at least {MIN_ROWS}")
    low, high = score_range
    if not low < high:
        raise InputError(f"the score range {low:g} {high:g} must rise: worst first, then best")
    raw = _numbers(columns["score"], "score", name)
    if raw.min() < low or raw.max() > high:
        raise InputError(
            f"{name}: scores run from {raw.min():g} to {raw.max():g}, outside {low:g} to {high:g}; give the scale's "
            "ends as --score-range WORST BEST"
        )
    if np.ptp(raw) == 0:
        raise InputError(f"{name}: every score is {raw[0]:g}; there is nothing to learn")
    weights = _numbers(columns["weight"], "weight", name) if "weight" in columns else np.ones(count)
    if weights.min() <= 0:
        raise InputError(f"{name}: a weight of {weights.min():g}; weights must be positive (leave the row out instead)")
    if None in columns["path"] or "" in columns["path"]:
        raise InputError(f"{name}: a row has no path")
    files = [str(path) for path in columns["path"]]
    named = zip(columns.get("group", files), files, strict=True)
    groups = [path if group in (None, "") else str(group) for group, path in named]
    train = _given_split(columns["split"], groups, name) if "split" in columns else _draw_split(groups, val_share, seed)
    if train.all() or not train.any():
        raise InputError(f"{name}: no rows are left to {'validate' if train.all() else 'train'} with")
    folder = os.fspath(images or table.parent)
    paths = [os.path.join(folder, open_path(path)) for path in files]
    scores = (raw - low) / (high - low)
    return Labels(paths, scores.astype(np.float32), weights.astype(np.float32), train)


def _numbers(values: list[str | None], column: str, name: str) -> npt.NDArray[np.float64]:
    numbers = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        with contextlib.suppress(TypeError, ValueError):
            numbers[row] = float(value)  # type: ignore[arg-type]
        if not np.isfinite(numbers[row]):
            raise InputError(f"{name}, row {row + 1}: the {column} {value!r} is not a finite number")
    return numbers


def _given_split(values: list[str | None], groups: list[str], name: str) -> npt.NDArray[np.bool_]:
    others = {value for value in values if value not in ("train", "val")}
    if others:
        raise InputError(f"{name}: a split must be `train` or `val`, not {sorted(map(repr, others))[0]}")
    sides: dict[str, str | None] = {}
    for group, split in zip(groups, values, strict=True):
        if sides.setdefault(group, split) != split:
            raise InputError(f"{name}: the group {group!r} is in both splits; no person may be on both sides")
    return np.array([value == "train" for value in values])


def _draw_split(groups: list[str], share: float, seed: int) -> npt.NDArray[np.bool_]:
    def place(group: str) -> float:
        return int(hashlib.sha256(f"{seed} {group}".encode()).hexdigest()[:12], 16) / 16**12

    places = {group: place(group) for group in groups}
    # At least one group validates, however few there are.
    limit = max(share, min(places.values()))
    return np.array([places[group] > limit for group in groups])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Labels with pixels.

    Attributes:
        labels: the rows whose image could be decoded, N of them.
        images: uint8 [>= N, size, size, 3] on disk.
        slots: int64 [N], where in `images` the pixels of each row are.
        skipped: a line for each row that was left out, with its reason.
        identity: of the files that they come from and of what was made of them.
    """

    labels: Labels
    images: npt.NDArray[np.uint8]
    slots: npt.NDArray[np.int64]
    skipped: list[str]
    identity: str = ""

    def pixels(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
        """uint8 [len(rows), size, size, 3] of some rows."""
        return np.asarray(self.images[self.slots[rows]])


def decode_images(
    labels: Labels,
    cache: Path,
    workers: int = 2,
    size: int = PreprocessSpec().size,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Dataset:
    """Decode every image once, exactly as `fiqa-trt score` does, into `cache`; a second call finds them there.

    What cannot be decoded is left out. The array takes 147 KB an image at 224 px.

    Args:
        labels: whose images.
        cache: a folder, made if need be; may serve several trainings.
        workers: threads.
        size: side of the crops in pixels.
        report: receives the number of images done.

    Raises:
        InputError: more than half of the images cannot be read, or fewer than MIN_ROWS, or not one of a split.
        RunError: the disk is full or fails.
    """
    identity = [(path, *_stamp(path)) for path in labels.paths]
    whole = digest([size, PreprocessSpec().digest(), identity])
    stem = whole[:24]
    array, notes = cache / f"{stem}.npy", cache / f"{stem}.json"
    if not notes.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with (cache / f"{stem}.lock").open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)  # another training may be at it
                if not notes.exists():
                    with atomic(array) as temporary:
                        errors = _fill(labels.paths, temporary, workers, size, report)
                    with atomic(notes) as temporary:
                        temporary.write_text(json.dumps(errors))
        except OSError as exc:
            raise storage_error(array, exc) from exc
    failures: dict[str, str] = json.loads(notes.read_text())
    skipped = [f"{labels.paths[int(row)]}: {error}" for row, error in failures.items()]
    readable = np.array([str(row) not in failures for row in range(len(labels.paths))])
    if 2 * readable.sum() < len(readable):
        raise InputError(
            f"{len(skipped)} of {len(readable)} images cannot be read; the first: {skipped[0]} (is --images right?)"
        )
    kept = labels.select(readable)
    if len(kept.paths) < MIN_ROWS or kept.train.all() or not kept.train.any():
        raise InputError(f"{len(skipped)} images cannot be read and the rest is not enough; the first: {skipped[0]}")
    return Dataset(kept, np.load(array, mmap_mode="r"), np.flatnonzero(readable), skipped, whole)


def _stamp(path: str) -> tuple[int, int]:
    try:
        info = os.stat(locate(path)[0])
    except (OSError, ValueError):
        return (-1, -1)
    return (info.st_size, info.st_mtime_ns)


def _fill(paths: list[str], array: Path, workers: int, size: int, report: Callable[[Progress], None]) -> dict[int, str]:
    """Decode into a new array file; what could not be read, by row."""
    decoder, local = CpuDecoder(), threading.local()
    shape = (len(paths), size, size, 3)
    # Reserved at once: writing to a map on a full disk would kill the process instead of raising.
    with array.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        start = file.tell()
        os.posix_fallocate(file.fileno(), start, int(np.prod(shape)))
    images = np.memmap(array, np.uint8, "r+", start, shape)

    def decode(row: int) -> Outcome:
        if not hasattr(local, "reader"):
            local.reader = ShardReader()
        return decoder.decode_into(images[row], read_recorded(paths[row], local.reader))

    errors = dict[int, str]()
    with ThreadPoolExecutor(workers, "decode") as threads:
        for start in range(0, len(paths), _CHUNK):
            rows = range(start, min(start + _CHUNK, len(paths)))
            for row, outcome in zip(rows, threads.map(decode, rows), strict=True):
                if outcome.status is not Status.OK:
                    errors[row] = f"{outcome.status.value}: {outcome.error}"
            report(Progress(rows.stop, len(paths), len(errors)))
    images.flush()
    return errors
