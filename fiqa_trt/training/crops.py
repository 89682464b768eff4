"""Crops of photographs of faces, and the damage done to each."""

from __future__ import annotations

import dataclasses

import numpy as np

from fiqa_trt.training import damage
from fiqa_trt.training.degradations import Chain, Image, Rng, apply_chain, draw_chain
from fiqa_trt.training.occlusions import Points, covered, draw_occluder, occlude, typical_points

HIDDEN = 0.75  # of the face's box, in the worst crop
_BAD_CROPS = 0.07
_OCCLUDED, _ALONE = 0.12, 0.5
SEVERE_COVER = 2.0  # half of eyes, nose, mouth and the rest covered is as severe an occlusion as there is
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
        pose: how far the head is turned away, from 0 to 1; None where nobody knows.
        points: x and y in pixels of the left and the right eye, the nose and the corners of the mouth (left and right
            of the picture); None where they are to be guessed.
    """

    path: str
    group: str = ""
    split: str = ""
    quality: float = 1.0
    box: tuple[float, float, float, float] | None = None
    pose: float | None = None
    points: tuple[float, ...] | None = None

    def places(self, width: int, height: int) -> Points:
        """The points in a photograph of this size, float64 [5, 2]."""
        if self.points:
            return np.reshape(np.array(self.points, np.float64), (5, 2))
        if self.box:
            return typical_points(*self.box)
        return typical_points(0.17 * width, 0.17 * height, 0.66 * width, 0.66 * height)


def cut(photo: Image, face: Face, hidden: float, rng: Rng, size: int) -> tuple[Image, Points]:
    """A square crop, 1.1 to 2 times the face and slightly off its centre, half of the time mirrored; and the face's
    points in it, in pixels.

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
    margin = 0
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
    pixels, points = np.asarray(crop), (face.places(width, height) + margin - (left, top)) * size / side
    if rng.random() < 0.5:
        # What was left is right now, of eyes and of the mouth.
        return pixels[:, ::-1].copy(), ((size, 0) + points * (-1, 1))[[1, 0, 2, 4, 3]]
    return pixels, points


@dataclasses.dataclass(frozen=True)
class Crop:
    """A crop with what was done to it.

    Attributes:
        clean: uint8 [size, size, 3], before.
        damaged: likewise, after.
        chain: families and severities, an occluder first.
        framing: how much of the face is cut off, from 0 to 1 (HIDDEN of its box).
        covered: share of the eyes, the nose, the mouth and the rest that something covers.
        causes: severity in [0, 1] of each cause, NaN where it cannot be told.
    """

    clean: Image
    damaged: Image
    chain: Chain
    framing: float
    covered: float
    causes: dict[str, float]


def make_crop(photo: Image, face: Face, other: tuple[Image, Face], rng: Rng, size: int) -> Crop:
    """A crop of a face with damage drawn at random.

    Args:
        photo: uint8 RGB [H, W, 3].
        face: where the face is.
        other: another photograph, of which occluders are made.
        rng: of everything random.
        size: side of the crop in pixels.
    """
    framing = float(max(rng.random(), 0.01)) if rng.random() < _BAD_CROPS else 0.0
    clean, points = cut(photo, face, HIDDEN * framing, rng, size)
    before, opacity, first = clean, np.zeros((size, size), np.float32), list[tuple[str, float]]()
    if rng.random() < _OCCLUDED:
        kind, severity = draw_occluder(rng)
        head, _ = cut(*other, 0, rng, size)
        before, opacity = occlude(clean, points, head, kind, severity, rng)
        first = [(kind, severity)]
    drawn = draw_chain(rng)
    chain = [] if first and rng.random() < _ALONE else drawn
    seed = int(rng.integers(2**63))
    damaged = apply_chain(before, chain, seed)
    causes = damage.severities(before, chain, seed, damaged)
    natural = covered(opacity, points)
    if first:
        causes["occlusion"] = float(np.fmax(causes["occlusion"], min(1.0, SEVERE_COVER * natural)))
    if chain and chain[0][0] == "occlusion":
        patched = (apply_chain(before, chain[:1], seed) != before).any(axis=2)
        natural = covered(np.maximum(opacity, patched), points)
    causes |= {"pose": damage.UNKNOWN if face.pose is None else face.pose, "framing": framing}
    return Crop(clean, damaged, [*first, *chain], framing, natural, causes)


def draw_other(faces: list[Face], index: int, rng: Rng) -> int:
    """Which face to make the occluders of another one of: of the same side of the split, or itself."""
    own = faces[index]
    alike = [number for number, face in enumerate(faces) if face.split == own.split and own.split]
    return int(rng.choice(alike)) if alike else index
