"""The run: a frozen list of inputs to one complete output, with resume, retry and accounting."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fiqa_trt.errors import DifferentRun, InputError, already_there
from fiqa_trt.executors.base import Executor
from fiqa_trt.fingerprint import FREE, Fingerprint, counted, refuse_difference
from fiqa_trt.inputs.source import Source, check_source, list_inputs
from fiqa_trt.models.spec import PreprocessSpec
from fiqa_trt.outcomes import Status
from fiqa_trt.progress import Progress, Report, Say, silent
from fiqa_trt.runs.state import RunFolder
from fiqa_trt.scores.files import (
    SUFFIXES,
    check_columns,
    holder,
    output_metadata,
    read_output,
    recorded_fingerprint,
    with_metadata,
    write_output,
)
from fiqa_trt.scores.schema import needed_columns, output_schema, own_columns
from fiqa_trt.scores.tally import Tally
from fiqa_trt.storage.writing import check_output, target_of
from fiqa_trt.version import __version__

UNIT_ROWS = 8192
# What scores depend on: rows may stand side by side only if these agree, and those that not every version records.
_COMPARABLE = ("model", "precision", "executed", "preprocess")
_SINCE = ("image_column",)


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, besides what and where.

    Attributes:
        unit_rows: rows of a unit of work, the most that a kill can cost.
        restart: forget an earlier run and replace its output.
        command: recorded in the output, for whoever wonders how it was made.
    """

    unit_rows: int = UNIT_ROWS
    restart: bool = dataclasses.field(default=False, metadata=FREE)
    command: str = dataclasses.field(default="", metadata=FREE)


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a run gave.

    Attributes:
        output: path of the output.
        images: its rows.
        statuses: rows by status, most frequent first.
        quantiles: score at each of QUANTILES, to 1e-4; empty without scores.
        scored_now: rows that this process worked on; the rest was there from before.
        seconds: spent on those.
        engine: what scored them, as in the output's metadata.
        unforeseen: rows of images that made a decoder or a reader raise what none should; they are `corrupt`.
        already: the output was complete before, and is as it was.
    """

    output: str
    images: int
    statuses: dict[str, int]
    quantiles: dict[str, float]
    scored_now: int
    seconds: float
    engine: dict[str, Any]
    unforeseen: int = 0
    already: bool = False

    @property
    def failed(self) -> int:
        """Rows without a score."""
        return self.images - self.statuses.get(Status.OK.value, 0)


class Run:
    """One call of `fiqa-trt score`: the output, its working state, who does the work, and who is told of it."""

    def __init__(self, output: Path, folder: RunFolder, executor: Executor, options: Options, report: Report, say: Say):
        self.output = output
        self.folder = folder
        self.executor = executor
        self.options = options
        self.report = report
        self.say = say
        self.members = executor.info.members
        self.scored_now = 0
        self.seconds = 0.0

    def fingerprint(self, job: str, source: Source, inputs: str, count: int) -> Fingerprint:
        """Everything that the rows of this run depend on.

        Args:
            job: `score` or `retry`.
            source: of the inputs.
            inputs: digest of their list.
            count: how many they are.
        """
        return {
            "job": job,
            "version": __version__,
            **counted(self.executor.info),
            "preprocess": PreprocessSpec().digest(),
            **counted(self.executor.setup),
            "libraries": decoding_libraries(self.executor.decoder),
            **counted(source.resolved()),
            **counted(self.options),
            "count": count,
            "inputs": inputs,
        }

    def metadata(self, fingerprint: Fingerprint) -> dict[str, Any]:
        """What the output says of how it was made."""
        return {
            "version": __version__,
            "engine": dataclasses.asdict(self.executor.info),
            "decoder": self.executor.decoder,
            "command": self.options.command,
            "preprocess": dataclasses.asdict(PreprocessSpec()),
            "fingerprint": fingerprint,
        }

    def work(self) -> None:
        """Score every unit that has no part yet.

        Raises:
            RunError: the disk is full, or the engine failed; finished units are kept.
        """
        failed_before = Tally()
        before = sum(table.num_rows for table in failed_before.count(self.folder.units.finished()))
        done, total = before, self.folder.units.rows()
        failed = before - failed_before.statuses[Status.OK.value]
        if before:
            self.say(f"resuming: {before} of {total} are there already")
        began = time.monotonic()

        def report(rows: int, failures: int) -> None:
            nonlocal done, failed
            done, failed = done + rows, failed + failures
            self.report(Progress(done, total, failed, before))

        self.executor.work(self.folder.units, report)
        self.scored_now, self.seconds = total - before, time.monotonic() - began

    def finish(self, schema: pa.Schema, tables: Iterable[pa.Table], expected: int) -> Summary:
        """Put the output in place and drop the working state.

        Raises:
            RunError: the disk is full, or the rows are not as many as the inputs (never seen; nothing is written then).
        """
        tally = Tally()
        write_output(self.output, schema, tally.count(tables), expected)
        self.folder.remove()
        return self.summary(tally)

    def summary(self, tally: Tally) -> Summary:
        """What the output, counted by `tally`, holds."""
        statuses = dict(tally.statuses.most_common())
        engine = dataclasses.asdict(self.executor.info)
        images = sum(statuses.values())
        return Summary(
            str(self.output),
            images,
            statuses,
            tally.quantiles(),
            self.scored_now,
            self.seconds,
            engine,
            tally.unforeseen,
        )


@contextlib.contextmanager
def open_run(
    output: Path, open_executor: Callable[[], Executor], options: Options, report: Report, say: Say
) -> Iterator[Run]:
    """A run, its working state and its executor, for as long as the block lasts. Arguments as of `score_dataset`."""
    check_output(output, SUFFIXES)
    executor = open_executor()
    try:
        with RunFolder(output, options.unit_rows) as folder:
            yield Run(output, folder, executor, options, report, say)
    finally:
        executor.close()


def apart_from(source: Source, run: Run) -> Source:
    """A source whose folders are not searched for the run's own files, and whose columns do not have our names."""
    files = (str(run.output), str(target_of(run.output)), str(run.folder.path))
    return dataclasses.replace(source, reserved=tuple(own_columns(run.members)), exclude=files)


def score_dataset(
    source: Source,
    output: Path,
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
        folder, source = run.folder, apart_from(source, run)
        batches = list_inputs(source, say)
        first = next(batches)
        schema = check_columns(output_schema(run.members, first.schema), output)
        digest, count = folder.freeze(map(holder(output), itertools.chain([first], batches)))
        fingerprint = run.fingerprint("score", source, digest, count)
        if options.restart:
            folder.forget()
        elif folder.recorded() is None and output.exists():
            return _completed(run, fingerprint)
        folder.begin(fingerprint)
        run.work()
        return run.finish(with_metadata(schema, run.metadata(fingerprint)), folder.units.parts(), count)


def decoding_libraries(decoder: str) -> str:
    """Versions of what a decoder, given by its name, works with; as a fingerprint records them."""
    import PIL

    dali = [
        f"DALI {found.version}"
        for found in (importlib.metadata.distributions() if decoder.startswith("dali") else ())
        if found.name.startswith("nvidia-dali-cuda")
    ]
    return ", ".join([f"Pillow {PIL.__version__}", *dali])


def _completed(run: Run, fingerprint: Fingerprint) -> Summary:
    """What an output that is there holds, if it is what this run would write. Raises DifferentRun if it is not."""
    output, metadata, needed = run.output, output_metadata(run.output), needed_columns(run.members)
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


def _refuse_other(output: Path, recorded: Fingerprint, wanted: Fingerprint) -> None:
    """Raise DifferentRun unless a finished output is of the run that is wanted."""
    if {**recorded, "inputs": "", "count": 0} == {**wanted, "inputs": "", "count": 0} and recorded != wanted:
        raise DifferentRun(
            f"{output} is of other inputs ({recorded.get('count')} there, {wanted['count']} now); --update scores what "
            "is new or changed, --restart everything, or choose another -o"
        )
    refuse_difference(str(output), recorded, wanted)


def _holds(output: Path, needed: Sequence[str], listed: Iterable[pa.ChunkedArray]) -> bool:
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


def refuse_incomparable(
    output: Path, option: str, fingerprint: Fingerprint, say: Say, *, free: Sequence[str] = ()
) -> None:
    """Refuse to put new scores beside those of an output that come from something else.

    Args:
        output: a finished output.
        option: that was given.
        fingerprint: of the run that would write them.
        say: hears that a format does not record what its scores are from.
        free: names in the fingerprint that no score of the output depends on.

    Raises:
        InputError: a .parquet that does not say it.
        DifferentRun: another model, precision, preprocessing or column of images.
    """
    metadata = output_metadata(output)
    if metadata is None and output.suffix.lower() == ".parquet":
        raise InputError(f"{option} {output}: it does not say which model its scores are from")
    if metadata is None:
        say(f"{output.suffix} does not record what its scores are from: use the engine that they are from")
        return
    recorded = {**dict.fromkeys(_COMPARABLE, "unknown"), **recorded_fingerprint(metadata)}
    alike = [key for key in (*_COMPARABLE, *_SINCE) if key in recorded and key not in free]
    refuse_difference(
        str(output),
        {key: recorded[key] for key in alike},
        {key: fingerprint[key] for key in alike},
        "give the --engine, --precision and --image-column that it is from",
    )


def begin_in_place(run: Run, fingerprint: Fingerprint) -> None:
    """Begin or go on with a job on a finished output; what another one of its kind has left is forgotten: it was
    killed after it had put its result in place, or what it was to do has changed since.
    """
    state = run.folder.recorded()
    if state is not None and state.get("job") == fingerprint["job"] and state != fingerprint:
        run.folder.forget()
    run.folder.begin(fingerprint)
