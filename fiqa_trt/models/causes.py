"""What can be wrong with a face, and how sure a network must be to say so. No torch here."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MEANINGS = {
    "blur": "out of focus, moved or smoothed over",
    "noise": "grain of the sensor, specks",
    "compression": "blocks and rings of JPEG or WebP",
    "resolution": "few pixels, enlarged",
    "light": "too dark, too bright, or lit from one side",
    "contrast": "haze, grey in grey",
    "color": "a cast over all colors",
    "occlusion": "something in front of the face: a hand, a mask, sunglasses, another head",
    "pose": "turned away, or tilted up or down",
    "framing": "cut off, too small, or off the center",
}
"""What each cause is, by name, in the order of the columns."""
CAUSES = tuple(MEANINGS)
SUPERLATIVES = {
    "blur": "The most blurred",
    "noise": "The noisiest",
    "compression": "The most compressed",
    "resolution": "The lowest in resolution",
    "light": "The worst lit",
    "contrast": "The lowest in contrast",
    "color": "The strongest casts of color",
    "occlusion": "The most occluded",
    "pose": "The most turned away",
    "framing": "The worst framed",
}
"""What the images are that have the most of each."""
DEFAULT_THRESHOLD = 0.5

_KEY = "causes"
_NAME = re.compile(r"[a-z][a-z0-9_]*")


@dataclasses.dataclass(frozen=True)
class Causes:
    """The causes that a network tells of; none by default.

    Attributes:
        names: in the order of its output.
        thresholds: severity, from 0 to 1, above which each of them is named.
    """

    names: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "thresholds", tuple(map(float, self.thresholds)))
        if len(self.names) != len(self.thresholds) or len(set(self.names)) < len(self.names):
            raise ValueError(f"{len(self.thresholds)} thresholds for the causes {', '.join(self.names)}")
        if wrong := [name for name in self.names if not _NAME.fullmatch(name)]:
            raise ValueError(f"a cause named {wrong[0]!r}")
        if not all(0 <= value <= 1 for value in self.thresholds):
            raise ValueError(f"thresholds of causes are {self.thresholds}, not from 0 to 1")

    def worst(self, severities: npt.NDArray[np.float32]) -> list[str | None]:
        """Of each row of severities [N, causes] which is farthest above its threshold; None where none is above."""
        import numpy as np

        above = severities - np.array(self.thresholds, np.float32)
        places = above.argmax(axis=1)
        return [self.names[place] if row[place] > 0 else None for place, row in zip(places, above, strict=True)]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def untuned(cls, names: Sequence[str] = CAUSES) -> Causes:
        """Of a network whose thresholds nobody has measured."""
        return cls(tuple(names), (DEFAULT_THRESHOLD,) * len(names))

    @classmethod
    def of(cls, metadata: Mapping[str, str] | None) -> Causes:
        """What a checkpoint's metadata tells; none by default. Raises ValueError if it is damaged."""
        text = (metadata or {}).get(_KEY)
        try:
            return cls() if text is None else cls.by_name(json.loads(text))
        except RecursionError as exc:
            raise ValueError(f"`{_KEY}` is not a threshold for each cause") from exc

    def metadata(self) -> dict[str, str]:
        """What `of` reads, for a checkpoint's metadata; empty if there are none."""
        return {_KEY: json.dumps(self.named())} if self else {}

    @classmethod
    def by_name(cls, found: object) -> Causes:
        """From a threshold for each name, as `named` gives it. Raises ValueError unless it is that."""
        # A bool is an int, and one of hundreds of digits no float.
        if not isinstance(found, dict) or not all(
            type(each) in (int, float) and 0 <= each <= 1 for each in found.values()
        ):
            raise ValueError(f"`{_KEY}` is not a threshold from 0 to 1 for each cause")
        return cls(tuple(found), tuple(found.values()))

    def named(self) -> dict[str, float]:
        """Thresholds by name."""
        return dict(zip(self.names, self.thresholds, strict=True))


NONE = Causes()
"""Of a network that tells of none."""
