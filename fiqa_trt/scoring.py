"""The run: a frozen list of inputs to one complete output, with resume, retry and accounting."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fiqa_trt import __version__
from fiqa_trt.errors import DifferentRun, InputError, RunError
from fiqa_trt.outputs import check_columns, check_output, output_metadata, read_output, with_metadata, write_output
from fiqa_trt.progress import Progress
from fiqa_trt.records import UNFORESEEN, Status, output_schema, own_columns
from fiqa_trt.runs import Fingerprint, RunFolder, refuse_difference
from fiqa_trt.sources import Source, check_source, list_inputs
from fiqa_trt.spec import PreprocessSpec
from fiqa_trt.workers import Workers

UNIT_ROWS = 8192
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_BINS = 10_000
# What scores depend on: rows may stand side by side only if these agree.
_COMPARABLE = ("model", "precision", "executed", "preprocess")


@dataclasses.dataclass(frozen=True)
class Options:
    """How to run, besides what and where.

    Attributes:
        unit_rows: rows of a unit of work, the most that a kill can cost.
        restart: forget an earlier run and replace its output.
        command: recorded in the output, for whoever wonders how it was made.
    """

    unit_rows: int = UNIT_ROWS
    restart: bool = False
    command: str = ""


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
    """

    output: str
    images: int
    statuses: dict[str, int]
    quantiles: dict[str, float]
    scored_now: int
    seconds: float
    engine: dict[str, Any]
    unforeseen: int = 0

    @property
    def failed(self) -> int:
        """Rows without a score."""
        return self.images - self.statuses.get(Status.OK.value, 0)


class Tally:
    """Counts statuses and scores as tables pass by, in constant memory."""

    def __init__(self) -> None:
        self.statuses: Counter[str] = Counter()
        self.unforeseen = 0
        self._bins = np.zeros(_BINS + 1, np.int64)

    def count(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Pass tables on, counted."""
        for table in tables:
            for entry in pc.value_counts(table["status"].combine_chunks()).to_pylist():
                self.statuses[entry["values"]] += entry["counts"]
            if "error" in table.column_names:
                self.unforeseen += pc.sum(pc.starts_with(table["error"], UNFORESEEN)).as_py() or 0
            scores = table["score"].drop_null().to_numpy()
            if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
                raise InputError(f"a score of {scores.max() if scores.max() > 1 else scores.min():g}, not from 0 to 1")
            self._bins += np.bincount(np.rint(scores * _BINS).astype(np.int64), minlength=_BINS + 1)
            yield table

    def quantiles(self) -> dict[str, float]:
        """Score at each of QUANTILES, to 1e-4."""
        below = np.cumsum(self._bins)
        if below[-1] == 0:
            return {}
        return {f"{q:g}": float(np.searchsorted(below, q * below[-1])) / _BINS for q in QUANTILES}


Say = Callable[[str], None]
Report = Callable[[Progress], None]


class Run:
    """One call of `fiqa-trt score`: the output, its working state, who does the work, and who is told of it."""

    def __init__(self, output: Path, folder: RunFolder, workers: Workers, options: Options, report: Report, say: Say):
        self.output = output
        self.folder = folder
        self.workers = workers
        self.options = options
        self.report = report
        self.say = say
        self.members = workers.info.members
        self.scored_now = 0
        self.seconds = 0.0

    def fingerprint(self, job: str, inputs: str, count: int) -> Fingerprint:
        """Everything that the rows of this run depend on."""
        info = self.workers.info
        return {
            "job": job,
            "version": __version__,
            "model": info.model,
            "backend": info.backend,
            "precision": info.precision,
            "executed": info.executed,
            "preprocess": PreprocessSpec().digest(),
            "decoder": self.workers.decoder,
            "max_pixels": self.workers.max_pixels,
            "unit_rows": self.options.unit_rows,
            "count": count,
            "inputs": inputs,
        }

    def metadata(self, fingerprint: Fingerprint) -> dict[str, Any]:
        """What the output says of how it was made."""
        return {
            "version": __version__,
            "engine": dataclasses.asdict(self.workers.info),
            "decoder": self.workers.decoder,
            "command": self.options.command,
            "preprocess": dataclasses.asdict(PreprocessSpec()),
            "fingerprint": fingerprint,
        }

    def work(self, image_column: str | None) -> None:
        """Score every unit that has no part yet; `image_column` is that of the tables among the inputs.

        Raises:
            RunError: the disk is full, or the engine failed; finished units are kept.
        """
        failed_before = Tally()
        before = sum(table.num_rows for table in failed_before.count(self.folder.finished()))
        done, total = before, self.folder.rows()
        failed = before - failed_before.statuses[Status.OK.value]
        if before:
            self.say(f"resuming: {before} of {total} are there already")
        began = time.monotonic()

        def report(rows: int, failures: int) -> None:
            nonlocal done, failed
            done, failed = done + rows, failed + failures
            self.report(Progress(done, total, failed, before))

        self.workers.work(self.folder, image_column, report)
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
        engine = dataclasses.asdict(self.workers.info)
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
def _run(
    output: Path, open_workers: Callable[[], Workers], options: Options, report: Report, say: Say
) -> Iterator[Run]:
    check_output(output)
    workers = open_workers()
    try:
        with RunFolder(output, options.unit_rows) as folder:
            yield Run(output, folder, workers, options, report, say)
    finally:
        workers.close()


def score_dataset(
    source: Source,
    output: Path,
    open_workers: Callable[[], Workers],
    options: Options = Options(),
    report: Report = lambda progress: None,
    say: Say = lambda message: None,
) -> Summary:
    """Score every input of `source` into `output`; goes on by itself with what an earlier call left unfinished.

    Args:
        source: what to score.
        output: .parquet, .csv or .jsonl; appears complete or not at all.
        open_workers: called once, when the output is known to be writable.
        options: how to run.
        report: receives the progress after every batch.
        say: receives one line for each thing that the user should know of.

    Raises:
        FiqaError: see `fiqa_trt.errors`; what is finished is kept for the next call.
    """
    check_source(source, output)
    with _run(output, open_workers, options, report, say) as run:
        own, folder = tuple(own_columns(run.members)), run.folder
        source = dataclasses.replace(source, reserved=own, exclude=(str(output), str(folder.path)))
        batches = list_inputs(source, say)
        first = next(batches)
        schema = output_schema(run.members, first.schema)
        check_columns(schema, output)
        digest, count = folder.freeze(_chain(first, batches))
        fingerprint = run.fingerprint("score", digest, count)
        if options.restart:
            folder.forget()
        elif folder.recorded() is None and output.exists():
            _refuse_foreign(output, fingerprint)
            say(f"{output} is already complete; --restart scores it anew")
            tally = Tally()
            for _ in tally.count(read_output(output, own)):
                pass
            return run.summary(tally)
        folder.begin(fingerprint)
        run.work(source.image_column)
        return run.finish(with_metadata(schema, run.metadata(fingerprint)), folder.parts(), count)


def _chain(first: pa.RecordBatch, rest: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _refuse_foreign(output: Path, fingerprint: Fingerprint) -> None:
    metadata = output_metadata(output)
    if metadata is None:
        raise DifferentRun(f"{output} exists already; --restart replaces it, or choose another -o")
    if "filtered_from" in metadata:
        raise DifferentRun(f"{output} holds what filter kept; --restart replaces it, or choose another -o")
    refuse_difference(str(output), metadata.get("fingerprint", {}), fingerprint)


def retry_failed(
    output: Path,
    open_workers: Callable[[], Workers],
    options: Options = Options(),
    report: Report = lambda progress: None,
    say: Say = lambda message: None,
    image_column: str | None = None,
) -> Summary:
    """Score again, in place and atomically, the rows of a finished output whose status is not `ok`.

    All other rows, the order and the carried columns stay as they are. `image_column` is that of the tables among the
    inputs.

    Raises:
        InputError: the output does not exist or is not one of ours.
        DifferentRun: its scores come from another model or precision, so new ones could not stand beside them.
        FiqaError: as in `score_dataset`.
    """
    if not output.is_file():
        raise InputError(f"--retry-failed {output}: no such file")
    with _run(output, open_workers, options, report, say) as run:
        own, folder = tuple(own_columns(run.members)), run.folder
        rows = sum(table.num_rows for table in read_output(output, own))
        digest, count = folder.freeze(_failed(read_output(output, own)))
        fingerprint = run.fingerprint("retry", digest, count)
        metadata = output_metadata(output)
        if metadata is None and output.suffix.lower() == ".parquet":
            raise InputError(f"--retry-failed {output}: it does not say which model its scores are from")
        if metadata is not None:
            recorded = {key: metadata.get("fingerprint", {}).get(key, "unknown") for key in _COMPARABLE}
            comparable = {key: fingerprint[key] for key in _COMPARABLE}
            refuse_difference(str(output), recorded, comparable, "give the --engine and --precision that it is from")
        else:
            say(f"{output.suffix} does not record what its scores are from: use the engine that they are from")
        state = folder.recorded()
        if state is not None and state.get("job") == "retry" and state != fingerprint:
            folder.forget()  # left by a retry that was killed after it had put its result in place
        folder.begin(fingerprint)
        run.work(image_column)
        if count == 0:
            say(f"nothing to retry: every row of {output} is ok")
        schema = next(iter(read_output(output, own))).schema
        return run.finish(schema, _merged(read_output(output, own), folder.parts(), own), rows)


def _failed(tables: Iterable[pa.Table]) -> Iterator[pa.RecordBatch]:
    for table in tables:
        failed = table.filter(pc.not_equal(table["status"], Status.OK.value)).select(["path"])
        yield from failed.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], failed.schema)]


def _merged(tables: Iterable[pa.Table], parts: Iterable[pa.Table], own: tuple[str, ...]) -> Iterator[pa.Table]:
    """`tables` with the rows that are not `ok` replaced, in order, by the rows of `parts`."""
    fresh = iter(parts)
    held: pa.Table | None = None
    for original in tables:
        table = original
        mask = pc.not_equal(table["status"].combine_chunks(), Status.OK.value)
        wanted = pc.sum(mask).as_py() or 0
        while wanted and (held is None or held.num_rows < wanted):
            more = next(fresh, None)
            if more is None:
                raise RunError("fewer rows were retried than had failed; run the same command again")
            held = more if held is None else pa.concat_tables([held, more])
        for name in own if wanted and held is not None else ():
            assert held is not None
            index = table.schema.get_field_index(name)
            field = table.schema.field(index)
            new = held[name].slice(0, wanted).combine_chunks().cast(field.type)
            table = table.set_column(index, field, pc.replace_with_mask(table[name].combine_chunks(), mask, new))
        held = held.slice(wanted) if held is not None else None
        yield table
