"""What an engine is checked with: a fixed batch of images, and how near to the FP32 reference its scores must come."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from fiqa_trt.errors import EngineError

Pixels = npt.NDArray[np.uint8]
Scores = npt.NDArray[np.float32]

PORTRAIT = Path(__file__).with_name("portrait.png")
SIZE = 224
_T = TypeVar("_T", bound=np.generic)
_SEED = 0
_LEVELS = 6


def portrait() -> Pixels:
    """Uint8 RGB [224, 224, 3]: a face from a public-domain portrait (NASA's Eileen Collins, 1999), undamaged."""
    with Image.open(PORTRAIT, formats=["PNG"]) as image:
        return np.asarray(image.convert("RGB"))


def verification_batch() -> Pixels:
    """Images that reach every range of the scores: uint8 [64, 224, 224, 3], the same on every machine.

    The portrait, eight kinds of damage to it at six levels, and fifteen random patterns from smooth to noise. Made with
    NumPy alone, so that no version of a codec or a resize filter can change a pixel.
    """
    # The legacy generator's streams are frozen; those of `default_rng` may change with NumPy.
    rng = np.random.RandomState(_SEED)
    face = portrait().astype(np.float64)
    grain = rng.normal(0, 1, face.shape)
    images = [face]
    for level in np.arange(1, _LEVELS + 1) / _LEVELS:
        dark, hazy, bright, flat = _tones(face, level)
        small = _stretched(_stretched(face, round(224 * 0.06**level)), SIZE)
        damaged = [_blurred(face, 8 * level**1.5), face + 60 * level * grain, dark, hazy, bright, small, flat]
        images += [*damaged, _hidden(face, level)]
    for cells in np.geomspace(3, SIZE, 15).astype(int):
        pattern = rng.randint(0, 256, (cells, cells, 3)).astype(np.float64)
        images.append(_stretched(pattern, SIZE) * rng.uniform(0.2, 1))
    return _levels(np.stack(images))


KNOWN = (0, 11, 12, 13, 15, 16)
"""Places in the verification batch of `known_crops`."""


def known_crops() -> Pixels:
    """Some images of the verification batch that differ much in their scores and take a few milliseconds to make.

    Uint8 [6, 224, 224, 3]: the portrait; too dark, hazy, too bright, flat; half hidden.
    """
    face, level = portrait(), 2 / _LEVELS
    tones = [_levels(values)[face] for values in _tones(np.arange(256.0), level)]
    return np.stack([face, *tones, _hidden(face, level)])


def _tones(levels: npt.NDArray[np.float64], level: float) -> list[npt.NDArray[np.float64]]:
    """Darkness, haze, too much light, lack of contrast, by how much from 0 to 1."""
    return [
        levels * (1 - 0.95 * level),
        levels * (1 - 0.9 * level) + 200 * level,
        np.minimum(levels * (1 + 3 * level), 255),
        128 + (levels - 128) * (1 - 0.95 * level),
    ]


def _hidden(face: npt.NDArray[_T], level: float) -> npt.NDArray[_T]:
    """Something in the way."""
    side, hidden = round(150 * level), face.copy()
    hidden[40 : 40 + side, 37 : 37 + side] = 90
    return hidden


def _levels(values: npt.NDArray[np.float64]) -> Pixels:
    return np.rint(np.clip(values, 0, 255)).astype(np.uint8)


def _blurred(image: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    reach = int(np.ceil(3 * sigma))
    kernel = np.exp(-((np.arange(-reach, reach + 1) / sigma) ** 2) / 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padding = [(reach, reach) if axis == this else (0, 0) for this in range(3)]
        padded = np.pad(image, padding, "reflect")
        image = sum(
            weight * np.take(padded, np.arange(start, start + SIZE), axis) for start, weight in enumerate(kernel)
        )
    return image


def _stretched(image: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Bilinear, without antialiasing."""
    for axis in (0, 1):
        count = image.shape[axis]
        places = np.clip((np.arange(size) + 0.5) * count / size - 0.5, 0, count - 1)
        low = np.floor(places).astype(int)
        share = (places - low).reshape((-1, 1) if axis else (-1, 1, 1))
        high = np.minimum(low + 1, count - 1)
        image = np.take(image, low, axis) * (1 - share) + np.take(image, high, axis) * share
    return image


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How near the scores of an engine (means over members) come to the reference's, and the severities of causes.

    Attributes:
        images: how many were compared.
        max: largest absolute difference.
        mean: mean absolute difference.
        srcc: Spearman's rank correlation.
        causes_max: largest absolute difference of a severity; None where there are no causes.
        causes_mean: their mean absolute difference, likewise.
    """

    images: int
    max: float
    mean: float
    srcc: float
    causes_max: float | None = None
    causes_mean: float | None = None

    def rounded(self) -> dict[str, float]:
        """As it is recorded."""
        known = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        values = {name: float(f"{value:.6g}") for name, value in known.items()}
        return {**values, "images": self.images}

    def __str__(self) -> str:
        """In a line."""
        scores = f"max {self.max:.2g}, mean {self.mean:.2g}, SRCC {self.srcc:.5f} on {self.images} images"
        if self.causes_max is None:
            return scores
        return f"{scores}; causes max {self.causes_max:.2g}, mean {self.causes_mean:.2g}"


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """What an engine of a precision must keep to, or it is not written."""

    max: float = 1.0
    mean: float = 1.0
    srcc: float = 0.0
    causes_max: float = 1.0
    causes_mean: float = 1.0

    def __str__(self) -> str:
        """Only what it limits."""
        names = ("max", "mean", "causes_max", "causes_mean")
        parts = [f"{n.replace('_', ' ')} <= {getattr(self, n):g}" for n in names if getattr(self, n) < 1]
        return ", ".join([*parts, f"SRCC >= {self.srcc:g}"] if self.srcc > 0 else parts)

    def holds(self, found: Fidelity) -> bool:
        """Whether an engine keeps to it."""
        scores = found.max <= self.max and found.mean <= self.mean and found.srcc >= self.srcc
        if found.causes_max is None or found.causes_mean is None:
            return scores
        return scores and found.causes_max <= self.causes_max and found.causes_mean <= self.causes_mean


TOLERANCES = {
    "fp32": Tolerance(max=1e-4, causes_max=1e-3),
    "fp16": Tolerance(max=1e-2, srcc=0.9995, causes_max=0.2, causes_mean=0.01),
    "int8": Tolerance(mean=0.02, srcc=0.99, causes_mean=0.06),
}
"""A severity says whether there is something, and so is steeper than a score: where it is in two minds, a sound engine
may be far from FP32 on one image. So it is the mean that limits it, and the maximum only what is broken. Of a network
with trained heads BF16 had 0.084 and 0.0029 (FP16 0.0062 and 0.0004), INT8 a mean of 0.032; with heads moved by a place
the mean is 0.15 and more.
"""


def compare(
    scores: Scores, reference: Scores, causes: Scores | None = None, of_causes: Scores | None = None
) -> Fidelity:
    """Fidelity of member scores [N, members] with a reference of the same shape, and of causes [N, causes] with theirs.

    Raises:
        EngineError: a score or a severity that is not a number.
    """
    given = [scores] if causes is None else [scores, causes]
    if not all(np.isfinite(each).all() for each in given):
        raise EngineError("the engine returned scores that are not numbers; build it with another --precision")
    ours, theirs = scores.mean(axis=1, dtype=np.float64), reference.mean(axis=1, dtype=np.float64)
    difference = np.abs(ours - theirs)
    found = Fidelity(len(ours), float(difference.max()), float(difference.mean()), _spearman(ours, theirs))
    if causes is None or of_causes is None or not causes.size:
        return found
    difference = np.abs(causes.astype(np.float64) - of_causes)
    return dataclasses.replace(found, causes_max=float(difference.max()), causes_mean=float(difference.mean()))


def _spearman(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """Spearman's correlation with mean ranks for ties; 0 where one side is constant. SciPy is not a dependency here."""

    def centred(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
        return np.asarray(ranks - ranks.mean())

    first, second = centred(x), centred(y)
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def check(agreement: Fidelity, precision: str, what: str, so: str = "was not written") -> None:
    """Raise EngineError, saying what comes of it, unless the agreement is within the tolerance of `precision`."""
    limit = TOLERANCES[precision]
    if not limit.holds(agreement):
        raise EngineError(f"{what} is too far from FP32, so it {so}: {agreement}; a {precision} engine needs {limit}")
