"""`fiqa-trt filter`."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiqa_trt.cli.common import interruptible, quiet_and_json, speaker
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import complain, give
from fiqa_trt.errors import printable

if TYPE_CHECKING:
    from fiqa_trt.delivery import Delivered
    from fiqa_trt.filtering import Selection

_NAMED = 10
NOTHING_DELIVERED = 3


@click.command(short_help="Choose the images to keep, and list, copy, link, move or pack them.")
@click.argument("scores", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "-o", "--output", metavar="OUT", type=click.Path(path_type=Path), help="A file by its suffix, or a folder."
)
@click.option("--min-score", type=float, help="Only images with at least this score.")
@click.option("--max-disagreement", type=float, help="Only images on which the two networks differ by at most this.")
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
@click.option("--image-column", metavar="NAME", help="Of Parquet or Arrow tables of images.  [default: image]")
@click.option("--dry-run", is_flag=True, help="Only say what would be kept, and how many bytes.")
@click.option(
    "--undo",
    metavar="FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="Take back what --move has moved into FOLDER; no other option is needed.",
)
@click.option("--restart", is_flag=True, help="Replace a file OUT that is there.")
@quiet_and_json
def command(
    scores: Path | None,
    output: Path | None,
    min_score: float | None,
    max_disagreement: float | None,
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
    restart: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    """Choose images from SCORES, a file that score wrote, and deliver them to OUT.

    Steps, each on what the ones before left: failed rows and repeated paths go; --min-score and --max-disagreement;
    --per-group; --keep or --top; --keep-at-least brings back the best of groups that would have fewer. Among equal
    scores the path decides; shares are rounded up.

    OUT is a list of paths (.txt), rows (.parquet, .csv, .jsonl), WebDataset shards (k.tar: k-000000.tar and so on), or
    with --copy, --hardlink, --symlink or --move a new folder, which also gets a table of its scores. A folder that was
    not finished is continued by the same call; --undo takes a move back. Images out of tars take their whole WebDataset
    sample into new tars; otherwise --companions takes along what has an image's name.

    \b
    Examples:
      fiqa-trt filter scores.parquet -o keep.txt --keep 80%
      fiqa-trt filter scores.parquet -o best.parquet --min-score 0.4 --per-group 5 --keep-at-least 1
      fiqa-trt filter scores.parquet -o /clean --hardlink --min-score 0.5 --dry-run
      fiqa-trt filter scores.parquet -o /clean --copy --keep 80% --companions .txt,.json
      fiqa-trt filter scores.parquet -o clean.tar --top 1000000
      fiqa-trt filter --undo /clean
    """
    from fiqa_trt import delivery
    from fiqa_trt.filtering import Amount, Rules, select

    if undo is not None:
        context = click.get_current_context()
        given = (name for name, value in context.params.items() if name not in ("undo", "quiet", "as_json") and value)
        others = [n for n in given if context.get_parameter_source(n) is not click.core.ParameterSource.DEFAULT]
        if others:
            raise click.UsageError(f"--undo goes alone, not with {', '.join(others)}")
        _undo(undo, quiet=quiet, as_json=as_json)
        return
    if scores is None:
        raise click.UsageError("give SCORES, a file that score wrote, or --undo FOLDER")
    if output is None and not dry_run:
        raise click.UsageError("give -o OUT, or --dry-run")
    ways = [n for n, on in (("copy", copy), ("hardlink", hardlink), ("symlink", symlink), ("move", move)) if on]
    if len(ways) > 1:
        raise click.UsageError(f"give one of --{' and --'.join(ways)}")
    way = ways[0] if ways else None
    if keep is not None and top is not None:
        raise click.UsageError("give either --keep or --top")
    if keep is not None and not keep.endswith("%"):
        raise click.UsageError(f"--keep {keep}: it takes a percentage like 80%; for a number there is --top")
    rules = Rules(
        min_score=min_score,
        max_disagreement=max_disagreement,
        per_group=None if per_group is None else Amount.parse(per_group, "--per-group "),
        keep=Amount.parse(keep, "--keep ") if keep is not None else None if top is None else Amount(top),
        keep_at_least=keep_at_least,
        group_by=group_by,
    )
    say = speaker(quiet)
    selection = select(scores, rules)
    say(describe(selection))
    delivered = None
    bar = ProgressLine("images", quiet=quiet)
    shards = output is not None and output.suffix.lower() == ".tar"
    if dry_run or not (way or shards):
        hint = "nothing was written"
    else:
        hint = "run the same command again to resume" if way else "the same command with --restart begins anew"
    if shards and output is not None:
        names = f"{delivery.shard_of(output, 0)}, {delivery.shard_of(output, 1).name} and so on"
        say(f"shards are numbered: {names}, each of up to {shard_size:,} samples")
        if Path(os.path.abspath(output)).is_relative_to(delivery.common_root(scores)):
            say(f"{output} is among the images that were scored: a run over all of them takes these shards as well")
    with interruptible(bar, hint):
        if output is not None:
            options: dict[str, Any] = {"root": root, "shard_size": shard_size, "image_column": image_column}
            options |= {"restart": restart, "dry_run": dry_run, "report": bar, "companions": companions}
            delivered = delivery.deliver(scores, selection.mask, output, way, **options)
        elif way:
            delivered = delivery.measure(scores, selection.mask, way, root, image_column)
        if delivered is not None and dry_run:
            size = f", {delivered.bytes:,} bytes" if way or shards else ""
            say(f"would write {delivered.written:,} {'images' if way or shards else 'rows'}{size}")
    if delivered is not None:
        say(tell(delivered, way))
    if as_json:
        facts = {"kept": selection.kept, "dropped": selection.dropped, "groups": selection.groups}
        facts |= {"lost_groups": selection.lost, "delivered": delivered and dataclasses.asdict(delivered)}
        give(json.dumps(facts))
    if delivered is not None and selection.kept and not delivered.written and not delivered.already:
        complain("not one of the images could be delivered")
        sys.exit(NOTHING_DELIVERED)


def describe(selection: Selection) -> str:
    """What is kept and dropped, for a person."""
    lines = [f"{selection.kept:,} of {len(selection.mask):,} rows kept"]
    for reason, count in selection.dropped.items():
        lines.append(f"  {count:,} {reason}" if count > 0 else f"  {-count:,} {reason}")
    if selection.lost:
        named = ", ".join(map(printable, selection.lost[:_NAMED])) + (", ..." if len(selection.lost) > _NAMED else "")
        which = f"{len(selection.lost):,} of {selection.groups:,} groups"
        lines.append(f"{which} lose everything (--keep-at-least 1 rescues them): {named}")
    return "\n".join(lines)


def _undo(folder: Path, *, quiet: bool, as_json: bool) -> None:
    from fiqa_trt.delivery import undo_move
    from fiqa_trt.shell import path_word

    bar = ProgressLine("files", quiet=quiet)
    with interruptible(bar, "run the same command again to go on"):
        undone = undo_move(folder, bar)
    lines = [f"{undone.returned:,} files taken back out of {folder}"]
    if undone.already:
        lines.append(f"{undone.already:,} were where they had been")
    lines += skipped_lines(undone.skipped, undone.examples)
    if undone.skipped:
        lines.append(f"once that is mended, the rest: fiqa-trt filter --undo {path_word(folder)}")
    elif not undone.removed:
        lines.append(f"{folder} stays: it holds files that filter did not move there")
    speaker(quiet)("\n".join(lines))
    if as_json:
        give(json.dumps(dataclasses.asdict(undone)))
    if undone.skipped:
        complain("not everything could be taken back")
        sys.exit(NOTHING_DELIVERED)


def tell(delivered: Delivered, way: str | None = None) -> str:
    """What was written, for a person."""
    from fiqa_trt.delivery import shard_of
    from fiqa_trt.marks import TABLE
    from fiqa_trt.shell import path_word

    lines = list[str]()
    if delivered.already and not (delivered.written or delivered.skipped) and delivered.output:
        return f"{delivered.output} is already complete: {delivered.already:,} images"
    if delivered.shards:
        stem = Path(delivered.output.removesuffix("-*.tar") + ".tar")
        to = f" to {shard_of(stem, delivered.shards - 1).name}" if delivered.shards > 1 else ""
        lines = [f"{delivered.written:,} written to {shard_of(stem, 0)}{to}"]
    elif delivered.output:
        lines = [f"{delivered.written:,} written to {delivered.output}"]
    if way is not None and delivered.written and delivered.output:
        lines.append(f"their scores: {Path(delivered.output) / TABLE}")
        if way == "move":
            lines.append(f"to take the move back: fiqa-trt filter --undo {path_word(delivered.output)}")
    if delivered.companions:
        lines.append(f"{delivered.companions:,} companions (captions, labels and the like) went along")
    if delivered.left_behind:
        kinds = ", ".join(map(printable, delivered.left_kinds[:_NAMED])) + (
            ", ..." if len(delivered.left_kinds) > _NAMED else ""
        )
        lines.append(
            f"{delivered.left_behind:,} of the images have companions ({kinds}) that stay behind; "
            "--companions auto takes them along"
        )
    if delivered.already:
        lines.append(f"{delivered.already:,} were there already")
    return "\n".join([*lines, *skipped_lines(delivered.skipped, delivered.examples)])


def skipped_lines(skipped: dict[str, int], examples: list[str]) -> list[str]:
    """What could not be done, and the first files of it."""
    lines = [f"  {count:,} skipped: {reason}" for reason, count in skipped.items()]
    lines += [f"    {printable(example)}" for example in examples]
    if (more := sum(skipped.values()) - len(examples)) > 0:
        lines.append(f"    and {more:,} more")
    return lines
