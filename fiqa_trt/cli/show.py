"""`fiqa-trt show`."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fiqa_trt.cli.common import PlaceType, engines, quiet_and_json, speaker
from fiqa_trt.cli.streams import give
from fiqa_trt.errors import OutputError, printable
from fiqa_trt.storage.base import unsigned
from fiqa_trt.storage.places import Place

if TYPE_CHECKING:
    from fiqa_trt.scores.score import Score

NOTHING_SCORED = 3


@click.command(short_help="Score some images at once, and explain their scores.")
@click.argument("images", metavar="IMAGE...", nargs=-1, required=True)
@click.option("--explain", is_flag=True, help="Write IMAGE.explain.png beside each.")
@click.option("--scores", type=PlaceType(), help="A scores file to compare with.")
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path), help="Where --explain writes instead.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda[:i]", help="As of score.")
@click.option("--precision", default="auto", show_default=True, type=click.Choice(["auto", "fp32", "fp16", "int8"]))
@click.option("--engine", default="auto", show_default=True, metavar=engines())
@quiet_and_json
def command(
    images: tuple[str, ...],
    explain: bool,
    scores: Place | None,
    output: Path | None,
    device: str,
    precision: str,
    engine: str,
    quiet: bool,
    as_json: bool,
) -> None:
    """Score each IMAGE (files, or members of shards) and print a table.

    With --scores it also says what share of a data set each is better than. With --explain, a picture beside each
    (replaced, if it is there) shows the crop as the networks see it, what both say, how much there is of each cause of
    a low score, if they tell, and where the score stands. Exit code 3 if nothing could be scored.

    \b
    Examples:
      fiqa-trt show portrait.jpg
      fiqa-trt show *.jpg --explain --scores scores.parquet
    """
    if output is not None and not explain:
        raise click.UsageError("-o goes with --explain")
    if output is not None and not output.is_dir():
        raise OutputError(f"cannot write into {output}: no such folder")

    from fiqa_trt.analysis.explain import explain as picture
    from fiqa_trt.analysis.explain import read_distribution
    from fiqa_trt.scorer import Scorer
    from fiqa_trt.storage.registry import is_stored
    from fiqa_trt.storage.writing import atomic

    among, say = None if scores is None else read_distribution(scores), speaker(quiet)
    if explain:
        there = [image for image in images if "::" in image or is_stored(image) or Path(image).exists()]
        _check_targets([_target(image, output) for image in there])
    with Scorer(device, precision, engine, batch=min(len(images), 8), say=say) as scorer:
        if among is not None and (difference := among.difference(scorer.info)) is not None:
            say(f"{scores}: {difference}")
        found = scorer.score(images)
        good = [score for score in found if explain and score.path is not None and score.score is not None]
        seen = [scorer.pixels(str(score.path)) for score in good]
    below = {s.path: among.share_below(s.score) for s in found if among is not None and s.score is not None}
    if as_json:
        give(json.dumps({"images": [{**dataclasses.asdict(s), "better_than": below.get(s.path)} for s in found]}))
    else:
        give(table(found, None if among is None else below))
    for score, pixels in zip(good, seen, strict=True):
        target = _target(str(score.path), output)
        with atomic(target) as temporary:
            picture(pixels, score, among, scorer.info.causes).save(temporary, "PNG")
        say(f"written: {target}")
    if all(score.score is None for score in found):
        sys.exit(NOTHING_SCORED)


def _target(image: str, folder: Path | None) -> Path:
    beside = Path(f"{image}.explain.png")
    return beside if folder is None else folder / beside.name


def _check_targets(targets: list[Path]) -> None:
    """Raise OutputError for pictures that could not be written, or would take each other's place."""
    for target in targets:
        if not target.parent.is_dir():
            raise OutputError(f"cannot write {target}: no such folder; -o says where else")
        if targets.count(target) > 1:
            raise OutputError(f"{target} would be written twice; explain images of one name in calls of their own")


def table(scores: list[Score], better_than: dict[str | None, float] | None = None) -> str:
    """Scores, for a person; with the share of a data set that each path is better than, if there is one."""
    names = next((list(score.members) for score in scores if score.members), [])
    wide = max([5, *(len(score.cause or "") for score in scores)]) if any(score.causes for score in scores) else 0
    compared = [] if better_than is None else ["better than"]
    causes = [f"{'cause':{wide}}"] if wide else []
    lines = ["  ".join(["score", *compared, *causes, *names, f"{'pixels':>11}", "image"])]
    for score in scores:
        values = [f"{score.members[name]:{len(name)}.3f}" if score.members else " " * len(name) for name in names]
        pixels = f"{score.width} x {score.height}" if score.width else ""
        first = "    -" if score.score is None else f"{score.score:.3f}"
        said = f": {score.status}, {score.error}" if score.error else ""
        if wide:
            values.insert(0, f"{score.cause or ('-' if score.causes else ''):{wide}}")
        if better_than is not None:
            values.insert(0, f"{better_than[score.path]:11.0%}" if score.path in better_than else " " * 11)
        lines.append("  ".join([first, *values, f"{pixels:>11}", printable(f"{unsigned(str(score.path))}{said}")]))
    return "\n".join(lines)
