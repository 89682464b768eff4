"""What an image was given."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Score:
    """What an image was given.

    Attributes:
        path: as it was given; None for bytes and arrays.
        score: 0 to 1, higher is better: the mean of the members; None unless `status` is `ok`.
        members: each member's own score by name; empty unless `status` is `ok`.
        width: of the upright image in pixels, where its header told.
        height: likewise.
        status: `ok`, or why there is no score, as in the output of `fiqa-trt score`.
        error: one line for every status but `ok`.
        causes: how much of each cause there is, from 0 to 1, by name; empty unless `status` is `ok` and the engine
            tells of causes.
        cause: which of them is farthest above its threshold; None if none is.
    """

    path: str | None
    score: float | None
    members: dict[str, float]
    width: int | None
    height: int | None
    status: str
    error: str | None
    causes: dict[str, float] = dataclasses.field(default_factory=dict)
    cause: str | None = None
