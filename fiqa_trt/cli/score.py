"""`fiqa-trt score`."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from fiqa_trt.cli.common import PlaceType, engines, interruptible, quiet_and_json, speaker
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.quiet import without_complaints
from fiqa_trt.cli.streams import complain, give
from fiqa_trt.decoding.registry import NAMES as DECODERS
from fiqa_trt.errors import number_of

if TYPE_CHECKING:
    from fiqa_trt.executors.cluster import Cluster
    from fiqa_trt.runs.run import Summary
    from fiqa_trt.storage.places import Place

BEYOND_MAX_FAILED = 3


def _max_failed(ctx: click.Context, param: click.Parameter, value: str | None) -> Callable[[int], float] | None:
    """`N` or `P%` as a function from the number of rows to the number of failures that is still accepted."""
    if value is None:
        return None
    percent = value.endswith("%")
    try:
        number = float(value.removesuffix("%"))
    except ValueError:
        number = math.nan
    if not (0 <= number < math.inf and (number <= 100 if percent else number.is_integer())):
        raise click.BadParameter(f"{value!r} is neither a number of rows like 100 nor a percentage like 1%", ctx, param)
    return lambda rows: rows * number / 100 if percent else number


@click.command(short_help="Score images into one file.")
@click.argument("inputs", metavar="INPUT...", nargs=-1, type=click.Path())
@click.option("-o", "--output", metavar="OUT", type=PlaceType(), help=".parquet, .csv or .jsonl.")
@click.option(
    "--list",
    "list_file",
    metavar="FILE",
    type=click.Path(),
    help=".txt (a path a line), .csv, .tsv or .parquet (a column of paths; others are carried along).",
)
@click.option("--path-column", metavar="NAME", help="The list's column of paths.  [default: path, image, ...]")
@click.option("--image-column", metavar="NAME", help="Of Parquet or Arrow tables of images.  [default: image]")
@click.option("--all-files", is_flag=True, help="Try every file of a folder, whatever its suffix.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many inputs.")
@click.option("--restart", is_flag=True, help="Forget an unfinished run; replace an existing output.")
@click.option(
    "--retry-failed",
    metavar="OUT",
    type=PlaceType(),
    help="Score the failed rows of a finished output again, in place.",
)
@click.option("--update", is_flag=True, help="Of a finished OUT, score only what is new or changed since.")
@click.option("--keep-gone", is_flag=True, help="With --update: keep the rows of inputs that are gone.")
@click.option("--causes", is_flag=True, help="Say what is wrong with each: columns cause, cause_blur, ...")
@click.option("--max-failed", metavar="N|P%", callback=_max_failed, help="Exit with 3 if more rows than this failed.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="Only auto falls back.")
@click.option("--devices", metavar="0,1,...|all|auto", help="A process for each of several GPUs (or cpu,cpu).")
@click.option("--cluster", metavar="auto|local|HOST:PORT", help="Replicas of a Ray cluster.")
@click.option("--replicas", type=click.IntRange(min=1), help="With --cluster.  [default: as many as fit]")
@click.option("--gpus-per-replica", type=click.FloatRange(0, 1), help="With --cluster, as 0.5.  [default: 1; CPU: 0]")
@click.option("--cpus-per-replica", type=click.IntRange(min=1), help="With --cluster.  [default: a share of the node]")
@click.option("--memory-per-replica", metavar="GB", type=click.FloatRange(0, min_open=True), help="With --cluster.")
@click.option("--shared-filesystem", is_flag=True, help="With --cluster: all nodes see the same files.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "fp16", "int8"]))
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    metavar=engines(),
    help="DIR: of build.",
)
@click.option(
    "--decoder",
    default="auto",
    show_default=True,
    type=click.Choice(DECODERS),
    help="auto: DALI on a GPU.",
)
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Images per engine call.  [default: the engine's]")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads that decode.  [default: one a core]")
@click.option(
    "--max-pixels",
    type=click.IntRange(min=1),
    default=64_000_000,
    show_default=True,
    help="Refuse larger images by their header.",
)
@click.option(
    "--requests",
    type=click.IntRange(1, 1024),
    default=64,
    show_default=True,
    help="To object stores, at a time.",
)
@click.option(
    "--unit-size",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="Rows of a unit of work: the most a kill can cost.",
)
@quiet_and_json
def command(
    inputs: tuple[str, ...],
    output: Place | None,
    list_file: str | None,
    path_column: str | None,
    image_column: str | None,
    all_files: bool,
    limit: int | None,
    restart: bool,
    retry_failed: Place | None,
    update: bool,
    keep_gone: bool,
    causes: bool,
    max_failed: Callable[[int], float] | None,
    device: str,
    devices: str | None,
    cluster: str | None,
    replicas: int | None,
    gpus_per_replica: float | None,
    cpus_per_replica: int | None,
    memory_per_replica: float | None,
    shared_filesystem: bool,
    precision: str,
    engine: str,
    decoder: str,
    batch_size: int | None,
    workers: int | None,
    max_pixels: int,
    requests: int,
    unit_size: int,
    quiet: bool,
    as_json: bool,
) -> None:
    """Score every image of INPUT into one file, a row for each.

    INPUT: folders (searched recursively), files, .tar and .zip shards, .parquet or .arrow tables of images, any of them
    in an object store (s3://, gs://, az://, hf://), or - for paths on standard input. An interrupted run goes on when
    the same command is given again. Exit codes: 0 finished, 1 the run failed, 2 usage, 3 finished beyond --max-failed
    or nothing could be scored, 130 interrupted.

    \b
    Examples:
      fiqa-trt score /dataset -o scores.parquet
      fiqa-trt score --list faces.csv -o scores.csv --max-failed 1%
      find /dataset -name '*.jpg' | fiqa-trt score - -o scores.jsonl
      fiqa-trt score shards/ crops-000.tar train.parquet -o scores.parquet --devices all
      fiqa-trt score --update /dataset -o scores.parquet
      fiqa-trt score /dataset -o scores.parquet --causes
      fiqa-trt score --retry-failed scores.parquet
    """
    if (output is None) == (retry_failed is None):
        raise click.UsageError("give either -o OUT or --retry-failed OUT")
    if retry_failed is not None and any((inputs, list_file, path_column, all_files, limit, restart, update, causes)):
        raise click.UsageError(
            "--retry-failed takes its inputs from OUT, and tells of causes where OUT does: no INPUT, --list, "
            "--path-column, --all-files, --limit, --restart, --update, --causes"
        )
    if update and (restart or limit):
        raise click.UsageError("--update takes all inputs, and what is there already: no --limit, no --restart")
    if keep_gone and not update:
        raise click.UsageError("--keep-gone goes with --update")
    if output is not None and bool(inputs) == bool(list_file):
        raise click.UsageError("give either INPUT... or --list FILE")

    if devices is not None and device != "auto":
        raise click.UsageError("give either --device or --devices")
    sizes = {"replicas": replicas, "gpus": gpus_per_replica, "cpus": cpus_per_replica, "memory": memory_per_replica}
    on = _cluster(cluster, sizes, shared_filesystem=shared_filesystem)
    if on is not None and devices is not None:
        raise click.UsageError("give either --devices or --cluster: a replica of a cluster has one device")
    if on is not None and retry_failed is not None:
        raise click.UsageError("--retry-failed scores on this machine: no --cluster")

    from fiqa_trt.api import retry_failed as retry
    from fiqa_trt.api import score_dataset
    from fiqa_trt.shell import command_line
    from fiqa_trt.storage.base import unsigned

    say, bar = speaker(quiet), ProgressLine("images", quiet=quiet)
    # Pillow warns of many a damaged file; its row says what matters.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    how: dict[str, Any] = {"image_column": image_column, "device": device, "devices": devices, "precision": precision}
    how |= {"engine": engine, "batch": batch_size, "decoder": decoder, "threads": workers, "max_pixels": max_pixels}
    command = command_line("fiqa-trt", *map(unsigned, sys.argv[1:]))
    how |= {"requests": requests, "unit_rows": unit_size, "command": command, "report": bar, "say": say}
    with without_complaints(), interruptible(bar, "run the same command again to resume"):
        if output is None:
            assert retry_failed is not None
            summary = retry(retry_failed, **how)
        else:
            summary = score_dataset(
                inputs,
                output,
                list_file=list_file,
                path_column=path_column,
                all_files=all_files,
                limit=limit,
                restart=restart,
                update=update,
                keep_gone=keep_gone,
                causes=causes,
                cluster=on,
                **how,
            )
    say(describe(summary))
    if as_json:
        give(json.dumps({**dataclasses.asdict(summary), "failed": summary.failed}))
    if summary.failed == summary.images or (max_failed is not None and summary.failed > max_failed(summary.images)):
        complain(f"{summary.failed:,} of {number_of(summary.images, 'row')} failed")
        sys.exit(BEYOND_MAX_FAILED)


def _cluster(address: str | None, sizes: dict[str, Any], *, shared_filesystem: bool) -> Cluster | None:
    """What the options of a cluster ask for. Raises UsageError for those without one."""
    if address is None:
        if shared_filesystem or any(size is not None for size in sizes.values()):
            raise click.UsageError("--replicas, --...-per-replica and --shared-filesystem go with --cluster")
        return None
    from fiqa_trt.executors.cluster import Cluster

    return Cluster(address, **sizes, shared_filesystem=shared_filesystem)


def describe(summary: Summary) -> str:
    """The end summary, a few lines for a person."""
    now = f", {summary.scored_now:,} of them scored now" if 0 < summary.scored_now < summary.images else ""
    rate = f", {summary.scored_now / summary.seconds:,.0f} images/s" if summary.scored_now and summary.seconds else ""
    lines = [f"{number_of(summary.images, 'image')}{now}{rate}, {summary.failed:,} failed"]
    lines += [f"  {node}: {speed:,.0f} images/s" for node, speed in summary.nodes.items()]
    lines += [f"  {count:,} {status}" for status, count in summary.statuses.items() if status != "ok"]
    if summary.unforeseen:
        lines.append(
            f"{summary.unforeseen:,} of the errors should not occur (see `unforeseen` in them); please report them"
        )
    if summary.quantiles:
        lines.append("scores: " + "  ".join(f"{float(q):.0%} {value:.3f}" for q, value in summary.quantiles.items()))
    if summary.causes and (scored := summary.images - summary.failed):
        named = [f"{name} {count / scored:.1%}" for name, count in summary.causes.items() if count]
        none = f"none {1 - sum(summary.causes.values()) / scored:.1%}"
        lines.append("causes: " + ", ".join([*named, none]))
    return "\n".join(lines if summary.already else [*lines, f"written to {summary.output}"])
