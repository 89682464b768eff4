"""fiqa-trt: quality scores for face crops by the million."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fiqa_trt.api import Filtered, Score, Scorer, filter_scores, score_dataset

__version__ = "0.1.0"
__all__ = ["Filtered", "Score", "Scorer", "__version__", "filter_scores", "score_dataset"]


def __getattr__(name: str) -> Any:
    # On demand, so that `fiqa-trt --help` does not load what scoring needs.
    if name in __all__:
        from fiqa_trt import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
