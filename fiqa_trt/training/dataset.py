"""The synthetic training pool: crops of clean faces, degraded and labelled, decoded once and kept as one array.

A pool is a folder with `images.npy` (uint8 [N, 224, 224, 3]) and `labels.csv` (a line for each image, in order).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import multiprocessing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fiqa_trt.training.degradations import Image, apply_chain, draw_chain
from fiqa_trt.training.labels import METRICS, equalise, full_reference

SIZE = 224


@dataclasses.dataclass(frozen=True)
class Face:
    """A clean photograph and the face in it (pixels), as `faces.csv` lists them."""

    file: str
    group: str
    split: str
    x: int
    y: int
    w: int
    h: int


@dataclasses.dataclass(frozen=True)
class Pool:
    """A synthesized pool. `images`: uint8 [N, 224, 224, 3]; `labels`: float32 [N] in (0, 1); `splits`: [N]."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.float32]
    splits: npt.NDArray[np.str_]


def read_faces(table: Path, pool: str) -> list[Face]:
    """The lines of `faces.csv` that belong to a pool (`portrait` or `wild`)."""
    with table.open(newline="") as file:
        return [
            Face(r["file"], r["group"], r["split"], *(int(r[f"face_{k}"]) for k in "xywh"))
            for r in csv.DictReader(file)
            if r["pool"] == pool
        ]


def clean_crop(root: Path, face: Face, rng: np.random.Generator) -> Image:
    """A square crop about the face, 1.1 to 2 times its box, slightly off centre, mirrored half of the time."""
    from PIL import Image as Pillow

    with Pillow.open(root / face.file) as opened:
        photo = opened.convert("RGB")
    side = min(max(face.w, face.h) * rng.uniform(1.1, 2.0), *photo.size)
    offset = rng.uniform(-0.06, 0.06, 2) * side
    left = min(max(face.x + face.w / 2 + offset[0] - side / 2, 0), photo.width - side)
    top = min(max(face.y + face.h / 2 + offset[1] - side / 2, 0), photo.height - side)
    box = (left, top, left + side, top + side)
    crop = np.asarray(photo.resize((SIZE, SIZE), Pillow.Resampling.BILINEAR, box=box))
    return crop[:, ::-1].copy() if rng.random() < 0.5 else crop


def _make(
    task: tuple[Path, list[tuple[int, Face]], int],
) -> tuple[list[int], npt.NDArray[np.uint8], list[list[object]]]:
    import torch

    torch.set_num_threads(1)
    root, faces, seed = task
    clean, degraded, rows = [], [], list[list[object]]()
    for index, face in faces:
        rng = np.random.default_rng([seed, index])
        crop, chain = clean_crop(root, face, rng), draw_chain(rng)
        clean.append(crop)
        degraded.append(apply_chain(crop, chain, rng))
        rows.append([face.file, face.group, face.split, json.dumps([[name, round(s, 3)] for name, s in chain])])
    for row, metrics in zip(rows, full_reference(degraded, clean), strict=True):
        row.extend(f"{value:.6f}" for value in metrics)
    return [index for index, _ in faces], np.stack(degraded), rows


def synthesize(table: Path, out: Path, count: int, seed: int = 0, workers: int = 2) -> None:
    """Make a pool of `count` degraded portraits in `out`; the same arguments give the same pool.

    Every portrait is used in turn, so the splits keep the proportions that they have in `table`.
    """
    faces = read_faces(table, "portrait")
    order = np.random.default_rng(seed).permutation(count) % len(faces)
    items = [(index, faces[position]) for index, position in enumerate(order)]
    tasks = [(table.parent, items[start : start + 16], seed) for start in range(0, count, 16)]
    out.mkdir(parents=True, exist_ok=True)
    images = np.lib.format.open_memmap(out / "images.npy", "w+", np.uint8, (count, SIZE, SIZE, 3))
    rows: list[list[object]] = [[] for _ in range(count)]
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        for done, (indices, made, made_rows) in enumerate(pool.imap_unordered(_make, tasks), 1):
            images[indices] = made
            for index, row in zip(indices, made_rows, strict=True):
                rows[index] = row
            if done % 20 == 0:
                print(f"{done * 16}/{count}", flush=True)
    images.flush()
    metrics = np.array([row[4:] for row in rows], float)
    train = np.array([row[2] == "train" for row in rows])
    labels = equalise(metrics, metrics[train])
    with (out / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "group", "split", "chain", *METRICS, "label"])
        writer.writerows([*row, f"{label:.5f}"] for row, label in zip(rows, labels, strict=True))


def load_pool(folder: Path) -> Pool:
    """A pool made by `synthesize`; the images stay on disk until they are read."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = np.array([float(row["label"]) for row in rows], np.float32)
    return Pool(np.load(folder / "images.npy", mmap_mode="r"), labels, np.array([row["split"] for row in rows]))
