"""What `import fiqa_trt` offers, and what the command line calls: the only place that puts parts together.

Each name is loaded when it is used: filtering needs nothing of what scoring needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiqa_trt.api.filtering import Filtered, filter_scores, undo_move
    from fiqa_trt.api.scoring import retry_failed, score_dataset
    from fiqa_trt.scorer import Scorer
    from fiqa_trt.scores.score import Score

__all__ = ["Filtered", "Score", "Scorer", "filter_scores", "retry_failed", "score_dataset", "undo_move"]

_HOMES = {
    "Filtered": "fiqa_trt.api.filtering",
    "Score": "fiqa_trt.scores.score",
    "Scorer": "fiqa_trt.scorer",
    "filter_scores": "fiqa_trt.api.filtering",
    "retry_failed": "fiqa_trt.api.scoring",
    "score_dataset": "fiqa_trt.api.scoring",
    "undo_move": "fiqa_trt.api.filtering",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
