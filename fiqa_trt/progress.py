"""How far a run is, and who hears of it: what the work reports and the command line shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Progress:
    """Items done, of how many, how many of them failed, how many were done before this process began, and who is at
    work, in words, where that may change.
    """

    done: int
    total: int
    failed: int = 0
    before: int = 0
    at_work: str = ""


Report = Callable[[Progress], None]
"""Receives the progress after every batch."""
Count = Callable[[int, int], None]
"""Receives of each batch its rows and how many of them failed."""
Say = Callable[[str], None]
"""Hears, in lines, of what the user should know."""


def silent(*told: object) -> None:
    """The default of all three."""
