"""Scoring the failed rows of a finished output again, in place."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from fiqa_trt.errors import InputError, RunError
from fiqa_trt.executors.base import Executor
from fiqa_trt.inputs.address import Address, sought
from fiqa_trt.inputs.containers.registry import TABLES
from fiqa_trt.inputs.source import Source
from fiqa_trt.outcomes import Status
from fiqa_trt.progress import Report, Say, silent
from fiqa_trt.runs.run import Options, Summary, begin_in_place, open_run, refuse_incomparable, refuse_other_causes
from fiqa_trt.scores.files import (
    check_columns,
    output_metadata,
    read_output,
    read_schema,
    recorded_fingerprint,
    with_metadata,
)
from fiqa_trt.scores.schema import needed_columns, own_columns
from fiqa_trt.storage.places import Place
from fiqa_trt.storage.registry import is_stored

_IN_TABLE = rf"(?i)({'|'.join(map(re.escape, TABLES))})(::|%3A%3A)"


def retry_failed(
    output: Place,
    open_executor: Callable[[], Executor],
    options: Options = Options(),
    report: Report = silent,
    say: Say = silent,
    image_column: str | None = None,
) -> Summary:
    """Score again, in place and atomically, the rows of a finished output whose status is not `ok`.

    All other rows, the order and the carried columns stay as they are. `image_column`: see `read_output`; another one
    than the output records only if no score comes from a table.

    Raises:
        InputError: the output does not exist or is not one of ours, or not one image that has a score is there.
        DifferentRun: its scores come from another model or precision, so new ones could not stand beside them.
        FiqaError: as in `score_dataset`.
    """
    if not output.is_file():
        raise InputError(f"--retry-failed {output}: no such file")
    with open_run(output, open_executor, options, report, say) as run:
        refuse_other_causes(run, "--retry-failed")
        own, folder = tuple(needed_columns(run.members, run.causes.names)), run.folder
        schema = check_columns(read_schema(output, own), output)
        finished = functools.partial(read_output, output, own, image_column)
        rows = sum(table.num_rows for table in finished())
        digest, count = folder.freeze(_failed(finished()))
        metadata = output_metadata(output)
        column = image_column or recorded_fingerprint(metadata).get("image_column")
        source = Source(image_column=column)
        fingerprint = run.fingerprint("retry", source, digest, count)
        if count:
            _refuse_elsewhere(output, finished(), say)
        free = () if any(map(_scored_in_tables, finished())) else ("image_column",)
        refuse_incomparable(output, "--retry-failed", fingerprint, say, free=free)
        if metadata is not None and recorded_fingerprint(metadata).get("image_column", column) != column:
            metadata["fingerprint"]["image_column"] = column
            schema = with_metadata(schema, metadata)
        begin_in_place(run, fingerprint)
        run.work()
        if count == 0:
            say(f"nothing to retry: every row of {output} is ok")
        return run.finish(
            schema, _merged(finished(), folder.units.parts(), own_columns(run.members, run.causes.names)), rows
        )


def _refuse_elsewhere(output: Place, tables: Iterable[pa.Table], say: Say) -> None:
    """Raise InputError if not one image that has a score is there and paths count from where the command is given: of
    what failed, nothing could be learned there. Where they do not, as of a disk that is away, it is said.
    """
    first = None
    for table in tables:
        for path in table.filter(pc.equal(table["status"], Status.OK.value))["path"].to_pylist():
            if is_stored(path) or os.path.lexists(Address.parse(path).file):
                return
            first = first or path
    if first is None:
        return
    gone = f"not one of the images that have scores is there now, for one not {sought(first)}"
    if not os.path.isabs(Address.parse(first).file):
        raise InputError(f"--retry-failed {output}: {gone}")
    say(gone)


def _scored_in_tables(table: pa.Table) -> bool:
    """Whether some rows of an output are scores of what is in a table."""
    inside = pc.match_substring_regex(table["path"], _IN_TABLE)
    return bool(pc.any(pc.and_(inside, pc.equal(table["status"], Status.OK.value))).as_py())


def _failed(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        failed = table.filter(pc.not_equal(table["status"], Status.OK.value)).select(["path"])
        yield from failed.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], failed.schema)]


class Fresh:
    """Rows that were scored, taken in order."""

    def __init__(self, parts: Iterable[pa.Table]) -> None:
        self._parts = iter(parts)
        self._held: pa.Table | None = None

    def take(self, count: int) -> pa.Table | None:
        """The next so many; None of none. Raises RunError if there are fewer."""
        if not count:
            return None
        while self._held is None or self._held.num_rows < count:
            more = next(self._parts, None)
            if more is None:
                raise RunError("fewer rows were scored than were to be; run the same command again")
            self._held = more if self._held is None else pa.concat_tables([self._held, more])
        taken, self._held = self._held.slice(0, count), self._held.slice(count)
        return taken


def _merged(tables: Iterable[pa.Table], parts: Iterable[pa.Table], own: Iterable[str]) -> Iterator[pa.Table]:
    """`tables` with the rows that are not `ok` replaced, in order, by the rows of `parts`, in the columns `own`."""
    fresh = Fresh(parts)
    for original in tables:
        table = original
        mask = pc.not_equal(table["status"].combine_chunks(), Status.OK.value)
        new = fresh.take(pc.sum(mask).as_py() or 0)
        # An output of an earlier version lacks some of them.
        for name in set(own) & set(table.column_names) if new is not None else ():
            assert new is not None
            index = table.schema.get_field_index(name)
            field = table.schema.field(index)
            values = pc.replace_with_mask(
                table[name].combine_chunks(), mask, new[name].combine_chunks().cast(field.type)
            )
            table = table.set_column(index, field, values)
        yield table
