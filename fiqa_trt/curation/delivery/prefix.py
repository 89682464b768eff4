"""Delivery as objects below a prefix of a store: copies, their tree preserved, and a table of their scores.

A note says which call fills the prefix: the same one goes on, and leaves out what is there already.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from fiqa_trt.curation.delivery.common import Delivered
from fiqa_trt.curation.delivery.file import data_of
from fiqa_trt.curation.delivery.plan import Image, Plan, Unplaced, base_of
from fiqa_trt.curation.delivery.refresh import Old
from fiqa_trt.curation.delivery.table import Places, check_table, write_table
from fiqa_trt.curation.kept import Kept
from fiqa_trt.errors import OutputError
from fiqa_trt.fingerprint import counted
from fiqa_trt.inputs.marks import NOTE, Mark
from fiqa_trt.inputs.reader import ContainerReader
from fiqa_trt.models.spec import digest
from fiqa_trt.outcomes import ImageError
from fiqa_trt.progress import Progress, Report, silent
from fiqa_trt.storage.places import Uri, at_hand, below
from fiqa_trt.storage.registry import writer_of
from fiqa_trt.storage.writing import write_text

_UPLOADS = 16
"""Objects that are read and written at a time."""


@dataclasses.dataclass(frozen=True)
class _Call:
    """All that decides what a prefix is filled with."""

    base: str
    image_column: str | None
    mask: str
    scores: str


def check_prefix(kept: Kept, output: Uri, root: str | None) -> tuple[str, Mark, set[str]]:
    """Where the tree starts, the note of this call, and the objects that are there already.

    Raises:
        InputError: there is no folder `root`.
        OutputError: nothing can be written there, or something else than what this call has left is there.
    """
    writer_of(os.fspath(output)).check(os.fspath(output))
    check_table(kept, output)
    base = base_of(kept, root)
    rows = hashlib.sha256(kept.mask.tobytes()).hexdigest()
    content = hashlib.sha256(at_hand(kept.scores).read_bytes()).hexdigest()
    mark = Mark(digest(counted(_Call(base, kept.image_column, rows, content))), "copy", base, output=str(output))
    there = {entry.path for entry in below(output)}
    if there:
        noted = (output / NOTE).read_text() if os.fspath(output / NOTE) in there else ""
        if mark.call not in noted:
            raise OutputError(f"{output} is not empty, and nothing is ever overwritten; choose another OUT")
    return base, mark, there


def fill_prefix(kept: Kept, output: Uri, root: str | None = None, report: Report = silent) -> Delivered:
    """Put copies of the kept images below a prefix.

    Args:
        kept: rows of a scores file.
        output: of which nothing is there yet, or what the same call has left.
        root: where their tree starts, see `fill_folder`.
        report: receives the images done.

    Raises:
        FiqaError: see `check_prefix`; StoreError, after which the same call goes on.
    """
    base, mark, there = check_prefix(kept, output, root)
    write_text(output / NOTE, mark.text())
    places, written, already, size, done = Places(len(kept)), 0, 0, 0, 0
    with contextlib.closing(ContainerReader()) as reader:
        plan = Plan(kept, base, reader, None)
        for image, result in _put_all(plan, output, reader, there):
            done += 1
            report(Progress(done, len(kept), sum(plan.skips.reasons.values())))
            if isinstance(result, ImageError):
                plan.skips.fail(image.path, result)
            elif isinstance(result, Unplaced):
                plan.skips.add(image.path, str(result))
            else:
                place, count = result
                places.add(image.row, image.target, place)
                written, already, size = written + (count is not None), already + (count is None), size + (count or 0)
    if places.there.any():
        write_table(kept, output, base, places, Old())
        write_text(output / NOTE, dataclasses.replace(mark, finished=True).text())
    else:
        (output / NOTE).unlink()
    left = plan.left_behind
    skips = (dict(plan.skips.reasons), plan.skips.examples)
    return Delivered(str(output), written, already, *skips, size, 0, left.images, left.kinds())


_Result = tuple[str, int | None] | ImageError | Unplaced


def _put_all(plan: Plan, output: Uri, reader: ContainerReader, there: set[str]) -> Iterator[tuple[Image, _Result]]:
    """Where each image went and its bytes (None if it was there), or why it is not; several at a time, in order."""

    def placed(image: Image) -> str | ImageError | Unplaced:
        try:
            return plan.place(image, reader)
        except (ImageError, Unplaced) as exc:
            return exc

    def put(image: Image, place: str | ImageError | Unplaced) -> _Result:
        if not isinstance(place, str):
            return place
        target = f"{os.fspath(output)}/{place}"
        if target in there:
            return place, None
        try:
            data = data_of(image, reader)
        except ImageError as exc:
            return exc
        writer_of(target).put(target, data)
        return place, len(data)

    waiting = deque[tuple[Image, Future[_Result]]]()
    with ThreadPoolExecutor(_UPLOADS, "upload") as pool:
        for image in plan:
            # Of two that want one place the first gets it, whoever would be quicker, or another call would mix them up.
            waiting.append((image, pool.submit(put, image, placed(image))))
            if len(waiting) >= 2 * _UPLOADS:
                first, result = waiting.popleft()
                yield first, result.result()
        yield from ((first, result.result()) for first, result in waiting)
