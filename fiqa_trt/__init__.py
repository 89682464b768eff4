"""fiqa-trt: quality scores for face crops by the million."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fiqa_trt.version import __version__

if TYPE_CHECKING:
    from fiqa_trt.api import Filtered, Score, Scorer, filter_scores, retry_failed, score_dataset, undo_move

__all__ = ["Filtered", "Score", "Scorer", "__version__", "filter_scores", "retry_failed", "score_dataset", "undo_move"]


def __getattr__(name: str) -> Any:
    # On demand, so that `fiqa-trt --help` does not load what scoring needs.
    if name in __all__:
        from fiqa_trt import api

        return getattr(api, name)
    if name == "samples":  # where scripts know it from
        return importlib.import_module("fiqa_trt.machine.samples")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
