"""What the forms of delivery share: their account of what was done and what was not."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

from fiqa_trt.curation.delivery.companions import Companion
from fiqa_trt.inputs.formats import find_format
from fiqa_trt.outcomes import ImageError, Status

EXAMPLES = 20  # of skipped images are named


@dataclasses.dataclass(frozen=True)
class Delivered:
    """What was delivered.

    Attributes:
        output: where to.
        written: images or rows.
        already: files that an earlier call had delivered.
        skipped: images that could not be delivered, by reason.
        examples: a line for each of the first of them.
        bytes: of what was written, where that was looked at.
        companions: files that went along with the images.
        left_behind: kept images whose companions stayed where they are.
        left_kinds: extensions of those companions, most frequent first.
        shards: files that the images are in, of a delivery into tars.
        removed: images of an earlier call that were taken out of the folder.
        staying: images of earlier calls that stay in the folder though they are not among the kept rows.
    """

    output: str
    written: int
    already: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    examples: list[str] = dataclasses.field(default_factory=list)
    bytes: int = 0
    companions: int = 0
    left_behind: int = 0
    left_kinds: tuple[str, ...] = ()
    shards: int = 0
    removed: int = 0
    staying: int = 0


class Skips:
    """Counts what could not be delivered."""

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.examples = list[str]()

    def add(self, path: str, reason: str, detail: str = "") -> None:
        """Count one; what only concerns itself is the `detail`."""
        self.reasons[reason] += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(f"{path}: {reason}" + (f", {detail}" if detail else ""))

    def fail(self, path: str, error: ImageError) -> None:
        """Count one that could not be read."""
        status = error.outcome.status
        self.add(path, status.value, "" if status is Status.MISSING else error.outcome.error or "")


class LeftBehind:
    """Counts images whose companions stay where they are."""

    def __init__(self) -> None:
        self.images = 0
        self._kinds: Counter[str] = Counter()

    def add(self, companions: Sequence[Companion]) -> None:
        """Count an image, if it has any."""
        self.images += bool(companions)
        self._kinds.update(each.extension.lower() for each in companions)

    def kinds(self) -> tuple[str, ...]:
        """Of the companions, the most frequent first."""
        return tuple(kind for kind, _ in self._kinds.most_common(EXAMPLES))


def image_suffix(data: bytes) -> str:
    """What a file with these bytes is named; `.jpg` where that cannot be told."""
    found = find_format(data)
    return found.suffixes[0] if found else ".jpg"
