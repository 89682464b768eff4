"""A run, whatever it scores: the output, its working state, who does the work, and what it all depends on."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from fiqa_trt.decoding.registry import libraries
from fiqa_trt.errors import DifferentRun, EngineError, InputError
from fiqa_trt.executors.base import Executor
from fiqa_trt.fingerprint import FREE, Fingerprint, counted, refuse_difference
from fiqa_trt.inputs.source import Source
from fiqa_trt.models.causes import NONE
from fiqa_trt.models.spec import PreprocessSpec
from fiqa_trt.outcomes import Status
from fiqa_trt.progress import Progress, Report, Say
from fiqa_trt.runs.state import RunFolder
from fiqa_trt.scores.files import (
    SUFFIXES,
    output_metadata,
    read_schema,
    recorded_fingerprint,
    write_output,
)
from fiqa_trt.scores.members import causes_of
from fiqa_trt.scores.schema import own_columns
from fiqa_trt.scores.tally import Tally
from fiqa_trt.storage.places import Place
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
        nodes: of a cluster, images a second of each.
        causes: rows by their cause, most frequent first; empty where rows tell of none.
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
    nodes: dict[str, float] = dataclasses.field(default_factory=dict)
    causes: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def failed(self) -> int:
        """Rows without a score."""
        return self.images - self.statuses.get(Status.OK.value, 0)


class Run:
    """One call of `fiqa-trt score`: the output, its working state, who does the work, and who is told of it."""

    def __init__(
        self, output: Place, folder: RunFolder, executor: Executor, options: Options, report: Report, say: Say
    ):
        self.output = output
        self.folder = folder
        self.executor = executor
        self.options = options
        self.report = report
        self.say = say
        self.members = executor.info.members
        self.causes = executor.info.causes if executor.setup.causes else NONE
        self.scored_now = 0
        self.seconds = 0.0

    def check_causes(self) -> None:
        """Raise EngineError if the rows are to tell of causes, and the engine does not."""
        if self.executor.setup.causes and not self.causes:
            raise EngineError(
                "--causes: the checkpoint of this engine tells of none; leave it out, or give --engine one that was "
                "built from a checkpoint that does"
            )

    def fingerprint(self, job: str, source: Source, inputs: str, count: int) -> Fingerprint:
        """Everything that the rows of this run depend on.

        Args:
            job: `score` or `retry`.
            source: of the inputs.
            inputs: digest of their list.
            count: how many they are.
        """
        setup = counted(self.executor.setup)
        if not self.causes:
            del setup["causes"]  # as of versions that knew none
        return {
            "job": job,
            "version": __version__,
            **counted(self.executor.info),
            "preprocess": PreprocessSpec().digest(),
            **setup,
            "libraries": libraries(self.executor.decoder),
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
            **({"causes": self.causes.named()} if self.causes else {}),
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
            self.folder.check()
            done, failed = done + rows, failed + failures
            # A cluster's numbers are of different moments.
            self.report(Progress(min(done, total), total, failed, before, self.executor.at_work))

        self.executor.work(self.folder.units, report)
        self.scored_now, self.seconds = total - before, time.monotonic() - began

    def finish(self, schema: pa.Schema, tables: Iterable[pa.Table], expected: int) -> Summary:
        """Put the output in place and drop the working state.

        Raises:
            RunError: the disk is full, or the rows are not as many as the inputs (never seen; nothing is written then).
        """
        self.folder.check(now=True)
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
            nodes={name: round(rate, 1) for name, rate in self.executor.rates.items()},
            causes=tally.named(),
        )


@contextlib.contextmanager
def open_run(
    output: Place, open_executor: Callable[[], Executor], options: Options, report: Report, say: Say
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
    files = tuple(map(os.fspath, (run.output, target_of(run.output), run.folder.home)))
    return dataclasses.replace(source, reserved=tuple(own_columns(run.members, run.causes.names)), exclude=files)


def refuse_incomparable(
    output: Place, option: str, fingerprint: Fingerprint, say: Say, *, free: Sequence[str] = ()
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


def refuse_other_causes(run: Run, option: str) -> None:
    """Raise DifferentRun if the rows of a finished output tell of other causes than new ones would."""
    there, here = causes_of(read_schema(run.output, ["path"])), run.causes.names
    if there == here:
        return
    if not there:
        raise DifferentRun(
            f"{option} {run.output}: its rows do not tell of causes; --restart scores all of them with --causes, or "
            "leave that out"
        )
    told = ", ".join(run.executor.info.causes.names) or "none"
    raise DifferentRun(
        f"{option} {run.output}: its rows tell of {', '.join(there)}, and this engine of {told}; give the "
        "--engine that it is from"
    )


def begin_in_place(run: Run, fingerprint: Fingerprint) -> None:
    """Begin or go on with a job on a finished output; what another one of its kind has left is forgotten: it was
    killed after it had put its result in place, or what it was to do has changed since.
    """
    state = run.folder.recorded()
    if state is not None and state.get("job") == fingerprint["job"] and state != fingerprint:
        run.folder.forget()
    run.folder.begin(fingerprint)
