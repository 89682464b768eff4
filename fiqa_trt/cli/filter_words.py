"""What `fiqa-trt filter` says of what it chose and delivered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from fiqa_trt.errors import number_of, printable

if TYPE_CHECKING:
    from fiqa_trt.curation.delivery import Delivered
    from fiqa_trt.curation.select import Selection

_NAMED = 10


def way_out(min_score: float | None, selection: Selection) -> str:
    """How to keep something, where the rules keep nothing."""
    highest = math.floor(selection.highest * 1000) / 1000  # one that is kept by it
    if min_score is not None and min_score > highest:
        return f"the highest score is {highest:.3f}, and --min-score {min_score:g} is above it"
    return "the rules together leave no image: loosen --max-disagreement, --max-cause, --drop-cause or --min-score"


def describe(selection: Selection) -> str:
    """What is kept and dropped, for a person."""
    lines = [f"{selection.kept:,} of {number_of(len(selection.mask), 'row')} kept"]
    lines += [f"  {count:,} {reason}" for reason, count in selection.dropped.items()]
    if selection.brought_back:
        lines.append(f"  {selection.brought_back:,} brought back by --keep-at-least")
    groups = number_of(selection.groups, "group")
    if count := len(selection.lost):
        lines.append(
            f"{count:,} of {groups} {'loses' if count == 1 else 'lose'} everything (--keep-at-least 1 rescues what has "
            f"scores): {_names(selection.lost)}"
        )
    if count := len(selection.unscored):
        lines.append(
            f"{count:,} of {groups} {'has' if count == 1 else 'have'} no scored image, so nothing can be kept "
            f"(score --retry-failed, once the files are mended): {_names(selection.unscored)}"
        )
    if count := len(selection.short):
        lines.append(
            f"{count:,} of {groups} {'has' if count == 1 else 'have'} fewer scored images than --keep-at-least, and "
            f"{'keeps' if count == 1 else 'keep'} all of them: {_names(selection.short)}"
        )
    return "\n".join(lines)


def _names(names: Sequence[str]) -> str:
    """The first of them."""
    return ", ".join(map(printable, names[:_NAMED])) + (", ..." if len(names) > _NAMED else "")


def tell(delivered: Delivered, way: str | None = None, would: str = "", *, sized: bool = False) -> str:
    """What was written, or, beginning with `would`, what would be, for a person."""
    from fiqa_trt.curation.delivery import shard_of
    from fiqa_trt.inputs.marks import TABLE
    from fiqa_trt.shell import path_word
    from fiqa_trt.storage.places import place_of

    lines = list[str]()
    changed = delivered.written or delivered.removed or delivered.skipped
    if delivered.already and not changed and delivered.output:
        lines = [f"{delivered.output} is already complete: {number_of(delivered.already, 'image')}"]
        return "\n".join([*lines, *_staying(delivered)])
    if would:
        lines = [would + (f", {number_of(delivered.bytes, 'byte')}" if sized else "")]
    elif not delivered.written and not delivered.removed:
        lines = ["nothing was written"]
    elif delivered.shards:
        stem = place_of(delivered.output.removesuffix("-*.tar") + ".tar")
        to = f" to {shard_of(stem, delivered.shards - 1).name}" if delivered.shards > 1 else ""
        lines = [f"{delivered.written:,} written to {shard_of(stem, 0)}{to}"]
    elif delivered.output:
        lines = [f"{delivered.written:,} written to {delivered.output}"]
    if way is not None and delivered.written and delivered.output:
        lines.append(f"their scores: {place_of(delivered.output) / TABLE}")
        if way == "move":
            lines.append(f"to take the move back: fiqa-trt filter --undo {path_word(delivered.output)}")
    if count := delivered.removed:
        lines.append(f"{count:,} {'would be ' if would else ''}taken out: not kept any more, or changed since")
    if delivered.companions:
        companions = number_of(delivered.companions, "companion")
        lines.append(f"{companions} (captions, labels and the like) {'would go' if would else 'went'} along")
    if delivered.left_behind:
        kinds = _names(delivered.left_kinds)
        lines.append(
            f"{number_of(delivered.left_behind, 'image has', 'images have')} companions ({kinds}) that stay behind; "
            "--companions auto takes them along"
        )
    if delivered.already:
        lines.append(f"{delivered.already:,} {'was' if delivered.already == 1 else 'were'} there already")
    lines += _staying(delivered)
    return "\n".join([*lines, *skipped_lines(delivered.skipped, delivered.examples)])


def _staying(delivered: Delivered) -> list[str]:
    """A line on what of earlier calls is not touched, if there is any."""
    if not delivered.staying:
        return []
    images = number_of(delivered.staying, "image of an earlier call stays", "images of earlier calls stay")
    return [f"{images}: the original is gone, or the image was changed since"]


def skipped_lines(skipped: dict[str, int], examples: list[str]) -> list[str]:
    """What could not be done, and the first files of it."""
    lines = [f"  {count:,} skipped: {reason}" for reason, count in skipped.items()]
    lines += [f"    {printable(example)}" for example in examples]
    if (more := sum(skipped.values()) - len(examples)) > 0:
        lines.append(f"    and {more:,} more")
    return lines
