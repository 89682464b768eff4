"""A data set that has changed: of a finished output only what is new or changed is scored, the rest keeps its rows.

An input is known by its recorded path, and unchanged if the size and the modification time of its file (of what is in a
shard: the time of the shard) are those that its row has. They stand in the output itself, in the columns `bytes` and
`modified`.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_trt.errors import DifferentRun, InputError, number_of, one_line
from fiqa_trt.executors.base import Executor
from fiqa_trt.inputs.address import Address, as_path, record_path
from fiqa_trt.inputs.containers.registry import CONTAINERS
from fiqa_trt.inputs.read_ahead import READERS
from fiqa_trt.inputs.reader import origin_of
from fiqa_trt.inputs.source import Source, check_source, list_inputs
from fiqa_trt.outcomes import Origin
from fiqa_trt.progress import Report, Say, silent
from fiqa_trt.runs.retry import Fresh
from fiqa_trt.runs.run import (
    Options,
    Run,
    Summary,
    apart_from,
    begin_in_place,
    open_run,
    refuse_incomparable,
    refuse_other_causes,
)
from fiqa_trt.runs.score import score_dataset
from fiqa_trt.scores.files import check_columns, holder, output_metadata, read_output, read_schema, with_metadata
from fiqa_trt.scores.schema import output_schema, own_columns, own_types
from fiqa_trt.storage.places import Place

Rows = npt.NDArray[np.int64]

_ORIGIN = ("bytes", "modified")
_INSIDE = rf"(?i)({'|'.join(map(re.escape, CONTAINERS))})(::|%3A%3A).*$"
_AT_ONCE = 1024  # files that a thread looks at


@dataclasses.dataclass(frozen=True)
class Changes:
    """An earlier output against the inputs that there are now.

    Attributes:
        was: int64 [inputs], the row that the output has of each input's path; -1 of a new one.
        source: int64 [inputs], the row of the output that each input keeps; -1 for one that is to be scored.
        gone: int64, rows of the output whose paths are no inputs any more, in order.
        new: inputs that the output does not have.
        changed: inputs whose file is another one by its size or its time.
    """

    was: Rows
    source: Rows
    gone: Rows
    new: int
    changed: int

    @property
    def kept(self) -> int:
        """Inputs that keep their rows."""
        return len(self.source) - self.new - self.changed

    def __str__(self) -> str:
        """For a person."""
        return f"{self.new:,} new, {self.changed:,} changed, {self.kept:,} unchanged, {len(self.gone):,} gone"


def compare(inputs: pa.Table, output: pa.Table) -> Changes:
    """Compare the columns `path`, `bytes` and `modified` of the inputs and of an earlier output.

    Null, for what could not be read, equals null. Where the size of an input is not known, its time decides. Of several
    rows of one path the first counts.
    """
    paths, listed = (table["path"].cast(pa.large_string()).combine_chunks() for table in (output, inputs))
    found = pc.index_in(listed, value_set=paths)
    there = pc.is_valid(found)
    size, modified = (
        _equal(inputs[name].combine_chunks(), output[name].combine_chunks().take(found)) for name in _ORIGIN
    )
    dated = pc.and_(pc.is_null(inputs["bytes"].combine_chunks()), pc.is_valid(inputs["modified"].combine_chunks()))
    same = pc.and_(there, pc.and_(modified, pc.or_(size, dated)))
    was, source = (
        np.asarray(pc.fill_null(rows, -1).to_numpy(zero_copy_only=False), np.int64)
        for rows in (found, pc.if_else(same, found, None))
    )
    gone = np.flatnonzero(pc.invert(pc.is_in(paths, value_set=listed)).to_numpy(zero_copy_only=False))
    new = int((was < 0).sum())
    return Changes(was, source, gone.astype(np.int64), new, int((source < 0).sum()) - new)


def _equal(now: pa.Array, then: pa.Array) -> pa.Array:
    return pc.or_(pc.and_(pc.is_null(now), pc.is_null(then)), pc.fill_null(pc.equal(now, then), False))


def update_dataset(
    source: Source,
    output: Place,
    open_executor: Callable[[], Executor],
    options: Options = Options(),
    report: Report = silent,
    say: Say = silent,
    *,
    keep_gone: bool = False,
) -> Summary:
    """Bring a finished output up to date with its inputs, in place and atomically; without one, score them all.

    New and changed inputs are scored, all others keep their rows; the order and the carried columns are those of the
    inputs now. A column that only the output has stays with what it holds of each path, be its image changed or not.
    Rows of inputs that are gone leave, or with `keep_gone` stand at the end. A call that was stopped goes on when it is
    made again. Other arguments as of `score_dataset`.

    Raises:
        InputError: the output is not one of ours, was written by a version that recorded no sizes and times, has not
            one path in common with the inputs, or has rows of what is in a folder or a shard that cannot be read now.
        DifferentRun: its scores come from another model or precision, so new ones could not stand beside them.
        FiqaError: as in `score_dataset`.
    """
    if not output.exists():
        return score_dataset(source, output, open_executor, options, report, say)
    check_source(source, output)
    with open_run(output, open_executor, options, report, say) as run:
        return _update(run, apart_from(source, run), keep_gone)


def _update(run: Run, source: Source, keep_gone: bool) -> Summary:
    output, folder, say = run.output, run.folder, run.say
    refuse_other_causes(run, "--update")
    batches = list_inputs(source, say)
    first = next(batches)
    ours = output_schema(run.members, first.schema, run.causes.names)
    schema = check_columns(ours, output)
    listed = folder.freeze(map(holder(output), itertools.chain([first], batches)))
    whole = run.fingerprint("score", source, *listed)
    refuse_incomparable(output, "--update", whole, say)
    if "filtered_from" in (output_metadata(output) or {}):
        raise DifferentRun(f"{output} holds what filter kept, not a data set; --update the file that it was kept from")
    own = own_columns(run.members, run.causes.names)
    old = _read_own(output, own)
    now = _with_origins(folder.listed())
    changes = compare(now, old)
    if len(old) and changes.new == len(changes.source):
        first_then, first_now = (table["path"][0].as_py() for table in (old, now))
        raise InputError(
            f"--update {output}: not one of the inputs is among its rows ({first_then} there, {first_now} now); give "
            "them as they were given before, from the same folder, or --restart"
        )
    if not keep_gone:
        _refuse_unreadable(output, old["path"].take(pa.array(changes.gone)), now, changes)
    say(f"{output}: {changes}")
    if len(changes.gone) and not keep_gone:
        say(
            f"{number_of(len(changes.gone), 'row leaves', 'rows leave')}, of inputs that are gone; --keep-gone keeps "
            "them, as for images that filter --move took away and --undo can bring back"
        )
    theirs = pa.schema(field for field in read_schema(output, ["path"]) if field.name not in ours.names)
    if len(theirs):
        say(f"kept from {output}, as the inputs do not bring it (null for what is new): {', '.join(theirs.names)}")
    schema = check_columns(pa.schema([*schema, *theirs]), output)
    # Our own columns in their types, and not as text: what the format makes of them is its writer's matter.
    rows = pa.schema([*list(ours)[: len(own)], *list(schema)[len(own) :]])
    gone = _gone(output, changes.gone, rows) if keep_gone else rows.empty_table()
    folder.set_aside()
    run_of = run.fingerprint("update", source, *folder.freeze(_pending(folder.aside(["path"]), changes.source)))
    begin_in_place(run, run_of)
    run.work()
    fresh, carried = Fresh(folder.units.parts()), _read_carried(output, theirs.names)
    tables = itertools.chain(_merged(folder.aside(), changes, old, fresh, carried, rows), [gone])
    return run.finish(with_metadata(schema, run.metadata(whole)), tables, len(changes.source) + gone.num_rows)


def _refuse_unreadable(output: Place, gone: pa.ChunkedArray, now: pa.Table, changes: Changes) -> None:
    """Raise InputError if rows would leave because a folder or a shard cannot be read, so that it is an input itself,
    or is a link that leads nowhere.

    A disk that fails for an hour must not cost the scores of what is on it.
    """
    shards = pc.replace_substring_regex(gone, _INSIDE, r"\1")
    folders = pc.replace_substring_regex(gone, "/[^/]*$", "")
    above = set[str]()
    for paths in (shards, folders):
        for path in pc.unique(paths.filter(pc.not_equal(paths, gone))).to_pylist():
            name = record_path(as_path(path))
            while name and name not in above:
                above.add(name)
                name = name.rpartition("/")[0]
    names = pc.utf8_rtrim(now["path"].cast(pa.large_string()), "/")
    found = pc.and_(pc.is_null(now["bytes"]), pc.is_in(names, value_set=pa.array(above, pa.large_string())))
    unread = now["path"].filter(pc.and_(found, pa.array(changes.source < 0)))
    broken = (name for name in above if os.path.islink(as_path(name)) and not os.path.exists(as_path(name)))
    if culprit := unread[0].as_py() if len(unread) else next(broken, None):
        raise InputError(
            f"--update {output}: {culprit} cannot be read to its end, and the rows of what was in it would "
            "go; mend that, or --keep-gone keeps them"
        )


def _read_own(output: Place, own: list[str]) -> pa.Table:
    """Our columns of an output, whole; text as large_string, since that of some ten million rows takes gigabytes.

    Raises InputError if one is missing or not what it was.
    """
    parts = list[pa.Table]()
    types = own_types([name.removeprefix("score_") for name in own if name.startswith("score_")])
    for table in read_output(output, [name for name in own if name not in _ORIGIN]):
        lacking = [n for n in _ORIGIN if n not in table.column_names or table.schema.field(n).type != types[n]]
        if lacking:
            raise InputError(
                f"--update {output}: it does not record the sizes and times of its files (column {lacking[0]}), as an "
                "earlier version or another program wrote it; --restart scores everything anew"
            )
        ours = table.select(own)
        large = [field.with_type(pa.large_string()) if field.type == pa.string() else field for field in ours.schema]
        parts.append(ours.cast(pa.schema(large)))
    return pa.concat_tables(parts).combine_chunks()


def _read_carried(output: Place, names: list[str]) -> pa.Table:
    """Columns of an output that are not ours, whole."""
    return pa.concat_tables([table.select(names) for table in read_output(output, ["path"])]).combine_chunks()


def _with_origins(paths: Iterable[pa.ChunkedArray]) -> pa.Table:
    """Recorded paths with what they come from now."""

    def look(part: list[str]) -> list[Origin]:
        known, files = dict[str, Origin](), dict[str, bool]()
        return [origin_of(Address.parse(path, files), known) for path in part]

    parts = list[pa.Table]()
    with ThreadPoolExecutor(READERS, "look") as pool:
        for column in paths:
            names = column.to_pylist()
            found = pool.map(look, (names[start : start + _AT_ONCE] for start in range(0, len(names), _AT_ONCE)))
            origins = [origin for part in found for origin in part]
            types = own_types([])
            arrays = [pa.array([getattr(o, name) for o in origins], types[name]) for name in _ORIGIN]
            parts.append(pa.table([column.cast(pa.string()), *arrays], names=["path", *_ORIGIN]))
    return pa.concat_tables(parts)


def _pending(listed: Iterable[pa.Table], source: Rows) -> Iterator[pa.RecordBatch]:
    """The paths that are to be scored."""
    start = 0
    for table in listed:
        chosen = table.filter(pa.array(source[start : start + table.num_rows] < 0)).combine_chunks()
        start += table.num_rows
        yield from chosen.to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]


def _merged(
    listed: Iterable[pa.Table], changes: Changes, old: pa.Table, fresh: Fresh, carried: pa.Table, schema: pa.Schema
) -> Iterator[pa.Table]:
    """The rows of all inputs: those of `old` that are kept, the others from `fresh`, with the columns carried now, and
    those of the output that are `carried` on.
    """
    start = 0
    for table in listed:
        here = slice(start, start + table.num_rows)
        rows, was = changes.source[here], changes.was[here]
        start += table.num_rows
        kept = rows >= 0
        new = fresh.take(int((~kept).sum()))
        both = old.take(pa.array(rows[kept]))
        if new is not None:
            both = pa.concat_tables([both, new.select(old.column_names).cast(both.schema)])
        place = np.empty(len(rows), np.int64)
        place[kept], place[~kept] = np.arange(kept.sum()), np.arange(kept.sum(), len(rows))
        own, before = both.take(pa.array(place)), carried.take(pa.array(was, mask=was < 0))
        yield pa.table([*own.columns, *table.columns[1:], *before.columns], schema=schema)


def _gone(output: Place, rows: Rows, schema: pa.Schema) -> pa.Table:
    """Rows of an output with the columns of a schema; null in those that it does not have."""
    parts, start = [schema.empty_table()], 0
    for table in read_output(output, ["path"]):
        here = rows[(rows >= start) & (rows < start + table.num_rows)] - start
        start += table.num_rows
        if not len(here):
            continue
        taken, columns = table.take(pa.array(here)), list[pa.ChunkedArray | pa.Array]()
        for field in schema:
            if field.name not in taken.column_names:
                columns.append(pa.nulls(len(here), field.type))
                continue
            try:
                columns.append(taken[field.name].cast(field.type))
            except pa.ArrowException as exc:
                raise InputError(
                    f"--keep-gone: the column `{field.name}` of {output} does not fit that of the list now: "
                    f"{one_line(exc)}"
                ) from exc
        parts.append(pa.table(columns, schema=schema))
    return pa.concat_tables(parts)
