"""`fiqa-trt synthesize`."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import click

from fiqa_trt.cli.common import interruptible, quiet_and_json, speaker
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import give
from fiqa_trt.errors import InputError, number_of
from fiqa_trt.inputs.source import Source

_NONE = "none"


@click.command(short_help="Make a training set from clean faces.")
@click.argument("inputs", metavar="IMAGES...", nargs=-1, type=click.Path())
@click.option(
    "-o", "--output", metavar="DIR", required=True, type=click.Path(path_type=Path), help="Crops and labels.csv."
)
@click.option(
    "--list",
    "list_file",
    metavar="FILE",
    type=click.Path(),
    help=".csv or .parquet: a column of paths; optional group, split, quality, pose, face_x ..., left_eye_x ...",
)
@click.option("--path-column", metavar="NAME", help="The list's column of paths.  [default: path, image, ...]")
@click.option("--group-column", metavar="NAME", help="The list's column of persons.  [default: group]")
@click.option("--image-column", metavar="NAME", help="Of Parquet or Arrow tables of images.  [default: image]")
@click.option("--per-face", type=click.IntRange(1, 1000), default=5, show_default=True, help="Crops of each image.")
@click.option("--size", type=click.IntRange(64, 1024), default=224, show_default=True, help="Of the crops, in px.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option(
    "--reference",
    metavar="FILE|none",
    help="Checkpoint that rates the undamaged crops; none: all are perfect.  [default: the released one]",
)
@click.option("--workers", type=click.IntRange(1, 256), help="Processes.  [default: one a core]")
@click.option("--restart", is_flag=True, help="Forget what DIR holds.")
@quiet_and_json
def command(
    inputs: tuple[str, ...],
    output: Path,
    list_file: str | None,
    path_column: str | None,
    group_column: str | None,
    image_column: str | None,
    per_face: int,
    size: int,
    seed: int,
    reference: str | None,
    workers: int | None,
    restart: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Degrade crops of clean faces in many ways and label each with what is left of it.

    Labels are full-reference metrics (FSIM, VSI, HaarPSI, VIF) against the undamaged crop, as ranks, times how good the
    undamaged crop was, and how little of the face is cut off or covered; beside them stands how severe each cause is
    (cause_blur ...). `fiqa-trt train` reads the result. An interrupted run goes on when the same command is given
    again.

    \b
    Examples:
      fiqa-trt synthesize /portraits -o set
      fiqa-trt synthesize --list faces.csv -o set --per-face 8 --seed 1
    """
    if bool(inputs) == bool(list_file):
        raise click.UsageError("give either IMAGES... or --list FILE")
    if group_column and not list_file:
        raise click.UsageError("--group-column is of --list FILE")
    from fiqa_trt.engines.opening import CHECKPOINT

    try:
        from fiqa_trt.training.synthesis import read_faces, synthesize
    except ImportError as exc:
        raise InputError(f"this command needs {exc.name}: pip install 'fiqa-trt[train]'") from exc
    checkpoint = None if reference == _NONE else Path(reference) if reference else CHECKPOINT
    say, bar = speaker(quiet), ProgressLine("images", quiet=quiet)
    with interruptible(bar, "run the same command again to resume"):
        source = Source(inputs, list_file, image_column=image_column, path_column=path_column)
        faces = read_faces(source, say, group_column)
        count = workers or len(os.sched_getaffinity(0))
        made = synthesize(faces, output, per_face, seed, checkpoint, count, size, restart, bar)
    for line in made.failed[:10]:
        say(f"left out: {line}")
    images = number_of(len(faces) - len(made.failed), "image")
    say(f"{number_of(made.crops, 'crop')} of {images}, {len(made.failed):,} left out")
    say(f"written to {made.table}")
    if as_json:
        give(json.dumps(dataclasses.asdict(made)))
