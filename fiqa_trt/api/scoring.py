"""From Python: scoring data sets. The code of `fiqa-trt score`."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence

from fiqa_trt.decoding.base import DEFAULT_MAX_PIXELS
from fiqa_trt.errors import UsageError
from fiqa_trt.executors.base import Setup
from fiqa_trt.executors.cluster import Cluster
from fiqa_trt.executors.registry import open_executor
from fiqa_trt.inputs.read_ahead import REQUESTS
from fiqa_trt.inputs.source import Source
from fiqa_trt.progress import Report, Say, silent
from fiqa_trt.runs import retry, run
from fiqa_trt.runs import score as scoring
from fiqa_trt.runs.update import update_dataset
from fiqa_trt.scores.files import read_schema
from fiqa_trt.scores.members import causes_of
from fiqa_trt.storage.places import Place, place_of
from fiqa_trt.storage.registry import is_stored


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
    cluster: Cluster | str | None = None,
    precision: str = "auto",
    engine: str = "auto",
    batch: int | None = None,
    decoder: str = "auto",
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    requests: int = REQUESTS,
    causes: bool = False,
    unit_rows: int = run.UNIT_ROWS,
    restart: bool = False,
    update: bool = False,
    keep_gone: bool = False,
    command: str = "",
    report: Report = silent,
    say: Say = silent,
) -> run.Summary:
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
        cluster: a Ray cluster whose replicas score: `auto`, `local` or `HOST:PORT`, or a `Cluster` that says how many
            they are and what each takes; like `devices` in what it needs.
        precision: see above.
        engine: see above.
        batch: see above.
        decoder: see above.
        threads: see above.
        max_pixels: see above.
        requests: to object stores, at a time and process.
        causes: say of each image what is wrong with it as well; with `update`, as the output has it.
        unit_rows: the most rows that a kill can cost.
        restart: forget an earlier run and replace its output.
        update: of a finished output, score only what is new or changed since; see `runs.update.update_dataset`.
        keep_gone: with `update`, keep the rows of inputs that are gone.
        command: recorded in the output, for whoever wonders how it was made.
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
    target = place_of(output)
    if cluster is not None and devices is not None:
        raise UsageError("give either devices or a cluster")
    workers = threads or len(os.sched_getaffinity(0))
    told = causes or (update and _tells_causes(target))
    setup = Setup(device, precision, engine, batch, decoder, workers, max_pixels, requests, causes=told)
    asked = None if cluster is None else _asked(cluster, threads, [os.fspath(path) for path in (*given, output)])
    opened = functools.partial(open_executor, setup, say, devices=devices, cluster=asked)
    options = run.Options(unit_rows, restart, command)
    if update:
        return update_dataset(source, target, opened, options, report, say, keep_gone=keep_gone)
    return scoring.score_dataset(source, target, opened, options, report, say)


def _tells_causes(output: Place) -> bool:
    """Whether the rows of a finished output tell of causes. Raises InputError if it cannot be read."""
    return output.is_file() and bool(causes_of(read_schema(output, ["path"])))


def _asked(cluster: Cluster | str, threads: int | None, paths: Sequence[str]) -> Cluster:
    """A cluster as it is asked for, with what it must know of the paths."""
    found = Cluster(cluster) if isinstance(cluster, str) else cluster
    local = next((path for path in paths if not is_stored(path)), "")
    return dataclasses.replace(found, threads=threads, local=local)


def retry_failed(
    output: str | os.PathLike[str],
    *,
    image_column: str | None = None,
    device: str = "auto",
    devices: str | None = None,
    precision: str = "auto",
    engine: str = "auto",
    batch: int | None = None,
    decoder: str = "auto",
    threads: int | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    requests: int = REQUESTS,
    unit_rows: int = run.UNIT_ROWS,
    command: str = "",
    report: Report = silent,
    say: Say = silent,
) -> run.Summary:
    """`fiqa-trt score --retry-failed`: score the rows of a finished output again, in place, that have no score.

    All other rows, their order and further columns stay as they are.

    Args:
        output: what `score_dataset` wrote.
        image_column: of tables of images; by default the one that the output records.
        device: see `score_dataset`, like the rest.
        devices: see above.
        precision: see above; it must be the one that the other rows are from, like the engine's model.
        engine: see above.
        batch: see above.
        decoder: see above.
        threads: see above.
        max_pixels: see above.
        requests: see above.
        unit_rows: see above.
        command: see above.
        report: see above.
        say: see above.

    Raises:
        FiqaError: see `fiqa_trt.errors`.
    """
    workers, target = threads or len(os.sched_getaffinity(0)), place_of(output)
    causes = _tells_causes(target)
    setup = Setup(device, precision, engine, batch, decoder, workers, max_pixels, requests, causes=causes)
    opened = functools.partial(open_executor, setup, say, devices=devices)
    options = run.Options(unit_rows, command=command)
    return retry.retry_failed(target, opened, options, report, say, image_column)
