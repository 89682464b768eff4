"""From Python: choosing rows of a scores file and delivering their images. The code of `fiqa-trt filter`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fiqa_trt.curation import delivery
from fiqa_trt.curation import select as filtering
from fiqa_trt.curation.kept import Kept
from fiqa_trt.progress import Report, silent
from fiqa_trt.scores.grouping import PARENT
from fiqa_trt.storage.places import place_of


@dataclasses.dataclass(frozen=True)
class Filtered:
    """What `filter_scores` kept.

    Attributes:
        selection: the rows, and why the others were dropped.
        delivered: what was written, or in a dry run what would be; None where there was nothing to write to.
    """

    selection: filtering.Selection
    delivered: delivery.Delivered | None


def filter_scores(
    scores: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    min_score: float | None = None,
    max_disagreement: float | None = None,
    max_cause: Mapping[str, float] | Sequence[tuple[str, float]] = (),
    drop_cause: Sequence[str] = (),
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
    dry_run: bool = False,
    chosen: Callable[[filtering.Selection], None] = silent,
    report: Report = silent,
) -> Filtered:
    """`fiqa-trt filter`: choose rows of a scores file and, with an output, deliver their images.

    Args:
        scores: what `score_dataset` wrote.
        output: see `delivery.deliver`, like `way`, `root`, `shard_size`, `image_column`, `companions`,
            `update`, `restart`, `dry_run` and `report`; None only chooses, and in a dry run with a `way` also measures.
        min_score: see `curation.select.Rules`, like the next ones.
        max_disagreement: see above.
        max_cause: by the name of a cause, or pairs of a name and a severity.
        drop_cause: names of causes.
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
        dry_run: see above.
        chosen: receives the selection before anything is delivered.
        report: see above.

    Raises:
        FiqaError: see `fiqa_trt.errors`.
    """

    def amount(value: int | str | None, option: str) -> filtering.Amount | None:
        return None if value is None else filtering.Amount.parse(str(value), option)

    best, of_all = amount(per_group, "--per-group "), amount(keep, "--keep ")
    most = tuple(max_cause.items() if isinstance(max_cause, Mapping) else max_cause)
    rules = filtering.Rules(min_score, max_disagreement, best, of_all, keep_at_least, group_by, most, tuple(drop_cause))
    selection = filtering.select(place_of(scores), rules)
    chosen(selection)
    kept, delivered = Kept(place_of(scores), selection.mask, image_column), None
    if output is not None:
        options: dict[str, Any] = {"root": root, "shard_size": shard_size, "companions": companions}
        options |= {"update": update, "restart": restart, "dry_run": dry_run}
        delivered = delivery.deliver(kept, place_of(output), way, report=report, **options)
    elif dry_run and way is not None:
        delivered = delivery.measure(kept, way, root)
    return Filtered(selection, delivered)


def undo_move(folder: str | os.PathLike[str], *, report: Report = silent) -> delivery.Undone:
    """`fiqa-trt filter --undo`: take back what `filter_scores` has moved into a folder; see `delivery.undo_move`.

    Args:
        folder: as it was left, finished or not.
        report: receives the files done.

    Raises:
        FiqaError: see `fiqa_trt.errors`.
    """
    return delivery.undo_move(Path(folder), report)
