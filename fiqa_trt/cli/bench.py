"""`fiqa-trt bench`."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiqa_trt.cli.common import engines, quiet_and_json, speaker
from fiqa_trt.cli.streams import give
from fiqa_trt.decoding.registry import NAMES as DECODERS
from fiqa_trt.errors import InputError, UsageError, number_of
from fiqa_trt.progress import Say

if TYPE_CHECKING:
    from fiqa_trt.executors.base import Setup
    from fiqa_trt.inputs.source import Source
    from fiqa_trt.machine.benchmark import Benchmark


@click.command(short_help="Measure each stage of scoring, and all of it, on this machine.")
@click.argument("inputs", metavar="[INPUT]...", nargs=-1, type=click.Path())
@click.option("--list", "list_file", metavar="FILE", type=click.Path(), help="A list of images, as of score.")
@click.option("--path-column", metavar="NAME", help="The list's column of paths.  [default: path, image, ...]")
@click.option(
    "--size", default=224, show_default=True, type=click.IntRange(16, 4096), help="Of generated crops, in px."
)
@click.option("--images", default=2000, show_default=True, type=click.IntRange(min=1), help="Score so many.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="As of score.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "fp16", "int8"]))
@click.option("--engine", default="auto", show_default=True, metavar=engines())
@click.option("--decoder", default="auto", show_default=True, type=click.Choice(DECODERS))
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Images per engine call.  [default: the engine's]")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads that decode.  [default: one a core]")
@click.option("--requests", type=click.IntRange(1, 1024), default=64, show_default=True, help="As of score.")
@click.option("--image-column", metavar="NAME", help="Of Parquet or Arrow tables of images.  [default: image]")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the result as JSON (replaced if there).",
)
@click.option("--compare", type=click.Path(path_type=Path, dir_okay=False), help="An earlier -o to compare with.")
@click.option("--latency", is_flag=True, help="Time single images instead, from 1 thread and from 16 (p50, p95, p99).")
@quiet_and_json
def command(
    inputs: tuple[str, ...],
    list_file: str | None,
    path_column: str | None,
    size: int,
    images: int,
    device: str,
    precision: str,
    engine: str,
    decoder: str,
    batch_size: int | None,
    workers: int | None,
    requests: int,
    image_column: str | None,
    output: Path | None,
    compare: Path | None,
    latency: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Measure how fast listing, reading, decoding and the engine are by themselves, and a whole run.

    Without INPUT or --list, on crops that are generated for it. The bound is what the stages allow together: the
    slowest one where they overlap on different hardware, the harmonic sum where they share the processor's cores.
    Medians of three rounds; files come from the system's cache where it holds them.

    \b
    Examples:
      fiqa-trt bench
      fiqa-trt bench /dataset --images 20000 -o before.json
      fiqa-trt bench --size 112 --precision int8 --compare before.json
      fiqa-trt bench --latency
    """
    from fiqa_trt.executors.base import Setup
    from fiqa_trt.inputs.source import Source
    from fiqa_trt.machine.benchmark import generate, run_benchmark
    from fiqa_trt.storage.writing import check_output, write_text

    if latency and compare is not None:
        raise UsageError("--compare is of rates, and --latency measures none: leave one out")
    if output is not None:
        check_output(output, (output.suffix.lower(),))
    before = None if compare is None else _read(compare)
    say = speaker(quiet)
    threads = workers or len(os.sched_getaffinity(0))
    setup = Setup(device, precision, engine, batch_size, decoder, threads, requests=requests)
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with tempfile.TemporaryDirectory() as scratch:
        given = inputs or list_file
        source = Source(
            inputs if given else (scratch,), list_file, limit=images, image_column=image_column, path_column=path_column
        )
        what = source.describe() if given else f"generated JPEGs of {size} px"
        if not given:
            generate(Path(scratch), images, size)
        if latency:
            facts = _latency(source, setup, what, say)
            text = describe_latency(facts)
        else:
            result = run_benchmark(source, setup, what, say)
            facts = {**dataclasses.asdict(result), "bottleneck": result.bottleneck, "advice": result.advice()}
            text = describe(result, before)
    if output is not None:
        write_text(output, json.dumps(facts, indent=1) + "\n")
    give(json.dumps(facts) if as_json else text)


def _latency(source: Source, setup: Setup, what: str, say: Say) -> dict[str, Any]:
    """What `--latency` finds."""
    from fiqa_trt.inputs.source import list_inputs
    from fiqa_trt.machine.benchmark import sample_blobs
    from fiqa_trt.machine.latency import THREADS, measure_latency
    from fiqa_trt.scorer import Scorer

    paths = [path for table in list_inputs(source) for path in table.column(0).to_pylist()]
    with Scorer(
        setup.device, setup.precision, setup.engine, batch=setup.batch, decoder=setup.decoder, threads=setup.threads,
        say=say,
    ) as scorer:  # fmt: skip
        files = [blob for blob in sample_blobs(paths) if isinstance(blob, bytes)]
        good = [file for file, score in zip(files, scorer.score(files), strict=True) if score.status == "ok"]
        if not good:
            raise InputError(f"not one of the first images of {what} can be decoded, so there is nothing to measure")
        found = []
        for threads in THREADS:
            say(f"single images from {threads} thread(s)")
            found.append(dataclasses.asdict(measure_latency(scorer, good, threads)))
        return {"what": what, "engine": dataclasses.asdict(scorer.info), "images": len(good), "latency": found}


def describe_latency(facts: dict[str, Any]) -> str:
    """The table of `--latency`, for a person."""
    engine = facts["engine"]
    lines = [
        f"{facts['what']}, single images from memory, decoded and scored",
        f"{engine['backend']} on {engine['device']}, {engine['precision']} (run as {engine['executed']})",
        f"{'threads':>7} {'images/s':>10} {'p50 ms':>8} {'p95 ms':>8} {'p99 ms':>8}",
    ]
    for row in facts["latency"]:
        times = " ".join(f"{row[name]:8.1f}" for name in ("p50_ms", "p95_ms", "p99_ms"))
        lines.append(f"{row['threads']:7} {row['rate']:10,.0f} {times}")
    return "\n".join(lines)


def _read(path: Path) -> dict[str, Any]:
    """Rates of an earlier result by name. Raises InputError."""
    try:
        facts = json.loads(path.read_text())
        return {**facts["stages"], "bound": facts["bound"], "end to end": facts["end_to_end"]}
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise InputError(f"--compare {path}: not a result of fiqa-trt bench -o") from exc


def describe(result: Benchmark, before: dict[str, Any] | None = None) -> str:
    """The table, for a person."""
    engine = result.engine
    lines = [
        f"{result.what}, {number_of(result.images, 'image')}",
        f"{engine['backend']} on {engine['device']}, {engine['precision']} (run as {engine['executed']}), "
        f"batch {engine['batch']}; decoder: {result.decoder}",
        f"{'stage':12} {'images/s':>10}" + (f" {'before':>10} {'ratio':>6}" if before else ""),
    ]
    for name, rate in {**result.stages, "bound": result.bound, "end to end": result.end_to_end}.items():
        old = (before or {}).get(name)
        lines.append(f"{name:12} {rate:10,.0f}" + (f" {old:10,.0f} {rate / old:6.2f}" if old else ""))
    together = "they share the cores: harmonic sum" if result.shared else "they overlap: the slowest"
    lines.append(f"end to end is {result.share:.0%} of the bound ({together}); {result.cores:.1f} cores were busy")
    if result.request_ms is not None:
        lines.append(
            f"the store takes {result.request_ms:,.1f} ms for a request; while only reading, about "
            f"{result.in_flight:,.0f} of them were under way"
        )
    if result.gpu is not None:
        use = result.gpu
        lines.append(f"GPU: {use.utilisation:.0%} busy, {use.power_w:.0f} W, {use.memory_mib:,} MiB")
    return "\n".join([*lines, result.advice()])
