"""Scoring a data set: from what the user gives to one complete output."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence

import pyarrow as pa

from fiqa_trt.errors import DifferentRun, InputError, already_there
from fiqa_trt.executors.base import Executor
from fiqa_trt.fingerprint import Fingerprint, refuse_difference
from fiqa_trt.inputs.source import Source, check_source, list_inputs
from fiqa_trt.progress import Report, Say, silent
from fiqa_trt.runs.run import Options, Run, Summary, apart_from, open_run
from fiqa_trt.scores.files import (
    check_columns,
    holder,
    output_metadata,
    read_output,
    recorded_fingerprint,
    with_metadata,
)
from fiqa_trt.scores.schema import needed_columns, output_schema
from fiqa_trt.scores.tally import Tally
from fiqa_trt.storage.places import Place


def score_dataset(
    source: Source,
    output: Place,
    open_executor: Callable[[], Executor],
    options: Options = Options(),
    report: Report = silent,
    say: Say = silent,
) -> Summary:
    """Score every input of `source` into `output`; goes on by itself with what an earlier call left unfinished.

    Args:
        source: what to score.
        output: .parquet, .csv or .jsonl; appears complete or not at all.
        open_executor: called once, when the output is known to be writable.
        options: how to run.
        report: receives the progress after every batch.
        say: receives one line for each thing that the user should know of.

    Raises:
        FiqaError: see `fiqa_trt.errors`; what is finished is kept for the next call.
    """
    check_source(source, output)
    with open_run(output, open_executor, options, report, say) as run:
        run.check_causes()
        folder, source = run.folder, apart_from(source, run)
        batches = list_inputs(source, say)
        first = next(batches)
        schema = check_columns(output_schema(run.members, first.schema, run.causes.names), output)
        digest, count = folder.freeze(map(holder(output), itertools.chain([first], batches)))
        fingerprint = run.fingerprint("score", source, digest, count)
        if options.restart:
            folder.forget()
        elif folder.recorded() is None and output.exists():
            return _completed(run, fingerprint)
        folder.begin(fingerprint)
        run.work()
        return run.finish(with_metadata(schema, run.metadata(fingerprint)), folder.units.parts(), count)


def _completed(run: Run, fingerprint: Fingerprint) -> Summary:
    """What an output that is there holds, if it is what this run would write. Raises DifferentRun if it is not."""
    output, metadata, needed = run.output, output_metadata(run.output), needed_columns(run.members, run.causes.names)
    if metadata is None and not _holds(output, needed, run.folder.listed()):
        raise already_there(output)
    if metadata is None:
        run.say(f"{output} has a row for each of these inputs, but does not record what its scores are from")
    elif "filtered_from" in metadata:
        raise DifferentRun(f"{output} holds what filter kept; --restart replaces it, or choose another -o")
    else:
        _refuse_other(output, recorded_fingerprint(metadata), fingerprint)
    run.say(f"{output} is already complete; --restart scores it anew")
    tally = Tally()
    for _ in tally.count(read_output(output, needed)):
        pass
    return dataclasses.replace(run.summary(tally), already=True)


def _refuse_other(output: Place, recorded: Fingerprint, wanted: Fingerprint) -> None:
    """Raise DifferentRun unless a finished output is of the run that is wanted."""
    if {**recorded, "inputs": "", "count": 0} == {**wanted, "inputs": "", "count": 0} and recorded != wanted:
        raise DifferentRun(
            f"{output} is of other inputs ({recorded.get('count')} there, {wanted['count']} now); --update scores what "
            "is new or changed, --restart everything, or choose another -o"
        )
    refuse_difference(str(output), recorded, wanted)


def _holds(output: Place, needed: Sequence[str], listed: Iterable[pa.ChunkedArray]) -> bool:
    """Whether an output has exactly the inputs of a list, in their order."""
    found, wanted = hashlib.sha256(), hashlib.sha256()
    try:
        for table in read_output(output, needed):
            _digest_paths(found, table["path"])
    except InputError:
        return False
    for paths in listed:
        _digest_paths(wanted, paths)
    return found.digest() == wanted.digest()


def _digest_paths(digest: hashlib._Hash, paths: pa.ChunkedArray) -> None:
    for path in paths.to_pylist():
        digest.update(path.encode() + b"\0")
