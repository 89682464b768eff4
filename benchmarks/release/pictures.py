"""Crops with known damage, to learn causes from and to measure them with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.release.model_card import Photo, Pixels
from fiqa_trt.decoding.cpu import decode_image
from fiqa_trt.models.causes import CAUSES
from fiqa_trt.training.crops import HIDDEN, SEVERE_COVER, Face, cut, draw_other, make_crop
from fiqa_trt.training.damage import NAMED
from fiqa_trt.training.degradations import FAMILIES
from fiqa_trt.training.occlusions import OCCLUDERS, covered, occlude

Floats = npt.NDArray[np.float32]
Rows = list[dict[str, Any]]

SIZE = 224
SEVERE = 0.4  # from here on the cause of single damage must be told


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Crops with what was done to each.

    Attributes:
        pixels: uint8 [N, 224, 224, 3].
        causes: severities, float32 [N, causes]; NaN where it cannot be told.
        rows: `path`, `families` and whatever else a set tells of each.
    """

    pixels: npt.NDArray[np.uint8]
    causes: Floats
    rows: Rows

    @property
    def families(self) -> list[set[str]]:
        """Names of the damage done to each."""
        return [set(row["families"]) for row in self.rows]


Made = tuple[Pixels, dict[str, float], dict[str, Any]]


def kept(work: Path, name: str, count: int, make: Callable[[], Iterator[Made]]) -> Pictures:
    """The set of this name, made if it is not there."""
    pixels, told = work / f"{name}.npy", work / f"{name}.json"
    if not told.exists():
        array = np.lib.format.open_memmap(pixels, "w+", np.uint8, (count, SIZE, SIZE, 3))
        rows, severities = [], []
        for index, (crop, causes, row) in enumerate(make()):
            array[index] = crop
            severities.append([causes.get(cause, 0.0) for cause in CAUSES])
            rows.append(row)
        array.flush()
        told.write_text(json.dumps({"rows": rows, "causes": severities}))
    found = json.loads(told.read_text())
    count = len(found["rows"])
    return Pictures(np.load(pixels, mmap_mode="r")[:count], np.array(found["causes"], np.float32), found["rows"])


def decoded(face: Face) -> Pixels:
    """Pixels of a photograph."""
    return np.asarray(decode_image(Path(face.path).read_bytes()))


def mixtures(faces: Sequence[Face], per_face: int, seed: int) -> Iterator[Made]:
    """Crops as `fiqa-trt synthesize` makes them, without labels of quality."""
    every = list(faces)
    for index, face in enumerate(every):
        photo = decoded(face)
        for copy in range(per_face):
            rng = np.random.default_rng([seed, index, copy])
            whose = every[draw_other(every, index, rng)]
            crop = make_crop(photo, face, (decoded(whose), whose), rng, SIZE)
            row = {"path": face.path, "families": [family for family, _ in crop.chain], "framing": crop.framing}
            yield crop.damaged, crop.causes, row


def singles(faces: Sequence[Face], seed: int) -> Iterator[Made]:
    """A crop of each face for each family of damage, each occluder and a bad crop, of a severity from SEVERE to 1."""
    every = list(faces)
    for index, face in enumerate(every):
        photo, whose = decoded(face), every[(index + 1) % len(every)]
        for number, family in enumerate((*NAMED, *OCCLUDERS, "bad_crop")):
            rng = np.random.default_rng([seed, index, number])
            severity = float(rng.uniform(SEVERE, 1))
            row = {"path": face.path, "families": [family], "severity": severity}
            if family == "bad_crop":
                yield cut(photo, face, HIDDEN * severity, rng, SIZE)[0], {"framing": severity}, row
                continue
            crop, points = cut(photo, face, 0, rng, SIZE)
            if family in FAMILIES:
                yield FAMILIES[family](crop, severity, rng), dict.fromkeys(NAMED[family], severity), row
                continue
            head, _ = cut(decoded(whose), whose, 0, rng, SIZE)
            drawn, opacity = occlude(crop, points, head, family, severity, rng)
            level = min(1.0, SEVERE_COVER * covered(opacity, points))
            yield drawn, {"occlusion": level}, row


def undamaged(photos: Sequence[Photo], poses: dict[str, float | None]) -> Iterator[Made]:
    """The undistorted crop of each photograph."""
    for photo in photos:
        pose = poses[str(photo.path)]
        row = {"path": str(photo.path), "families": [], "pool": photo.pool, "split": photo.split}
        row |= {"demographic": photo.demographic}
        yield photo.crop(), {"pose": float("nan") if pose is None else pose}, row
