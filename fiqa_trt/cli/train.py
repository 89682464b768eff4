"""`fiqa-trt train`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import click

from fiqa_trt.cli.common import interruptible, quiet_and_json, speaker
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import give
from fiqa_trt.errors import EngineError, number_of
from fiqa_trt.models.spec import MEMBERS

_PATH = click.Path(path_type=Path)
_NONE = "none"


@click.command(short_help="Train or fine-tune the ensemble on labelled crops.")
@click.argument("labels", type=_PATH)
@click.option("-o", "--output", metavar="FILE", required=True, type=_PATH, help="The checkpoint (.safetensors).")
@click.option("--images", metavar="DIR", type=_PATH, help="Where relative paths start.  [default: beside LABELS]")
@click.option(
    "--score-range", metavar="WORST BEST", nargs=2, type=float, default=(0, 1), show_default=True, help="Scale's ends."
)
@click.option("--path-column", metavar="NAME", help="LABELS' column of paths.  [default: path, image, filename, ...]")
@click.option(
    "--score-column",
    "score_columns",
    metavar="NAME",
    multiple=True,
    help="LABELS' column of ratings; of several raters, given for each.  [default: score, mos, rating, ...]",
)
@click.option("--group-column", metavar="NAME", help="LABELS' column of persons.  [default: group]")
@click.option("--skip-blank", is_flag=True, help="Leave out, and count, rows of LABELS without a rating.")
@click.option(
    "--init",
    metavar="FILE",
    multiple=True,
    help="Checkpoint or backbone to start from, or none; may be repeated.  [default: the released checkpoint]",
)
@click.option("--config", metavar="FILE", type=_PATH, help="A recipe (.toml); the options below override it.")
@click.option("--member", "members", multiple=True, type=click.Choice(MEMBERS), help="Train only this one.")
@click.option("--epochs", type=int, help="Passes over the training rows.  [default: 12]")
@click.option("--batch-size", "batch", type=int, help="Images of a step.  [default: 32]")
@click.option("--rate", type=float, help="Peak learning rate.  [default: 0.0015]")
@click.option("--schedule", type=click.Choice(["cosine", "step"]), help="[default: cosine]")
@click.option("--patience", type=int, help="Stop after so many epochs that are not better.  [default: never]")
@click.option("--seed", type=int, help="[default: 0]")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16"]), help="[default: auto]")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="Only auto falls back.")
@click.option("--cache", metavar="DIR", type=_PATH, help="Keep the decoded images there, for other trainings as well.")
@click.option("--workers", type=click.IntRange(1, 256), help="Threads that decode.  [default: one a core]")
@click.option("--resume", is_flag=True, help="Go on with an unfinished training, exactly.")
@click.option("--restart", is_flag=True, help="Forget an unfinished training; replace an existing output.")
@quiet_and_json
def command(
    labels: Path,
    output: Path,
    images: Path | None,
    score_range: tuple[float, float],
    path_column: str | None,
    score_columns: tuple[str, ...],
    group_column: str | None,
    skip_blank: bool,
    init: tuple[str, ...],
    config: Path | None,
    device: str,
    cache: Path | None,
    workers: int | None,
    resume: bool,
    restart: bool,
    quiet: bool,
    as_json: bool,
    **changes: Any,
) -> None:
    """Train the ensemble on LABELS (.csv or .parquet: columns path and score; optional weight, group, split).

    Beside FILE appear a log (.log.csv) and the curves (.curves.png). Where LABELS has no split, a tenth of the groups
    (of the images, without that column) validates; the epoch with the best SRCC + PLCC on them is kept (the lowest
    RMSE, if their ratings are all but alike). Rows of the split `test` are measured, and choose nothing.

    \b
    Examples:
      fiqa-trt train labels.csv --images /crops -o model.safetensors
      fiqa-trt train ratings.csv -o mine.safetensors --score-range 1 5 --epochs 5 --rate 3e-4
      fiqa-trt train labels.csv --images /crops -o model.safetensors --resume
    """
    if resume and restart:
        raise click.UsageError("give either --resume or --restart")
    try:
        from fiqa_trt.training import dataset, recipe, run
    except ImportError as exc:
        raise EngineError(f"this command needs {exc.name}: pip install 'fiqa-trt[train]'") from exc
    from fiqa_trt.engines.opening import CHECKPOINT, choose_device
    from fiqa_trt.inputs.ratings import Form

    say = speaker(quiet)
    changes["members"] = changes["members"] or None
    chosen = recipe.read_recipe(config, changes)
    form = Form(path_column, score_columns, skip_blank, group_column)
    rows = dataset.read_labels(labels, images, score_range, chosen.val_share, chosen.seed, form)
    place = choose_device(device, say)
    threads = workers or len(os.sched_getaffinity(0))
    begun = run.start([Path(path) for path in init if path != _NONE] if init else [CHECKPOINT], chosen.seed)
    folder = run.TrainingFolder(output)
    folder.prepare(resume=resume, restart=restart)
    for line in rows.notes:
        say(line)
    hint = "the same command with --resume continues from the last finished epoch"
    bar = ProgressLine("images", quiet=quiet)

    def note(line: str) -> None:
        bar.end()
        say(line)

    with interruptible(bar, "the same command starts again"):
        total = len(rows.paths)
        say(f"decoding {number_of(total, 'image')}")
        data = dataset.decode_images(rows, cache or folder.path / "images", threads, report=bar)
    for line in data.skipped[:10]:
        say(f"left out: {line}")
    counts = {side: data.labels.count(side) for side in (dataset.TRAIN, dataset.VAL, dataset.TEST)}
    tests = f", testing with {counts[dataset.TEST]:,}" if counts[dataset.TEST] else ""
    say(f"training on {place} with {counts[dataset.TRAIN]:,} images, validating with {counts[dataset.VAL]:,}{tests}; "
        f"{len(data.skipped):,} could not be read")  # fmt: skip
    bar = ProgressLine("images", quiet=quiet)
    with interruptible(bar, hint):
        done = run.train(data, chosen, folder, begun, place, resume, bar, note)
    say(f"best: {run.describe(done.best)}")
    if counts[dataset.TEST]:
        say(run.describe_test(done.best, counts[dataset.TEST]))
    say(f"written to {done.output}")
    if lacking := run.untrained(begun, chosen):
        say(f"it has no {lacking[0]}, which an engine needs: --member {lacking[0]} --init {done.output} adds that")
    if as_json:
        give(json.dumps(dataclasses.asdict(done)))
