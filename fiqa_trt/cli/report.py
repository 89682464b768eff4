"""`fiqa-trt report`."""

from __future__ import annotations

import json

import click

from fiqa_trt.cli.common import PlaceType, interruptible, quiet_and_json, speaker
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import give
from fiqa_trt.errors import already_there, number_of, printable
from fiqa_trt.storage.places import Place


@click.command(short_help="Show a scores file as a page.")
@click.argument("scores", type=PlaceType(dir_okay=False))
@click.option("-o", "--output", metavar="OUT", type=PlaceType(), required=True, help="An .html file.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Where the slider begins.  [default: a fifth is below]")
@click.option("--group-by", default="parent", show_default=True, metavar="parent|COLUMN|REGEX", help="As of filter.")
@click.option("--sheet", default=24, show_default=True, type=click.IntRange(0, 200), help="Images of a contact sheet.")
@click.option("--no-images", is_flag=True, help="No contact sheets; the images are not touched.")
@click.option("--image-column", metavar="NAME", help="Of Parquet or Arrow tables of images.  [default: as scored]")
@click.option("--restart", is_flag=True, help="Replace a page that is there.")
@quiet_and_json
def command(
    scores: Place,
    output: Place,
    threshold: float | None,
    group_by: str,
    sheet: int,
    no_images: bool,
    image_column: str | None,
    restart: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Write one self-contained page about SCORES, a file that score wrote.

    It shows the counts by status, the distribution with a threshold to move, quantiles, contact sheets of the lowest
    scores, those around the threshold, and the highest, scores by resolution, all groups with what the threshold
    leaves of each, and failures with their errors; of what score --causes wrote also how often each cause is named, in
    which groups, what a filter by it would keep, and the images that have the most of each.

    \b
    Example:
      fiqa-trt report scores.parquet -o report.html
    """
    from fiqa_trt.analysis.report import survey, write_report
    from fiqa_trt.inputs.address import sought
    from fiqa_trt.scores.groups import STEPS
    from fiqa_trt.storage.writing import check_output

    check_output(output, (".html", ".htm"))
    if output.exists() and not restart:
        raise already_there(output)

    bar = ProgressLine("thumbnails", quiet=quiet)
    with interruptible(bar, "nothing was written"):
        found = survey(
            scores,
            threshold=threshold,
            group_by=group_by,
            sheet=0 if no_images else sheet,
            image_column=image_column,
            report=bar,
        )
        write_report(output, found)
    say, step = speaker(quiet), round(found.threshold * STEPS)
    lost, unscored, groups = found.lost(step), found.unscored, number_of(found.group_count, "group")
    if found.scored:
        say(f"at {found.threshold:.3f} {len(lost):,} of {groups} {'loses' if len(lost) == 1 else 'lose'} everything")
    if unscored:
        say(f"{len(unscored):,} of {groups} {'has' if len(unscored) == 1 else 'have'} no scored image")
    if found.told.causes and found.scored:
        say(str(found.told))
    pictures = [each for sheet in (*found.sheets.values(), *found.sheets_of_causes.values()) for each in sheet]
    if unread := [each.path for each in pictures if not each.data]:
        count = number_of(len(pictures), "picture")
        say(f"{len(unread):,} of {count} cannot be read now, for one {printable(sought(unread[0]))}")
    say(f"{number_of(found.images, 'image')}, {found.images - found.scored:,} failed; written to {output}")
    if as_json:
        facts: dict[str, object] = {"output": str(output), "images": found.images, "scored": found.scored}
        facts |= {"statuses": found.statuses, "quantiles": found.quantiles, "agreement": found.agreement}
        facts |= {"causes": {cause.name: cause.named for cause in found.told.causes}}
        facts |= {"threshold": found.threshold, "kept": found.scored - found.below[step]}
        give(json.dumps({**facts, "groups": found.group_count, "lost_groups": lost, "unscored_groups": unscored}))
