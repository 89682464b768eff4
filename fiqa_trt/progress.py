"""How far a run is; what the work reports and the command line shows."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Progress:
    """Items done, of how many, how many of them failed, and how many were done before this process began."""

    done: int
    total: int
    failed: int = 0
    before: int = 0
