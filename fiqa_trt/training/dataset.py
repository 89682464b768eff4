"""The training data: a table of labels, and its images decoded once into one array on disk."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.errors import InputError, number_of, storage_error
from fiqa_trt.inputs.address import Address
from fiqa_trt.inputs.ratings import Form, read_ratings
from fiqa_trt.inputs.reader import ContainerReader, read_recorded
from fiqa_trt.inputs.user_tables import Column
from fiqa_trt.inputs.whole_tables import Table, is_empty
from fiqa_trt.models.causes import CAUSES
from fiqa_trt.models.spec import PreprocessSpec, digest
from fiqa_trt.outcomes import Outcome, Status
from fiqa_trt.progress import Progress, Report, silent
from fiqa_trt.storage.registry import store_of
from fiqa_trt.storage.writing import atomic, write_text
from fiqa_trt.training.damage import CAUSE_COLUMN
from fiqa_trt.training.files import files_of

TRAIN, VAL, TEST = "train", "val", "test"
MIN_ROWS = 32
_SIDES = {
    **dict.fromkeys((TRAIN, "training"), TRAIN),
    **dict.fromkeys((VAL, "valid", "validation", "dev"), VAL),
    **dict.fromkeys((TEST, "testing"), TEST),
}
_CHUNK = 256
_COVERED = 0.25  # of a scale: ratings that fill less of it may be of another one


@dataclasses.dataclass(frozen=True)
class Labels:
    """Rows of a label table.

    Attributes:
        paths: N recorded paths, joined with the folder of images.
        scores: float32 [N] in [0, 1].
        weights: float32 [N], positive.
        split: text [N], each TRAIN, VAL or TEST. No group stands on two sides.
        notes: lines for the user: what was left out, averaged or drawn.
        causes: severities in [0, 1] by cause, float32 [N] each, NaN where nobody knows; none if the table has none.
    """

    paths: list[str]
    scores: npt.NDArray[np.float32]
    weights: npt.NDArray[np.float32]
    split: npt.NDArray[np.str_]
    notes: tuple[str, ...] = ()
    causes: dict[str, npt.NDArray[np.float32]] = dataclasses.field(default_factory=dict)

    @property
    def train(self) -> npt.NDArray[np.bool_]:
        """Which rows to train on, bool [N]."""
        return np.asarray(self.split == TRAIN)

    def count(self, side: str) -> int:
        """Rows of a side."""
        return int((self.split == side).sum())

    def digest(self) -> str:
        """Of everything that it holds."""
        arrays = [array.tolist() for array in (self.scores, self.weights, self.split)]
        causes = [[name, np.nan_to_num(array, nan=-1).tolist()] for name, array in self.causes.items()]
        return digest([self.paths, *arrays, *causes])

    def select(self, rows: npt.NDArray[np.bool_]) -> Labels:
        """The rows where `rows`, bool [N], is true."""
        paths = [path for path, kept in zip(self.paths, rows, strict=True) if kept]
        causes = {name: array[rows] for name, array in self.causes.items()}
        return Labels(paths, self.scores[rows], self.weights[rows], self.split[rows], self.notes, causes)


def read_labels(
    table: Path,
    images: Path | None = None,
    score_range: tuple[float, float] = (0.0, 1.0),
    val_share: float = 0.1,
    seed: int = 0,
    form: Form | None = None,
) -> Labels:
    """A table of ratings, maybe with the columns `weight`, `group`, `split` and `cause_blur` ... (severities of causes
    from 0 to 1, empty where nobody knows); one row an image.

    Args:
        table: as `read_ratings` reads it.
        images: folder that relative paths start from; default: the table's own. A name that is no file but that of one
            without its extension is that file; where the folder is given, so is the only file of it and of the folders
            in it whose path ends so.
        score_range: worst and best possible score, mapped to 0 and 1; the worst may be the larger one.
        val_share: of the groups (of the images, without that column) that validate, where the column `split` says
            nothing, or names `test` but no `val`; chosen by a hash of their names and `seed`, so that adding rows moves
            no group.
        seed: of that choice.
        form: what the user says of the table.

    Raises:
        InputError: as `read_ratings`; no folder `images`; a score out of range, constant scores, a weight that is not
            positive, a severity that is not from 0 to 1, a split of another name or with a group on two sides, too few
            rows, an image rated twice of which the rows disagree.
    """
    name, (low, high) = str(table), score_range
    if images is not None and not images.is_dir():
        raise InputError(f"--images {images}: no such folder")
    person = form.group if form else None
    ratings = read_ratings(table, form, [Column("group", (), "--group-column", person)] if person else [])
    if len(ratings.paths) < MIN_ROWS:
        raise InputError(f"{name} has {len(ratings.paths)} rows; training needs at least {MIN_ROWS}")
    if low == high:
        raise InputError(f"the score range {low:g} {high:g} has no width: give the worst rating, then the best one")
    raw, said = ratings.values, ratings.table.told("score")
    if raw.min() < min(low, high) or raw.max() > max(low, high):
        raise InputError(
            f"{name}: {said} runs from {raw.min():g} to {raw.max():g}, outside {low:g} to {high:g}; give the scale's "
            "ends as --score-range WORST BEST"
        )
    if np.ptp(raw) == 0:
        raise InputError(f"{name}: every {said} is {raw[0]:g}; there is nothing to learn")
    files, elsewhere = files_of(ratings.paths, os.fspath(images or table.parent), name, below=images is not None)
    others = ("weight", "group", "split", *(CAUSE_COLUMN + cause for cause in CAUSES))
    ratings = ratings.merged(files, [column for column in others if column in ratings.columns])
    files, columns = list(dict.fromkeys(files)), ratings.columns
    if len(files) < MIN_ROWS:
        raise InputError(f"{name} rates {len(files)} images; training needs at least {MIN_ROWS}")
    weights = ratings.table.numbers("weight") if "weight" in columns else np.ones(len(files))
    if weights.min() <= 0:
        where = ratings.table.where(int(weights.argmin()))
        raise InputError(f"{where}: a weight of {weights.min():g}; they must be positive (leave the row out instead)")
    # Sets that `synthesize` wrote have a chain of degradations; of earlier ones the photograph is no group yet.
    single = columns["source"] if {"source", "chain"} <= columns.keys() else files
    named = zip(columns.get("group", single), single, strict=True)
    groups = [str(own) if is_empty(group) else str(group) for group, own in named]
    split, drawn = _split(ratings.table, groups, val_share, seed)
    scores = (ratings.values - low) / (high - low)
    falling = [f"on the scale from {low:g} to {high:g} lower ratings are the better ones"] if low > high else []
    notes = (*ratings.notes(), *falling, *_narrow(raw, low, high), *elsewhere, *drawn)
    return Labels(files, scores.astype(np.float32), weights.astype(np.float32), split, notes, _causes(ratings.table))


def _causes(table: Table) -> dict[str, npt.NDArray[np.float32]]:
    """Severities by cause, of the columns that a table has."""
    found = dict[str, npt.NDArray[np.float32]]()
    for cause in CAUSES:
        name = CAUSE_COLUMN + cause
        if name not in table.columns:
            continue
        known = [row for row, cell in enumerate(table.columns[name]) if not is_empty(cell)]
        severities = np.full(len(table.columns[name]), np.nan, np.float32)
        severities[known] = table.select(known).numbers(name)
        for row in known:
            if not 0 <= severities[row] <= 1:
                raise InputError(f"{table.where(row)}: the {name} {severities[row]:g} is not from 0 to 1")
        found[cause] = severities
    return found


def _narrow(raw: npt.NDArray[np.float64], low: float, high: float) -> list[str]:
    """A warning if ratings look as if they were of another scale than that from `low` to `high`."""
    share = float(np.ptp(raw)) / abs(high - low)
    if share >= _COVERED:
        return []
    return [
        f"the ratings run from {raw.min():g} to {raw.max():g}, {share:.1%} of the scale from {low:g} to {high:g}: if "
        "theirs is another, give its ends as --score-range WORST BEST"
    ]


def _split(table: Table, groups: list[str], share: float, seed: int) -> tuple[npt.NDArray[np.str_], list[str]]:
    """The side of every row of a table, and what to say about it."""
    sides: dict[str, str] = {}
    given = table.columns.get("split", [None] * len(groups))
    for row, (group, cell) in enumerate(zip(groups, given, strict=True)):
        if is_empty(cell):
            continue
        side = _SIDES.get(str(cell).strip().lower())
        if side is None:
            raise InputError(f"{table.where(row)}: a split must be `{TRAIN}`, `{VAL}` or `{TEST}`, not {cell!r}")
        if sides.setdefault(group, side) != side:
            raise InputError(
                f"{table.where(row)}: the group {group!r} is in `{side}`, before it was in `{sides[group]}`; no person "
                "may be on both sides"
            )
    notes, free = list[str](), {group for group in groups if group not in sides}
    if sides and free:
        rows = sum(group in free for group in groups)
        notes.append(f"{number_of(rows, 'row')} without a split: drawn, {share:.0%} of their groups to validate")
    if TEST in sides.values() and VAL not in sides.values():
        held = {group for group, side in sides.items() if side == TRAIN}
        notes.append(f"no rows to validate besides those of `{TEST}`: {share:.0%} of the `{TRAIN}` groups do")
        free |= held
    if free and not {"group", "chain"} & table.columns.keys():
        notes.append(
            "no column `group` (--group-column names another): images of one person may be on both sides of the split "
            "that is drawn"
        )
    if free:
        sides |= _draw(free, share, seed, needed=VAL not in sides.values())
    split = np.array([sides[group] for group in groups])
    for side, purpose in ((VAL, "validate"), (TRAIN, "train")):
        if side not in sides.values():
            one = "; all are of one group (person or photograph), and no group may be on both sides"
            raise InputError(f"{table.name}: no rows are left to {purpose} with{one if len(set(groups)) == 1 else ''}")
    return split, notes


def _draw(groups: set[str], share: float, seed: int, *, needed: bool) -> dict[str, str]:
    """Sides of groups; if `needed`, at least one validates and, of several, at least one trains."""

    def place(group: str) -> float:
        return int(hashlib.sha256(f"{seed} {group}".encode()).hexdigest()[:12], 16) / 16**12

    places = {group: place(group) for group in groups}
    limit, ordered = share, sorted(places.values())
    if needed:
        limit = max(limit, ordered[0])
    if len(ordered) > 1:
        limit = min(limit, ordered[-2])
    return {group: TRAIN if places[group] > limit else VAL for group in groups}


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
    report: Report = silent,
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
                    write_text(notes, json.dumps(errors))
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
    if len(kept.paths) < MIN_ROWS or not kept.count(TRAIN) or not kept.count(VAL):
        raise InputError(f"{len(skipped)} images cannot be read and the rest is not enough; the first: {skipped[0]}")
    return Dataset(kept, np.load(array, mmap_mode="r"), np.flatnonzero(readable), skipped, whole)


def _stamp(path: str) -> tuple[int, int]:
    file = Address.parse(path).file
    stamp = store_of(file).stamp(file)
    return (-1, -1) if stamp is None else (stamp.size, stamp.modified_ns)


def _fill(paths: list[str], array: Path, workers: int, size: int, report: Report) -> dict[int, str]:
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
            local.reader = ContainerReader()
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
