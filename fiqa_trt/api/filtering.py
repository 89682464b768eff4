"""From Python: choosing rows of a scores file and delivering their images. The code of `fiqa-trt filter`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from fiqa_trt.curation import delivery
from fiqa_trt.curation import select as filtering
from fiqa_trt.progress import Report, silent
from fiqa_trt.scores.grouping import PARENT


@dataclasses.dataclass(frozen=True)
class Filtered:
    """What `filter_scores` kept.

    Attributes:
        selection: the rows, and why the others were dropped.
        delivered: what was written; None without an output.
    """

    selection: filtering.Selection
    delivered: delivery.Delivered | None


def filter_scores(
    scores: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    min_score: float | None = None,
    max_disagreement: float | None = None,
    per_group: int | str | None = None,
    group_by: str = PARENT,
    keep: int | str | None = None,
    keep_at_least: int = 0,
    way: str | None = None,
    root: str | None = None,
    shard_size: int = delivery.SHARD_SIZE,
    image_column: str | None = None,
    companions: str | None = None,
    update: bool = False,
    restart: bool = False,
    report: Report = silent,
) -> Filtered:
    """`fiqa-trt filter`: choose rows of a scores file and, with an output, deliver their images.

    Args:
        scores: what `score_dataset` wrote.
        output: see `delivery.deliver`, like `way`, `root`, `shard_size`, `image_column`, `companions`,
            `update`, `restart` and `report`; None only chooses.
        min_score: see `filtering.Rules`, like the next ones.
        max_disagreement: see above.
        per_group: a number, or a share like `50%`.
        group_by: see above.
        keep: of all: a number, or a share like `80%`.
        keep_at_least: see above.
        way: see above.
        root: see above.
        shard_size: see above.
        image_column: see above.
        companions: see above.
        update: see above.
        restart: see above.
        report: see above.

    Raises:
        FiqaError: see `fiqa_trt.errors`.
    """

    def amount(value: int | str | None) -> filtering.Amount | None:
        return None if value is None else filtering.Amount.parse(str(value))

    rules = filtering.Rules(min_score, max_disagreement, amount(per_group), amount(keep), keep_at_least, group_by)
    selection = filtering.select(Path(scores), rules)
    delivered = None
    if output is not None:
        options: dict[str, Any] = {"root": root, "shard_size": shard_size, "image_column": image_column}
        options |= {"companions": companions, "update": update}
        delivered = delivery.deliver(
            Path(scores), selection.mask, Path(output), way, restart=restart, report=report, **options
        )
    return Filtered(selection, delivered)
