"""The kept images as a folder, their tree preserved: copies, links, or the images themselves.

It fills file by file, each complete when it has its name, and a call that was stopped goes on where it was. Nothing
that is there is ever overwritten.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from functools import partial
from pathlib import Path

from fiqa_trt.curation.delivery.common import Delivered
from fiqa_trt.curation.delivery.companions import Wish
from fiqa_trt.curation.delivery.file import (
    INSIDE,
    Unlinkable,
    data_of,
    deliver_file,
    end_move,
    of_source,
    reason,
    remove_folder,
)
from fiqa_trt.curation.delivery.plan import OCCUPIED, Image, Plan, Unplaced, base_of
from fiqa_trt.curation.delivery.refresh import EDITED, Old, fits, look
from fiqa_trt.curation.delivery.table import Places, check_table, write_table
from fiqa_trt.curation.delivery.undo import Journal
from fiqa_trt.curation.select import Mask, kept_rows
from fiqa_trt.errors import OutputError, storage_error
from fiqa_trt.fingerprint import counted
from fiqa_trt.inputs.address import DEFAULT_COLUMN, Address
from fiqa_trt.inputs.marks import MOVE, NOTE, TABLE, Mark, read_mark
from fiqa_trt.inputs.reader import ContainerReader
from fiqa_trt.models.spec import digest
from fiqa_trt.outcomes import ImageError
from fiqa_trt.progress import Progress, Report, silent
from fiqa_trt.storage.writing import atomic

WAYS = ("copy", "hardlink", "symlink", MOVE)


def measure(
    scores: Path,
    mask: Mask,
    way: str | None = None,
    root: str | None = None,
    image_column: str | None = None,
    companions: Wish | None = None,
    samples: bool = False,
    fill: Fill | None = None,
) -> Delivered:
    """What a delivery would write: counts and bytes, nothing touched. Arguments and errors as of `fill_folder`.

    `samples`: images out of tars take their samples along in any case, as `write_shards` has it. `fill`: of a folder,
    in which what is there already is not written.
    """
    reader, account = ContainerReader(), _Account()
    base = base_of(scores, root) if fill is None else fill.base
    old = Old() if fill is None else fill.old(scores, mask, reader)
    plan = Plan(scores, mask, base, reader, companions, samples, old.place_of)
    account.know(old, plan)
    for image in plan:
        try:
            if image.address.key is not None and way not in (None, "copy"):
                plan.skips.add(image.path, INSIDE.format(way))
                continue
            place = plan.place(image, reader) if fill is not None else ""
            if fill is not None and place not in old.leaving and os.path.lexists(fill.output / place):
                account.already += not image.companion and place not in old.staying
                continue
            account.add(
                image, os.stat(image.address.file).st_size if image.address.key is None else len(data_of(image, reader))
            )
        except ImageError as exc:
            plan.skips.fail(image.path, exc)
        except (OSError, Unplaced) as exc:
            plan.skips.add(image.path, reason(exc))
    reader.close()
    return account.of("", plan)


@dataclasses.dataclass
class _Account:
    """What was written."""

    written: int = 0
    already: int = 0
    companions: int = 0
    bytes: int = 0
    old: Old = dataclasses.field(default_factory=Old)

    def know(self, old: Old, plan: Plan) -> None:
        """What of earlier calls leaves or stays."""
        self.old = old
        for place in sorted(old.edited):
            plan.skips.add(place, EDITED)

    def add(self, image: Image, size: int) -> None:
        self.written, self.companions = self.written + (not image.companion), self.companions + image.companion
        self.bytes += size

    def of(self, output: str, plan: Plan) -> Delivered:
        """With what was not."""
        done = (output, self.written, self.already, dict(plan.skips.reasons), plan.skips.examples)
        left, old = plan.left_behind, (len(self.old.leaving), len(self.old.staying))
        return Delivered(*done, self.bytes, self.companions, left.images, left.kinds(), 0, *old)


def fill_folder(
    scores: Path,
    mask: Mask,
    output: Path,
    way: str,
    root: str | None = None,
    image_column: str | None = None,
    report: Report = silent,
    companions: Wish | None = None,
    *,
    update: bool = False,
) -> Delivered:
    """Put the kept images into a folder, their tree below `root` preserved.

    Args:
        scores: a scores file.
        mask: its kept rows.
        output: a folder that does not exist, or is empty, or was filled by the same call, to its end or not.
        way: one of WAYS. A move across devices copies, compares and only then removes; of a link, what it leads to is
            copied and the link removed.
        root: where the tree starts; by default the deepest folder that holds all images of the file, kept or not, and
            of an update what it was before.
        image_column: of tables among the inputs; by default the one that the scores file records.
        report: receives the images done.
        companions: which of the files that go with the images are delivered as well; None for none.
        update: a folder that an earlier call has filled in the same way becomes what this one makes of it: what is
            not kept any more, or has changed, leaves it, unless nothing else holds it (so it is after a move) or it is
            not as it was delivered.

    Raises:
        InputError: there is no folder `root`.
        OutputError: the folder is not empty, cannot be written, or lies where the images come from.
        RunError: the disk is full or fails; the same call goes on.
    """
    account, done, count = _Account(), 0, int(mask.sum())
    fill = check_folder(scores, mask, output, way, root, image_column, companions, update=update)
    base, mark, before = fill.base, fill.mark, fill.before
    places, journal = Places(count), Journal(output)
    made = not output.exists()
    reader = ContainerReader()
    old = fill.old(scores, mask, reader)
    plan = Plan(scores, mask, base, reader, companions, known=old.place_of)
    account.know(old, plan)
    try:
        output.mkdir(exist_ok=True)
        old.remove(output, base, companions, reader)
        _write_mark(output, mark if before is None else dataclasses.replace(mark, output=before.output))
        device = output.stat().st_dev
    except OSError as exc:
        raise OutputError(f"cannot write {output}: {exc.strerror}") from exc
    staying = set(old.staying)
    try:
        for image in plan:
            target = output / image.target
            try:
                place = plan.place(image, reader)
                target = output / place
                if place in staying:
                    if place not in old.edited:  # those are counted
                        plan.skips.add(image.path, OCCUPIED)
                    continue
                if os.path.lexists(target):
                    account.already += not image.companion
                    if way == MOVE and image.address.key is None:
                        end_move(image.address.file, target)
                else:
                    note = partial(journal.add, place, image.address.file)
                    account.add(image, deliver_file(image, target, way, reader, device, note))
                if not image.companion:
                    places.add(image.row, image.target, place)
            except ImageError as exc:
                plan.skips.fail(image.path, exc)
            except (Unlinkable, Unplaced) as exc:
                plan.skips.add(image.path, str(exc))
            except (FileExistsError, NotADirectoryError):  # a member that is another one's folder
                plan.skips.add(image.path, OCCUPIED)
            except OSError as exc:
                if not of_source(exc, image.address.file):
                    raise storage_error(target, exc) from exc
                plan.skips.add(image.path, reason(exc))
            finally:
                done += not image.companion
                report(Progress(done, count, sum(plan.skips.reasons.values())))
    finally:
        reader.close()
        journal.close()
    if places.there.any() or staying:
        write_table(scores, mask, output, base, places, old)
        _write_mark(output, dataclasses.replace(mark, finished=True))
    else:
        for name in (TABLE, NOTE):
            (output / name).unlink(missing_ok=True)
        if made:
            remove_folder(output)
    return account.of(str(output), plan)


def _write_mark(output: Path, mark: Mark) -> None:
    with atomic(output / NOTE) as temporary:
        temporary.write_text(mark.text())


@dataclasses.dataclass(frozen=True)
class _Call:
    """All that decides what a folder is filled with: only the same call goes on with it.

    Attributes:
        way: one of WAYS.
        base: where the tree that is kept starts, absolute: it depends on where the call is made as well.
        image_column: of tables among the inputs.
        companions: that go along.
        mask: digest of the kept rows.
        size: of the scores file.
        modified: when that was.
    """

    way: str
    base: str
    image_column: str
    companions: str
    mask: str
    size: int
    modified: int


@dataclasses.dataclass(frozen=True)
class Fill:
    """How a folder is filled.

    Attributes:
        output: the folder.
        base: where the tree that is kept starts, absolute.
        mark: the note of this call.
        before: that of an earlier one, or of this one when it was stopped.
        update: whether what the earlier one has delivered is brought up to date.
    """

    output: Path
    base: str
    mark: Mark
    before: Mark | None
    update: bool

    def old(self, scores: Path, mask: Mask, reader: ContainerReader) -> Old:
        """What is there of an earlier call. Raises InputError."""
        stopped = self.before is not None and not self.before.finished
        return look(scores, mask, self.output, self.before, reader, remove=self.update or stopped)


def check_folder(
    scores: Path,
    mask: Mask,
    output: Path,
    way: str,
    root: str | None,
    image_column: str | None = None,
    companions: Wish | None = None,
    *,
    update: bool = False,
) -> Fill:
    """What `fill_folder` is to do. Raises what it raises before it begins."""
    try:
        before = read_mark(output)
        strange = before is None and output.exists() and any(output.iterdir())
    except OSError as exc:
        raise OutputError(f"cannot write {output}: {exc.strerror}") from exc
    info, kept = scores.stat(), hashlib.sha256(mask.tobytes()).hexdigest()
    base, column = _base(scores, output, root, before if update else None), image_column or DEFAULT_COLUMN
    along = "" if companions is None else str(companions)
    plan = digest(counted(_Call(way, base, column, along, kept, info.st_size, info.st_mtime_ns)))
    fill = Fill(output, base, Mark(plan, way, base, output=str(output), companions=along), before, update)
    if before is not None and before.call != plan:
        _check_update(fill, before)
    inside = os.path.realpath(output)
    for table in kept_rows(scores, mask):
        for path in table["path"].to_pylist():
            if os.path.realpath(Address.parse(path).file).startswith(inside + os.sep):
                raise OutputError(f"{output} holds images that are to be delivered ({path}); choose another OUT")
    if strange:
        raise OutputError(f"{output} is not empty, and nothing is ever overwritten; choose another OUT")
    check_table(scores, output)
    return fill


def _base(scores: Path, output: Path, root: str | None, before: Mark | None) -> str:
    """Where the tree starts: without `root` where it did `before`, unless the images have been moved from there."""
    if root is None and before is not None and before.base and fits(output, before, before.base) is not False:
        return before.base
    return base_of(scores, root)


def _check_update(fill: Fill, before: Mark) -> None:
    """Raise OutputError unless what another call has filled may, and can, be brought up to date."""
    output, mark = fill.output, fill.mark
    if not before.finished:
        raise OutputError(f"{output} was being filled by another call; empty it or choose another OUT")
    way_out = "give them as that call did, or choose another OUT"
    if before.way != mark.way:
        raise OutputError(f"{output} was filled by --{before.way}, not --{mark.way}; {way_out}")
    if not fill.update:
        raise OutputError(
            f"{output} was filled by another call; --update makes it what this one keeps, or choose another OUT"
        )
    if before.base != mark.base and not fits(output, before, mark.base):
        raise OutputError(
            f"{output} was filled with --root {before.base}, and with {mark.base} its images would have other places; "
            "give the folder of before, wherever it is now, or choose another OUT"
        )
    if before.companions != mark.companions:
        raise OutputError(f"{output} was filled with other --companions; {way_out}")
    if not (output / TABLE).exists():
        raise OutputError(
            f"{output} has no {TABLE} any more, so it cannot be told what was delivered; choose another OUT"
        )
