"""`fiqa-trt filter`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from fiqa_trt.cli.common import PlaceType, interruptible, quiet_and_json, speaker
from fiqa_trt.cli.filter_words import describe, skipped_lines, tell, way_out
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import complain, give
from fiqa_trt.errors import number_of

if TYPE_CHECKING:
    from fiqa_trt.curation.delivery import Delivered
    from fiqa_trt.curation.kept import Kept
    from fiqa_trt.curation.select import Selection
    from fiqa_trt.progress import Progress, Report, Say
    from fiqa_trt.storage.places import Place

NOTHING_DELIVERED = 3


class _Score(click.types.FloatParamType):
    """A score; of a percentage it is said what takes one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.endswith("%"):
            self.fail(
                f"{value} is no score, which is a number from 0 to 1; for the best share of all there is --keep P%",
                param,
                ctx,
            )
        return super().convert(value, param, ctx)


class _AtMost(click.types.StringParamType):
    """A cause and the severity up to which it is put up with, as in `blur=0.3`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, tuple):
            return value
        name, given, most = str(value).partition("=")
        if not name:
            self.fail(f"{value}: of which cause? Give its name, as in blur=0.3", param, ctx)
        try:
            return name, float(most)
        except ValueError:
            self.fail(f"{value}: give {'a number' if given else 'how much of it'}, as in blur=0.3", param, ctx)


@click.command(short_help="Choose the images to keep, and list, copy, link, move or pack them.")
@click.argument("scores", required=False, type=PlaceType(exists=True, dir_okay=False))
@click.option("-o", "--output", metavar="OUT", type=PlaceType(), help="A file by its suffix, or a folder.")
@click.option("--min-score", type=_Score(), metavar="X", help="Only images with at least this score.")
@click.option(
    "--max-disagreement",
    type=_Score(),
    metavar="X",
    help="Only images on which the two networks differ by at most this.",
)
@click.option(
    "--max-cause",
    type=_AtMost(),
    metavar="CAUSE=X",
    multiple=True,
    help="Only images with at most so much of a cause; repeatable.",
)
@click.option("--drop-cause", metavar="CAUSE", multiple=True, help="None of which this is the cause; repeatable.")
@click.option("--per-group", metavar="N|P%", help="The best of each group.")
@click.option("--group-by", default="parent", show_default=True, metavar="parent|COLUMN|REGEX", help="What a group is.")
@click.option("--keep", metavar="P%", help="The best share of all that is left.")
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="The best N of all that is left.")
@click.option("--keep-at-least", type=click.IntRange(min=0), default=0, metavar="N", help="Of each group, in any case.")
@click.option("--copy", is_flag=True, help="Copy the images into the folder OUT.")
@click.option("--hardlink", is_flag=True, help="Link them into it.")
@click.option("--symlink", is_flag=True, help="Link them into it by name.")
@click.option("--move", is_flag=True, help="Move them into it.")
@click.option(
    "--root", type=click.Path(file_okay=False), help="Where the tree that is kept starts.  [default: deepest]"
)
@click.option(
    "--companions", metavar="auto|.txt,...", help="Take along the files that go with an image: captions, labels."
)
@click.option("--shard-size", type=click.IntRange(min=1), default=10_000, show_default=True, help="Samples of a .tar.")
@click.option("--image-column", metavar="NAME", help="Of Parquet or Arrow tables of images.  [default: as scored]")
@click.option("--dry-run", is_flag=True, help="Only say what would be kept, and how many bytes.")
@click.option(
    "--undo",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="Take back what --move has moved into FOLDER; no other option is needed.",
)
@click.option("--update", is_flag=True, help="Bring a folder OUT that filter has filled up to date with SCORES.")
@click.option("--restart", is_flag=True, help="Replace a file OUT that is there.")
@quiet_and_json
def command(
    scores: Place | None,
    output: Place | None,
    min_score: float | None,
    max_disagreement: float | None,
    max_cause: tuple[tuple[str, float], ...],
    drop_cause: tuple[str, ...],
    per_group: str | None,
    group_by: str,
    keep: str | None,
    top: int | None,
    keep_at_least: int,
    copy: bool,
    hardlink: bool,
    symlink: bool,
    move: bool,
    root: str | None,
    companions: str | None,
    shard_size: int,
    image_column: str | None,
    dry_run: bool,
    undo: Path | None,
    update: bool,
    restart: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Choose images from SCORES, a file that score wrote, and deliver them to OUT.

    Steps, each on what the ones before left: failed rows and repeated paths go; --min-score, --max-disagreement,
    --max-cause and --drop-cause (of what score --causes wrote); --per-group; --keep or --top; --keep-at-least brings
    back the best of groups that would have fewer. Among equal scores the path decides; shares are rounded up.

    OUT is a list of paths (.txt), rows (.parquet, .csv, .jsonl), WebDataset shards (k.tar: k-000000.tar and so on), or
    with --copy, --hardlink, --symlink or --move a new folder, which also gets a table of its scores. A folder that was
    not finished is continued by the same call; --update brings one up to date, after score --update or with other
    rules; --undo takes a move back. Images out of tars take their whole WebDataset
    sample into new tars; otherwise --companions takes along what has an image's name.

    \b
    Examples:
      fiqa-trt filter scores.parquet -o keep.txt --keep 80%
      fiqa-trt filter scores.parquet -o best.parquet --min-score 0.4 --per-group 5 --keep-at-least 1
      fiqa-trt filter scores.parquet -o keep.txt --max-cause blur=0.3 --drop-cause occlusion
      fiqa-trt filter scores.parquet -o /clean --hardlink --min-score 0.5 --dry-run
      fiqa-trt filter scores.parquet -o /clean --copy --keep 80% --companions .txt,.json
      fiqa-trt filter scores.parquet -o /clean --copy --keep 80% --update
      fiqa-trt filter scores.parquet -o clean.tar --top 1000000
      fiqa-trt filter --undo /clean
    """
    if undo is not None:
        _refuse_others("undo")
        _undo(undo, quiet=quiet, as_json=as_json)
        return
    if scores is None:
        raise click.UsageError("give SCORES, a file that score wrote, or --undo FOLDER")
    if output is None and not dry_run:
        raise click.UsageError("give -o OUT, or --dry-run")
    way, amount = _way(copy=copy, hardlink=hardlink, symlink=symlink, move=move), _amount(keep, top)
    from fiqa_trt.api import filter_scores
    from fiqa_trt.curation.kept import Kept

    say, bar = speaker(quiet), ProgressLine("images", quiet=quiet)
    shards = output is not None and output.suffix.lower() == ".tar"
    hint = _hint(way, dry_run=dry_run, shards=shards)
    summary = _Summary(say, bar)
    with contextlib.ExitStack() as delivering:

        def chosen(selection: Selection) -> None:
            summary.lines.append(describe(selection))
            if shards and output is not None:
                summary.lines.extend(_about_shards(Kept(scores, selection.mask), output, shard_size))
            delivering.enter_context(interruptible(bar, hint))  # until now there is nothing to go on with

        found = filter_scores(
            scores,
            output,
            min_score=min_score,
            max_disagreement=max_disagreement,
            max_cause=max_cause,
            drop_cause=drop_cause,
            per_group=per_group,
            group_by=group_by,
            keep=amount,
            keep_at_least=keep_at_least,
            way=way,
            root=root,
            shard_size=shard_size,
            image_column=image_column,
            companions=companions,
            update=update,
            restart=restart,
            dry_run=dry_run,
            chosen=chosen,
            report=summary.report,
        )
    selection, delivered, sized = found.selection, found.delivered, bool(way or shards)
    if selection.kept and delivered is not None:
        would = f"would write {number_of(delivered.written, 'image' if sized else 'row')}" if dry_run else ""
        summary.lines.append(tell(delivered, way, would, sized=sized))
    say("\n".join(summary.lines))
    if as_json:
        give(_json(selection, delivered))
    if not selection.kept:
        _fail(
            f"nothing is kept, so nothing {'would be' if dry_run else 'was'} written: {way_out(min_score, selection)}"
        )
    if delivered is not None and not delivered.written and not delivered.already:
        where = f"; relative paths count from {os.getcwd()}" if set(delivered.skipped) == {"missing"} else ""
        _fail(f"not one of the images could be delivered{where}")


def _fail(why: str) -> NoReturn:
    complain(why)
    sys.exit(NOTHING_DELIVERED)


def _about_shards(kept: Kept, output: Place, size: int) -> list[str]:
    """What is to be known of a delivery into tars."""
    from fiqa_trt.curation.delivery import shard_of
    from fiqa_trt.inputs.address import rooted

    names = f"{shard_of(output, 0)}, {shard_of(output, 1).name} and so on"
    lines = [f"shards are numbered: {names}, each of up to {number_of(size, 'sample')}"]
    if Path(rooted(os.fspath(output))).is_relative_to(kept.root):
        lines.append(
            f"{output} is among the images that were scored: a run over all of them takes these shards as well"
        )
    return lines


class _Summary:
    """Lines that are said once the call is known to be possible: with the first image, or at the end."""

    def __init__(self, say: Say, bar: Report) -> None:
        self._say, self._bar = say, bar
        self.lines = list[str]()

    def report(self, progress: Progress) -> None:
        while self.lines:
            self._say(self.lines.pop(0))
        self._bar(progress)


def _way(**flags: bool) -> str | None:
    """The way of delivery that was given, if one was. Raises click.UsageError for several."""
    given = [name for name, on in flags.items() if on]
    if len(given) > 1:
        raise click.UsageError(f"give one of --{' and --'.join(given)}")
    return given[0] if given else None


def _amount(share: str | None, number: int | None) -> int | str | None:
    """What --keep or --top asks for. Raises click.UsageError for both, or a share that is none."""
    if share is not None and number is not None:
        raise click.UsageError("give either --keep or --top")
    if share is not None and not share.endswith("%"):
        raise click.UsageError(f"--keep {share}: it takes a percentage like 80%; for a number there is --top")
    return number if share is None else share


def _hint(way: str | None, *, dry_run: bool, shards: bool) -> str:
    """What is said to who interrupts."""
    if dry_run or not (way or shards):
        return "nothing was written"
    return "run the same command again to resume" if way else "the same command with --restart begins anew"


def _refuse_others(alone: str) -> None:
    """Refuse what was given beside an option that goes alone. Raises click.UsageError."""
    context, default = click.get_current_context(), click.core.ParameterSource.DEFAULT
    free = (alone, "quiet", "as_json")
    others = [p for p in context.command.params if p.name not in free and context.params.get(p.name or "")]
    if given := [_typed(p) for p in others if context.get_parameter_source(p.name or "") is not default]:
        raise click.UsageError(f"--{alone} goes alone, not with {', '.join(given)}")


def _typed(parameter: click.Parameter) -> str:
    """A parameter as it is given on the command line."""
    return parameter.opts[-1] if isinstance(parameter, click.Option) else parameter.human_readable_name


def _json(selection: Selection, delivered: Delivered | None) -> str:
    facts = {
        "kept": selection.kept,
        "dropped": selection.dropped,
        "brought_back": selection.brought_back,
        "groups": selection.groups,
        "lost_groups": selection.lost,
        "unscored_groups": selection.unscored,
        "short_groups": selection.short,
        "delivered": delivered and dataclasses.asdict(delivered),
    }
    return json.dumps(facts)


def _undo(folder: Path, *, quiet: bool, as_json: bool) -> None:
    from fiqa_trt.api import undo_move
    from fiqa_trt.shell import path_word

    bar = ProgressLine("files", quiet=quiet)
    with interruptible(bar, "run the same command again to go on"):
        undone = undo_move(folder, report=bar)
    lines = [f"{number_of(undone.returned, 'file')} taken back out of {folder}"]
    if undone.already:
        lines.append(f"{number_of(undone.already, 'file was', 'files were')} in the old place already")
    lines += skipped_lines(undone.skipped, undone.examples)
    if not undone.finished:
        lines.append(
            "put what stays in its old place by hand, or delete it; then this ends it: "
            f"fiqa-trt filter --undo {path_word(folder)}"
        )
    elif not undone.removed:
        lines.append(f"{folder} stays: it holds files that filter did not move there")
    speaker(quiet)("\n".join(lines))
    if as_json:
        give(json.dumps(dataclasses.asdict(undone)))
    if undone.skipped:
        complain("not everything could be taken back")
        sys.exit(NOTHING_DELIVERED)
