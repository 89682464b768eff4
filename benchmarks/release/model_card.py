"""Every figure of the model card that needs the checkpoint alone, on faces of the `val` split.

`python -m benchmarks.release.model_card SET LIST [--engine DIR]`: SET is what `fiqa-trt synthesize --list LIST` made of
the list that `faces.py` wrote. No person or photographer of `val` is in `train`.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.common import machine, record
from fiqa_trt.analysis.evaluation import agreement
from fiqa_trt.decoding.cpu import decode_image, fit
from fiqa_trt.engines.base import Engine
from fiqa_trt.engines.opening import open_engine
from fiqa_trt.models.spec import MEMBERS
from fiqa_trt.training.degradations import FAMILIES

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float64]

SIZE = 224
MARGIN = 1.4  # side of the undistorted crop, in sides of the face's box
LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)  # severities of levels 1 to 5
RESOLUTIONS = (20, 28, 40, 56, 80, 112, 160, 224, 320, 512, 1024)
SHIFT = 0.04
PAIRED_DRAWS = 2000


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photograph of the list, by its columns."""

    path: Path
    pool: str
    split: str
    demographic: str
    box: tuple[float, float, float, float]

    @functools.cached_property
    def pixels(self) -> Pixels:
        """uint8 RGB [H, W, 3]."""
        return np.asarray(decode_image(self.path.read_bytes()))

    def crop(self, shift: tuple[float, float] = (0, 0), size: int = SIZE) -> Pixels:
        """The undistorted crop, moved by a share of its side, within the photograph: uint8 [size, size, 3]."""
        x, y, w, h = self.box
        height, width = self.pixels.shape[:2]
        side = min(MARGIN * max(w, h), width, height)
        left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
        # Room for the shift on all sides, so that a shifted crop is not pushed back.
        room = SHIFT * side
        left, top = (min(max(at, room), max(room, end - side - room)) for at, end in ((left, width), (top, height)))
        left, top = left + shift[0] * side, top + shift[1] * side
        left, top = min(max(left, 0), width - side), min(max(top, 0), height - side)
        box = (left, top, left + side, top + side)
        return np.asarray(Image.fromarray(self.pixels).resize((size, size), Image.Resampling.BILINEAR, box=box))


def read_photos(table: Path) -> list[Photo]:
    """Photographs of a list of `faces.py`."""
    with table.open(newline="") as file:
        return [
            Photo(
                Path(row["path"]), row["pool"], row["split"], row["demographic"],
                (float(row["face_x"]), float(row["face_y"]), float(row["face_w"]), float(row["face_h"])),
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip


class Scorer:
    """Member scores of crops by an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def members(self, crops: Sequence[Pixels] | Iterator[Pixels]) -> Scores:
        """float64 [N, members] of N crops, uint8 [224, 224, 3] each; a generator is consumed batch by batch."""
        size, pending = self.engine.info.batch, []
        iterator = iter(crops)
        while chunk := list(itertools.islice(iterator, size)):
            batch = np.zeros((size, SIZE, SIZE, 3), np.uint8)
            batch[: len(chunk)] = chunk
            pending.append((self.engine.submit(batch), len(chunk)))
        return np.concatenate([future.result().scores[:count] for future, count in pending]).astype(np.float64)

    def __call__(self, crops: Sequence[Pixels] | Iterator[Pixels]) -> Scores:
        """float64 [N], the mean over members."""
        return np.asarray(self.members(crops).mean(axis=1))


def against_labels(folder: Path, scorer: Scorer) -> dict[str, Any]:
    """Agreement of the ensemble and of each member with the labels of degraded `val` crops."""
    with (folder / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "val"]
    scores = scorer.members(read_image(folder / row["path"]) for row in rows)
    labels = np.array([float(row["score"]) for row in rows])
    portrait = np.array(["portraits" in row["source"] for row in rows])
    columns = {"ensemble": scores.mean(axis=1), **dict(zip(MEMBERS, scores.T, strict=True))}
    result: dict[str, Any] = {"images": len(rows), "portraits": int(portrait.sum())}
    for name, values in columns.items():
        result[name] = {
            pool: {k: dataclasses.asdict(v) for k, v in agreement(values[kept], labels[kept], 200).measures.items()}
            for pool, kept in {"all": portrait | True, "portraits": portrait, "wild": ~portrait}.items()
        }
    result["ensemble better than member"] = {
        name: paired(columns["ensemble"], columns[name], labels) for name in MEMBERS
    }
    error = columns["ensemble"] - labels
    result["mean absolute error by family"] = {
        family: round(float(np.abs(error[np.array([float(row[family]) > 0 for row in rows])]).mean()), 4)
        for family in (*FAMILIES, "bad_crop")
    }
    result["mean error of undamaged crops"] = float(error[np.array([row["chain"] == "[]" for row in rows])].mean())
    _, photograph = np.unique([row["source"] for row in rows], return_inverse=True)
    means = np.bincount(photograph, error) / np.bincount(photograph)
    freedom = len(rows) - len(means)
    result["share of the error's variance within photographs"] = float(
        ((error - means[photograph]) ** 2).sum() / freedom / error.var()
    )
    return result


def paired(first: Scores, second: Scores, labels: Scores) -> dict[str, Any]:
    """Difference of SRCC and PLCC, with a paired bootstrap: 95 % interval and the share of draws above 0."""
    from scipy import stats

    def both(rows: npt.NDArray[np.int64]) -> tuple[float, float]:
        def difference(measure: Callable[..., Any]) -> float:
            parts = (measure(values[rows], labels[rows]).statistic for values in (first, second))
            return float(np.subtract(*parts))

        return difference(stats.spearmanr), difference(stats.pearsonr)

    rng = np.random.default_rng(0)
    draws = np.array([both(rng.integers(0, len(labels), len(labels))) for _ in range(PAIRED_DRAWS)])
    whole = both(np.arange(len(labels)))
    return {
        name: {
            "difference": whole[index],
            "interval": np.percentile(draws[:, index], [2.5, 97.5]).tolist(),
            "share above 0": float((draws[:, index] > 0).mean()),
        }
        for index, name in enumerate(("srcc", "plcc"))
    }


def read_image(path: Path) -> Pixels:
    """As the CPU decoder gives it to an engine."""
    return fit(decode_image(path.read_bytes()), SIZE)


def damaged(photos: Sequence[Photo], family: str, seed: int) -> Iterator[Pixels]:
    """Crops of all photographs at all LEVELS; what is random is the same at each level of a photograph."""
    for index, photo in enumerate(photos):
        crop = photo.crop()
        for level in LEVELS:
            yield FAMILIES[family](crop, level, np.random.default_rng([seed, index]))


def ordering(photos: Sequence[Photo], clean: Scores, scorer: Scorer, seed: int) -> dict[str, Any]:
    """Share of pairs in the right order: two levels of a photograph, and the undamaged one against levels >= 2.

    Two levels that give the same image, as where a kernel's size is rounded, are no pair.
    """
    pairs, outranked, means, same = {}, {}, {}, {}
    for family in FAMILIES:
        images = list[bytes]()

        def seen(crops: Iterator[Pixels], images: list[bytes] = images) -> Iterator[Pixels]:
            for crop in crops:
                images.append(hashlib.sha256(crop.tobytes()).digest())
                yield crop

        scores = scorer(seen(damaged(photos, family, seed))).reshape(len(photos), len(LEVELS))
        content = np.array(images, object).reshape(scores.shape)
        levels = list(itertools.combinations(range(len(LEVELS)), 2))
        differ = np.stack([content[:, a] != content[:, b] for a, b in levels])
        right = np.stack([scores[:, a] > scores[:, b] for a, b in levels])
        pairs[family] = float(right[differ].mean())
        if not differ.all():
            same[family] = int((~differ).sum())
        outranked[family] = float((clean[:, None] > scores[:, 1:]).mean())
        means[family] = [round(float(value), 4) for value in scores.mean(axis=0)]
    worst = min(pairs, key=lambda family: pairs[family])
    return {
        "photographs": len(photos),
        "two levels": {
            "all": float(np.mean(list(pairs.values()))),
            "worst": worst,
            "families": pairs,
            "left out as the same image": same,
        },
        "undamaged above levels 2 to 5": {"all": float(np.mean(list(outranked.values()))), "families": outranked},
        "mean score by level": means,
    }


def stability(photos: Sequence[Photo], folder: Path, clean: Scores, scorer: Scorer) -> dict[str, Any]:
    """Mean absolute change of the score under what should not matter."""

    def recoded(crop: Pixels) -> Pixels:
        buffer = io.BytesIO()
        Image.fromarray(crop).save(buffer, "JPEG", quality=95, subsampling=0)
        return np.asarray(decode_image(buffer.getvalue()))

    def change(other: Scores, one: Scores = clean) -> float:
        return float(np.abs(other - one).mean())

    shifts = [(SHIFT, 0.0), (-SHIFT, 0.0), (0.0, SHIFT), (0.0, -SHIFT)]
    with (folder / "labels.csv").open(newline="") as file:
        names = [row["path"] for row in csv.DictReader(file) if row["split"] == "val"][::3]
    degraded = [read_image(folder / name) for name in names]
    before = scorer(degraded)
    return {
        "undamaged": {
            "mirrored": change(scorer(photo.crop()[:, ::-1] for photo in photos)),
            "shifted by 4 %": float(
                np.mean([change(scorer(photo.crop(shift) for photo in photos)) for shift in shifts])
            ),
            "JPEG quality 95": change(scorer(recoded(photo.crop()) for photo in photos)),
        },
        "degraded": {
            "images": len(degraded),
            "mirrored": change(scorer([crop[:, ::-1] for crop in degraded]), before),
            "JPEG quality 95": change(scorer([recoded(crop) for crop in degraded]), before),
        },
    }


def demographics(photos: Sequence[Photo], scorer: Scorer) -> dict[str, Any]:
    """Mean score of undistorted portraits by the collection's own groups: `val` alone, and all of them."""
    scores = scorer(photo.crop() for photo in photos)
    result = {}
    for name, kept in {"val": [p.split == "val" for p in photos], "all": [True] * len(photos)}.items():
        groups: dict[str, list[float]] = {}
        for photo, score, wanted in zip(photos, scores, kept, strict=True):
            if wanted:
                groups.setdefault(photo.demographic, []).append(float(score))
        means = {group: float(np.mean(values)) for group, values in sorted(groups.items())}
        result[name] = {
            "gap": max(means.values()) - min(means.values()),
            "means": means,
            "images": {group: len(values) for group, values in sorted(groups.items())},
            "standard errors": {g: float(np.std(v, ddof=1) / np.sqrt(len(v))) for g, v in sorted(groups.items())},
        }
    return result


def resolutions(photos: Sequence[Photo], scorer: Scorer) -> dict[str, Any]:
    """Mean score of crops that are made so small (or so large) and then prepared for the engine like any file."""
    means = {}
    for side in RESOLUTIONS:
        crops = (fit(Image.fromarray(photo.crop(size=side)), SIZE) for photo in photos)
        means[str(side)] = float(scorer(crops).mean())
    values = [means[str(side)] for side in RESOLUTIONS if side <= SIZE]
    return {"photographs": len(photos), "means": means, "rises up to 224 px": bool((np.diff(values) > 0).all())}


def main() -> None:
    """Measure and record everything."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("set", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("--engine", default="auto", help="engine directory; default: the released one")
    parser.add_argument("--photographs", type=int, default=160, help="of each pool, for the ordering of levels")
    parser.add_argument("--name", default="model_card")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    engine = open_engine("cpu", "fp32", options.engine)
    scorer, photos = Scorer(engine), read_photos(options.list)
    portraits = [photo for photo in photos if photo.pool == "portrait"]
    val = {pool: [p for p in photos if p.pool == pool and p.split == "val"] for pool in ("portrait", "wild")}
    facts: dict[str, Any] = {"machine": machine(), "model": engine.info.model, "engine": engine.info.executed}
    facts["labels"] = against_labels(options.set, scorer)
    for pool, all_of_pool in val.items():
        chosen = all_of_pool[: options.photographs]
        clean = scorer(photo.crop() for photo in all_of_pool)
        facts[pool] = {
            "undamaged": {"mean": float(clean.mean()), "quantiles": np.quantile(clean, [0.05, 0.5, 0.95]).tolist()},
            "ordering": ordering(chosen, clean[: len(chosen)], scorer, seed=3),
            "stability": stability(all_of_pool, options.set, clean, scorer),
        }
    facts["demographics"] = demographics(portraits, scorer)
    facts["resolution"] = {pool: resolutions(chosen, scorer) for pool, chosen in val.items()}
    engine.close()
    record(options.name, facts)


if __name__ == "__main__":
    main()
