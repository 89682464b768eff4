"""What a model is, as far as its users need to know: frozen, and with a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json

from fiqa_trt.models.causes import NONE, Causes

MEMBERS = ("mobilenet_v3_small", "shufflenet_v2_x1_0")
"""Of the released ensemble, and of one that is trained; files say for themselves whose they are."""


def digest(value: object) -> str:
    """SHA-256 (64 hex digits) of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class PreprocessSpec:
    """How pixels are prepared. The reference implementation is Pillow's; see `fiqa_trt.decoding.cpu`.

    Attributes:
        size: side of the square input in pixels.
        resize: short edge to `size`, antialiased bilinear filter.
        crop: the centre `size` x `size`.
        orientation: EXIF orientation is applied before anything else.
        alpha: transparent pixels are composited over white.
    """

    size: int = 224
    resize: str = "short-edge-antialiased-bilinear"
    crop: str = "centre"
    orientation: str = "exif"
    alpha: str = "over-white"

    def digest(self) -> str:
        """Digest of every field; part of a run's fingerprint."""
        return digest(dataclasses.asdict(self))


@dataclasses.dataclass(frozen=True)
class ModelSpec:
    """A trained ensemble as the engines see it.

    Attributes:
        members: names of the members, in output order.
        mean: RGB mean that the network subtracts, for pixels scaled to [0, 1] (ImageNet's).
        std: RGB standard deviation that it divides by.
        preprocess: what happens before the network.
        causes: what it tells of besides the scores.
    """

    members: tuple[str, ...] = MEMBERS
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    preprocess: PreprocessSpec = PreprocessSpec()
    causes: Causes = NONE

    @property
    def outputs(self) -> dict[str, int]:
        """Columns of each output of the network, by its name where it has one."""
        scores = {"member_scores": len(self.members)}
        return {**scores, "causes": len(self.causes)} if self.causes else scores
