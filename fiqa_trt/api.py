"""What `import fiqa_trt` offers: scoring images at hand, scoring data sets, filtering. The code of the command line."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fiqa_trt.curation import delivery
from fiqa_trt.curation import select as filtering
from fiqa_trt.curation.kept import Kept
from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS
from fiqa_trt.errors import UsageError
from fiqa_trt.executors.base import Executor, Setup
from fiqa_trt.executors.in_process import InProcess
from fiqa_trt.executors.processes import Processes, parse_devices
from fiqa_trt.inputs.source import Source
from fiqa_trt.progress import Report, Say, silent
from fiqa_trt.runs import score as scoring
from fiqa_trt.runs.update import update_dataset
from fiqa_trt.scorer import Scorer
from fiqa_trt.scores.grouping import PARENT
from fiqa_trt.scores.score import Score


def score_dataset(
    inputs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    list_file: str | os.PathLike[str] | None = None,
    path_column: str | None = None,
    all_files: bool = False,
    limit: int | None = None,
    image_column: str | None = None,
    device: str = "auto",
    devices: str | None = None,
    precision: str = "auto",
    engine: str = "auto",
    batch: int | None = None,
    decoder: str = "auto",
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    unit_rows: int = scoring.UNIT_ROWS,
    restart: bool = False,
    update: bool = False,
    keep_gone: bool = False,
    report: Report = silent,
    say: Say = silent,
) -> scoring.Summary:
    """`fiqa-trt score`: every image of `inputs` into one file; goes on by itself with what an earlier call left.

    Args:
        inputs: folders, files or shards; empty with `list_file`.
        output: .parquet, .csv or .jsonl.
        list_file: a .txt, .csv, .tsv or .parquet list instead of `inputs`.
        path_column: the list's column of paths, if it is a table; by default it is recognised.
        all_files: take every file of a folder, whatever its suffix.
        limit: only the first so many.
        image_column: of tables of images.
        device: see `Scorer`, like `precision`, `engine`, `batch`, `decoder`, `threads` and `max_pixels`.
        devices: `0,1` or `all`, a process for each; they need an importable `__main__`, as all of multiprocessing does.
        precision: see above.
        engine: see above.
        batch: see above.
        decoder: see above.
        threads: see above.
        max_pixels: see above.
        unit_rows: the most rows that a kill can cost.
        restart: forget an earlier run and replace its output.
        update: of a finished output, score only what is new or changed since; see `updating.update_dataset`.
        keep_gone: with `update`, keep the rows of inputs that are gone.
        report: receives the progress after every batch.
        say: hears, in lines, what one should know of.

    Raises:
        FiqaError: see `fiqa_trt.errors`.
    """
    if update and (restart or limit):
        raise UsageError("update=True takes all inputs, and what is there already: no limit, no restart")
    given = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    listed = None if list_file is None else os.fspath(list_file)
    source = Source(tuple(os.fspath(path) for path in given), listed, all_files, limit, image_column, path_column)
    target = Path(output)
    threads = threads or len(os.sched_getaffinity(0))
    setup = Setup(device, precision, engine, batch, decoder, threads, max_pixels)

    def opened() -> Executor:
        if devices is None:
            return InProcess.open(setup, say)
        return Processes(parse_devices(devices), setup, say)

    options = scoring.Options(unit_rows, restart)
    if update:
        return update_dataset(source, target, opened, options, report, say, keep_gone=keep_gone)
    return scoring.score_dataset(source, target, opened, options, report, say)


__all__ = ["Filtered", "Score", "Scorer", "filter_scores", "score_dataset"]


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
        options: dict[str, Any] = {"root": root, "shard_size": shard_size, "companions": companions, "update": update}
        kept = Kept(Path(scores), selection.mask, image_column)
        delivered = delivery.deliver(kept, Path(output), way, restart=restart, report=report, **options)
    return Filtered(selection, delivered)
