"""The kept images as a folder, their tree preserved: copies, links, or the images themselves.

It fills file by file, each complete when it has its name, and a call that was stopped goes on where it was. Nothing
that is there is ever overwritten.
"""

from __future__ import annotations

import contextlib
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
    deliver_file,
    end_move,
    of_source,
    reason,
    remove_folder,
    size_of,
)
from fiqa_trt.curation.delivery.plan import OCCUPIED, Image, Plan, Unplaced, base_of
from fiqa_trt.curation.delivery.refresh import EDITED, Old, fits, look
from fiqa_trt.curation.delivery.table import Places, check_table, write_table
from fiqa_trt.curation.delivery.undo import Journal
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import OutputError, storage_error, unwritable
from fiqa_trt.fingerprint import counted
from fiqa_trt.inputs.address import DEFAULT_COLUMN
from fiqa_trt.inputs.marks import MOVE, NOTE, TABLE, Mark, read_mark
from fiqa_trt.inputs.reader import ContainerReader
from fiqa_trt.models.spec import digest
from fiqa_trt.outcomes import ImageError
from fiqa_trt.progress import Progress, Report, silent
from fiqa_trt.storage.places import at_hand
from fiqa_trt.storage.writing import locked_folder, write_text

WAYS = ("copy", "hardlink", "symlink", MOVE)


def measure(
    kept: Kept,
    way: str | None = None,
    root: str | None = None,
    companions: Wish | None = None,
    samples: bool = False,
    fill: Fill | None = None,
) -> Delivered:
    """What a delivery would write: counts and bytes, nothing touched. Arguments and errors as of `fill_folder`.

    `samples`: images out of tars take their samples along in any case, as `write_shards` has it. `fill`: of a folder,
    in which what is there already is not written.
    """
    base = base_of(kept, root) if fill is None else fill.base
    with contextlib.closing(ContainerReader()) as reader:
        old = Old() if fill is None else fill.old(reader)
        plan = Plan(kept, base, reader, companions, samples, old.place_of)
        account = _Account(plan, old)
        for image in plan:
            try:
                if image.address.key is not None and way not in (None, "copy"):
                    plan.skips.add(image.path, INSIDE.format(way))
                    continue
                place = plan.place(image, reader) if fill is not None else ""
                if fill is not None and place not in old.leaving and os.path.lexists(fill.output / place):
                    account.already += not image.companion and place not in old.staying
                    continue
                account.add(image, size_of(image, reader))
            except ImageError as exc:
                plan.skips.fail(image.path, exc)
            except (OSError, Unplaced) as exc:
                plan.skips.add(image.path, reason(exc))
    return account.of("")


class _Account:
    """What was written, and of what is there of earlier calls what leaves or stays; the plan has what was skipped."""

    def __init__(self, plan: Plan, old: Old) -> None:
        self.plan, self.old = plan, old
        self.written = self.already = self.companions = self.bytes = 0
        for place in sorted(old.edited):
            plan.skips.add(place, EDITED)

    def add(self, image: Image, size: int) -> None:
        self.written, self.companions = self.written + (not image.companion), self.companions + image.companion
        self.bytes += size

    def of(self, output: str) -> Delivered:
        """With what was not."""
        skips, left = self.plan.skips, self.plan.left_behind
        done = (output, self.written, self.already, dict(skips.reasons), skips.examples, self.bytes, self.companions)
        return Delivered(*done, left.images, left.kinds(), 0, len(self.old.leaving), len(self.old.staying))


def fill_folder(
    kept: Kept,
    output: Path,
    way: str,
    root: str | None = None,
    report: Report = silent,
    companions: Wish | None = None,
    *,
    update: bool = False,
) -> Delivered:
    """Put the kept images into a folder, their tree below `root` preserved.

    Args:
        kept: rows of a scores file.
        output: a folder that does not exist, or is empty, or was filled by the same call, to its end or not.
        way: one of WAYS. A move across devices copies, compares and only then removes; of a link, what it leads to is
            copied and the link removed.
        root: where the tree starts; by default the deepest folder that holds all images of the file, kept or not, and
            of an update what it was before.
        report: receives the images done.
        companions: which of the files that go with the images are delivered as well; None for none.
        update: a folder that an earlier call has filled in the same way becomes what this one makes of it: what is
            not kept any more, or has changed, leaves it, unless nothing else holds it (so it is after a move) or it is
            not as it was delivered.

    Raises:
        InputError: there is no folder `root`.
        OutputError: the folder is not empty, cannot be written, lies where the images come from, or another run is
            writing it.
        RunError: the disk is full or fails; the same call goes on.
    """
    fill = check_folder(kept, output, way, root, companions, update=update)
    made = not output.exists()
    with contextlib.ExitStack() as held:
        try:
            output.mkdir(exist_ok=True)
            held.enter_context(locked_folder(output))
            if read_mark(output) != fill.before:
                raise OutputError(f"another run has just written {output}; run the same command again")
        except OSError as exc:
            raise unwritable(output, exc) from exc
        return _fill(fill, report, made=made)


def _fill(fill: Fill, report: Report, *, made: bool) -> Delivered:
    """See `fill_folder`; `made`: the folder was not there before."""
    done, total = 0, len(fill.kept)
    with contextlib.closing(ContainerReader()) as reader, contextlib.closing(Journal(fill.output)) as journal:
        filling = _Filling(fill, reader, journal)
        filling.begin()
        for image in filling.plan:
            try:
                filling.put(image)
            finally:
                done += not image.companion
                report(Progress(done, total, sum(filling.plan.skips.reasons.values())))
    return filling.end(made=made)  # which says that it is finished: by then the journal is on the disk


class _Filling:
    """A folder while it is filled."""

    def __init__(self, fill: Fill, reader: ContainerReader, journal: Journal) -> None:
        self._fill, self._reader, self._journal = fill, reader, journal
        self._old = fill.old(reader)
        self.plan = Plan(fill.kept, fill.base, reader, fill.companions, known=self._old.place_of)
        self._staying = set(self._old.staying)
        self._account = _Account(self.plan, self._old)
        self._places = Places(len(fill.kept))
        self._device = 0

    def begin(self) -> None:
        """Take out of the folder what leaves it, and note by which call it is filled. Raises OutputError."""
        output, mark, before = self._fill.output, self._fill.mark, self._fill.before
        if before is not None:  # with whose name of the folder its table still begins
            mark = dataclasses.replace(mark, output=before.output)
        try:
            self._old.remove(output, self._fill.base, self._fill.companions, self._reader)
            write_text(output / NOTE, mark.text())
            self._device = output.stat().st_dev
        except OSError as exc:
            raise unwritable(output, exc) from exc

    def put(self, image: Image) -> None:
        """Deliver one image or companion, or count why not. Raises RunError if the disk is full or fails."""
        skips, target = self.plan.skips, self._fill.output / image.target
        try:
            place = self.plan.place(image, self._reader)
            target = self._fill.output / place
            self._put(image, place, target)
        except ImageError as exc:
            skips.fail(image.path, exc)
        except (Unlinkable, Unplaced) as exc:
            skips.add(image.path, str(exc))
        except (FileExistsError, NotADirectoryError):  # a member that is another one's folder
            skips.add(image.path, OCCUPIED)
        except OSError as exc:
            if not of_source(exc, image.address.file):
                raise storage_error(target, exc) from exc
            skips.add(image.path, reason(exc))

    def _put(self, image: Image, place: str, target: Path) -> None:
        way = self._fill.mark.way
        if place in self._staying:
            if place not in self._old.edited:  # those are counted
                self.plan.skips.add(image.path, OCCUPIED)
            return
        if os.path.lexists(target):
            self._account.already += not image.companion
            if way == MOVE and image.address.key is None:
                end_move(image.address.file, target)
        else:
            note = partial(self._journal.add, place, image.address.file)
            self._account.add(image, deliver_file(image, target, way, self._reader, self._device, note))
        if not image.companion:
            self._places.add(image.row, image.target, place)

    def end(self, *, made: bool) -> Delivered:
        """Write the scores of what is in the folder; one that this call has `made` and that is empty goes."""
        output, mark = self._fill.output, self._fill.mark
        if self._places.there.any() or self._staying:
            write_table(self._fill.kept, output, self._fill.base, self._places, self._old)
            write_text(output / NOTE, dataclasses.replace(mark, finished=True).text())
        else:
            for name in (TABLE, NOTE):
                (output / name).unlink(missing_ok=True)
            if made:
                remove_folder(output)
        return self._account.of(str(output))


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
        kept: rows of a scores file.
        output: the folder.
        base: where the tree that is kept starts, absolute.
        companions: that go along.
        mark: the note of this call.
        before: that of an earlier one, or of this one when it was stopped.
        update: whether what the earlier one has delivered is brought up to date.
    """

    kept: Kept
    output: Path
    base: str
    companions: Wish | None
    mark: Mark
    before: Mark | None
    update: bool

    def old(self, reader: ContainerReader) -> Old:
        """What is there of an earlier call. Raises InputError."""
        stopped = self.before is not None and not self.before.finished
        return look(self.kept, self.output, self.before, reader, remove=self.update or stopped)


def check_folder(
    kept: Kept,
    output: Path,
    way: str,
    root: str | None,
    companions: Wish | None = None,
    *,
    update: bool = False,
) -> Fill:
    """What `fill_folder` is to do. Raises what it raises before it begins."""
    try:
        before = read_mark(output)
        strange = before is None and output.exists() and any(output.iterdir())
    except OSError as exc:
        raise unwritable(output, exc) from exc
    info, rows = at_hand(kept.scores).stat(), hashlib.sha256(kept.mask.tobytes()).hexdigest()
    base = _base(kept, output, root, before if update else None)
    along = "" if companions is None else str(companions)
    column = kept.image_column or DEFAULT_COLUMN
    call = digest(counted(_Call(way, base, column, along, rows, info.st_size, info.st_mtime_ns)))
    mark = Mark(call, way, base, output=str(output), companions=along)
    fill = Fill(kept, output, base, companions, mark, before, update)
    if before is not None and before.call != call:
        _check_update(fill, before)
    inside = os.path.realpath(output)
    for image in kept.images():
        if os.path.realpath(image.address.file).startswith(inside + os.sep):
            raise OutputError(f"{output} holds images that are to be delivered ({image.path}); choose another OUT")
    if strange:
        raise OutputError(f"{output} is not empty, and nothing is ever overwritten; choose another OUT")
    check_table(kept, output)
    return fill


def _base(kept: Kept, output: Path, root: str | None, before: Mark | None) -> str:
    """Where the tree starts: without `root` where it did `before`, unless the images have been moved from there."""
    if root is None and before is not None and before.base and fits(output, before, before.base) is not False:
        return before.base
    return base_of(kept, root)


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
