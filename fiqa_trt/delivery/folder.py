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

from fiqa_trt.delivery.common import Delivered, Report
from fiqa_trt.delivery.companions import Wish
from fiqa_trt.delivery.file import INSIDE, Unlinkable, data_of, deliver_file, end_move, of_source, reason
from fiqa_trt.delivery.plan import OCCUPIED, Image, Plan, Unplaced, base_of
from fiqa_trt.delivery.table import Places, check_table, write_table
from fiqa_trt.delivery.undo import Journal
from fiqa_trt.errors import OutputError, storage_error
from fiqa_trt.filtering import Mask, kept_rows
from fiqa_trt.fingerprint import counted
from fiqa_trt.marks import MOVE, NOTE, Mark, read_mark
from fiqa_trt.progress import Progress
from fiqa_trt.records import ImageError
from fiqa_trt.shards import DEFAULT_COLUMN, ShardReader, locate
from fiqa_trt.spec import digest
from fiqa_trt.storage import atomic

WAYS = ("copy", "hardlink", "symlink", MOVE)


def measure(
    scores: Path,
    mask: Mask,
    way: str | None = None,
    root: str | None = None,
    image_column: str | None = None,
    companions: Wish | None = None,
    samples: bool = False,
    output: Path | None = None,
) -> Delivered:
    """What a delivery would write: counts and bytes, nothing touched. Arguments and errors as of `fill_folder`.

    `samples`: images out of tars take their samples along in any case, as `write_shards` has it. `output`: what is in
    that folder already is not written.
    """
    reader, account = ShardReader(image_column or DEFAULT_COLUMN), _Account()
    plan = Plan(scores, mask, base_of(scores, root), reader, companions, samples)
    for image in plan:
        try:
            if image.key is not None and way not in (None, "copy"):
                plan.skips.add(image.path, INSIDE.format(way))
                continue
            if output is not None and os.path.lexists(output / plan.place(image, reader)):
                account.already += not image.companion
                continue
            account.add(image, os.stat(image.file).st_size if image.key is None else len(data_of(image, reader)))
        except (OSError, ImageError, Unplaced) as exc:
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

    def add(self, image: Image, size: int) -> None:
        self.written, self.companions = self.written + (not image.companion), self.companions + image.companion
        self.bytes += size

    def of(self, output: str, plan: Plan) -> Delivered:
        """With what was not."""
        done = (output, self.written, self.already, dict(plan.skips.reasons), plan.skips.examples)
        return Delivered(*done, self.bytes, self.companions, plan.left_behind.images, plan.left_behind.kinds())


def fill_folder(
    scores: Path,
    mask: Mask,
    output: Path,
    way: str,
    root: str | None = None,
    image_column: str | None = None,
    report: Report = lambda progress: None,
    companions: Wish | None = None,
) -> Delivered:
    """Put the kept images into a folder, their tree below `root` preserved.

    Args:
        scores: a scores file.
        mask: its kept rows.
        output: a folder that does not exist, or is empty, or was filled by the same call, to its end or not.
        way: one of WAYS. A move across devices copies, compares and only then removes; of a link, what it leads to is
            copied and the link removed.
        root: where the tree starts; by default the deepest folder that holds all images of the file, kept or not.
        image_column: of tables among the inputs.
        report: receives the images done.
        companions: which of the files that go with the images are delivered as well; None for none.

    Raises:
        InputError: there is no folder `root`.
        OutputError: the folder is not empty, cannot be written, or lies where the images come from.
        RunError: the disk is full or fails; the same call goes on.
    """
    base, account, done, count = base_of(scores, root), _Account(), 0, int(mask.sum())
    call = check_folder(scores, mask, output, way, root, image_column, companions)
    mark, places, journal = Mark(call, way, base), Places(count), Journal(output)
    try:
        output.mkdir(exist_ok=True)
        _write_mark(output, mark)
    except OSError as exc:
        raise OutputError(f"cannot write {output}: {exc.strerror}") from exc
    reader, device = ShardReader(image_column or DEFAULT_COLUMN), output.stat().st_dev
    plan = Plan(scores, mask, base, reader, companions)
    try:
        for image in plan:
            target = output / image.target
            try:
                place = plan.place(image, reader)
                target = output / place
                if os.path.lexists(target):
                    account.already += not image.companion
                    if way == MOVE and image.key is None:
                        end_move(image.file, target)
                else:
                    note = partial(journal.add, place, image.file)
                    account.add(image, deliver_file(image, target, way, reader, device, note))
                if not image.companion:
                    places.add(image.row, image.target, place)
            except ImageError as exc:
                plan.skips.add(image.path, exc.outcome.status.value)
            except FileNotFoundError:
                plan.skips.add(image.path, "missing")
            except (Unlinkable, Unplaced) as exc:
                plan.skips.add(image.path, str(exc))
            except (FileExistsError, NotADirectoryError):  # a member that is another one's folder
                plan.skips.add(image.path, OCCUPIED)
            except OSError as exc:
                if not of_source(exc, image.file):
                    raise storage_error(target, exc) from exc
                plan.skips.add(image.path, reason(exc))
            finally:
                done += not image.companion
                report(Progress(done, count, sum(plan.skips.reasons.values())))
    finally:
        reader.close()
        journal.close()
    if places.there.any():
        write_table(scores, mask, output, base, places)
        _write_mark(output, dataclasses.replace(mark, finished=True))
    else:
        (output / NOTE).unlink()
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


def check_folder(
    scores: Path,
    mask: Mask,
    output: Path,
    way: str,
    root: str | None,
    image_column: str | None = None,
    companions: Wish | None = None,
) -> str:
    """A digest of all that `fill_folder` is to do. Raises what it raises before it begins."""
    info, kept = scores.stat(), hashlib.sha256(mask.tobytes()).hexdigest()
    base, column = base_of(scores, root), image_column or DEFAULT_COLUMN
    along = "" if companions is None else str(companions)
    plan = digest(counted(_Call(way, base, column, along, kept, info.st_size, info.st_mtime_ns)))
    inside = os.path.realpath(output)
    for table in kept_rows(scores, mask):
        for path in table["path"].to_pylist():
            if os.path.realpath(locate(path)[0]).startswith(inside + os.sep):
                raise OutputError(f"{output} holds images that are to be delivered ({path}); choose another OUT")
    check_table(scores, output)
    try:
        mark = read_mark(output)
        if mark is not None and mark.call != plan:
            what = "was filled by another call; " if mark.finished else "was being filled by another call; empty it or "
            raise OutputError(f"{output} {what}choose another OUT")
        if output.exists() and mark is None and any(output.iterdir()):
            raise OutputError(f"{output} is not empty, and nothing is ever overwritten; choose another OUT")
    except OSError as exc:
        raise OutputError(f"cannot write {output}: {exc.strerror}") from exc
    return plan
