"""What the damage done to a crop means in causes: which of them, how much, and which cannot be seen any more."""

from __future__ import annotations

import numpy as np

from fiqa_trt.models.causes import CAUSES
from fiqa_trt.training.degradations import Chain, Image, apply_chain

UNKNOWN = float("nan")
CAUSE_COLUMN = "cause_"
_BLUR, _NOISE, _COMPRESSION, _RESOLUTION = ("blur",), ("noise",), ("compression",), ("resolution",)
_LIGHT, _CONTRAST, _COLOR, _OCCLUSION = ("light",), ("contrast",), ("color",), ("occlusion",)

NAMED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("soft_face", "defocus_blur", "motion_blur", "gaussian_blur", "over_smooth", "median_smear"), _BLUR
    ),
    **dict.fromkeys(("sensor_noise", "gaussian_noise", "salt_and_pepper"), _NOISE),
    **dict.fromkeys(("webp", "jpeg"), _COMPRESSION),
    **dict.fromkeys(("low_resolution", "pixelate"), _RESOLUTION),
    "low_resolution_jpeg": _RESOLUTION + _COMPRESSION,
    **dict.fromkeys(("uneven_light", "over_exposure", "low_light"), _LIGHT),
    **dict.fromkeys(("haze", "low_contrast"), _CONTRAST),
    "colour_cast": _COLOR,
    "occlusion": _OCCLUSION,
}
"""Causes of each family of damage; `interlace`, `posterise` and `over_sharpen` name none."""

# The root of the mean square by which a picture changes, in levels, if the damage of a cause is left out: below it
# nobody, a network neither, can tell from the picture whether it was there.
_SEEN = 2.0


def of_families(chain: Chain) -> dict[str, float]:
    """Severity by cause, the largest of its families; causes without any are left out."""
    found = dict[str, float]()
    for family, severity in chain:
        for cause in NAMED.get(family, ()):
            found[cause] = max(found.get(cause, 0), severity)
    return found


def severities(image: Image, chain: Chain, seed: int, result: Image) -> dict[str, float]:
    """Severity in [0, 1] of each cause that families have; UNKNOWN where later, stronger damage hides it.

    Args:
        image: before the chain.
        chain: what was applied to it.
        seed: with this one.
        result: what it gave.
    """
    found = of_families(chain)
    for cause in found:
        own = {family for family in NAMED if cause in NAMED[family]}
        other = apply_chain(image, chain, seed, without=own)
        change = np.subtract(result, other, dtype=np.float32)
        if float(np.sqrt(np.mean(change * change))) < _SEEN:
            found[cause] = UNKNOWN
    return {cause: found.get(cause, 0.0) for cause in CAUSES if cause not in ("pose", "framing")}
