"""A scores file as one self-contained page: counts, distribution, groups, resolution, failures, contact sheets.

The file is streamed once, whatever its size; what is kept are counts, one line for each group, and the images of the
contact sheets, which are read afterwards.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fiqa_trt.analysis.causes import LIMITS, CauseLedger, Told
from fiqa_trt.analysis.differences import Differences
from fiqa_trt.analysis.extremes import Extremes
from fiqa_trt.decoding.cpu import decode_image, fit
from fiqa_trt.errors import InputError, printable
from fiqa_trt.inputs.reader import ContainerReader, read_recorded
from fiqa_trt.outcomes import ImageError, Status
from fiqa_trt.progress import Progress, Report, silent
from fiqa_trt.scores.files import output_metadata, read_output, read_schema
from fiqa_trt.scores.grouping import PARENT, grouping
from fiqa_trt.scores.groups import STEPS, Group, Ledger, Runs, quantile, steps_of
from fiqa_trt.scores.tally import Tally
from fiqa_trt.shell import path_word, printed
from fiqa_trt.storage.places import Place
from fiqa_trt.storage.writing import write_text
from fiqa_trt.version import __version__

if TYPE_CHECKING:
    import pyarrow as pa

BARS = 50
SIDES = (0, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1 << 31)  # short edges in pixels, for the table
THUMBNAIL = 112
MOST_FAILURES = 100
MOST_PLAIN = 500  # groups of the table that is there without JavaScript
DEFAULT_SHARE = 0.2  # the threshold at first: what `filter --keep 80%` would drop


@dataclasses.dataclass(frozen=True)
class Resolution:
    """Images whose short edge lies in a range of pixels: how many, and quantiles of their scores (5, 50 and 95 %)."""

    label: str
    images: int
    low: float
    median: float
    high: float


@dataclasses.dataclass(frozen=True)
class Thumbnail:
    """An image of a contact sheet.

    Attributes:
        path: of it.
        value: its score, or on the sheet of a cause how much there is of that.
        data: a data URI, empty if there is none.
    """

    path: str
    value: float
    data: str


@dataclasses.dataclass(frozen=True)
class Failure:
    """A row without a score."""

    path: str
    status: str
    error: str


@dataclasses.dataclass(frozen=True)
class Survey:
    """What the page shows.

    Attributes:
        images: rows.
        statuses: rows by status, most frequent first.
        below: STEPS + 1 integers: images with a score below k / STEPS.
        bars: BARS integers, images by score.
        quantiles: scores by share.
        threshold: score that the slider begins with.
        members: how many have a column.
        agreement: of the members: mean and 95 % quantile of the difference between the highest and the lowest, and the
            lowest correlation of two; empty for a file without their columns.
        groups: all of them, the worst first.
        runs: what each threshold leaves of them.
        group_by: what they are.
        resolutions: from small to large.
        failures: the first of them.
        sheets: thumbnails by title.
        told: of causes.
        sheets_of_causes: thumbnails by title.
        provenance: names and values.
    """

    images: int
    statuses: dict[str, int]
    below: list[int]
    bars: list[int]
    quantiles: dict[str, float]
    threshold: float
    members: int
    agreement: dict[str, float]
    groups: list[Group]
    runs: Runs
    group_by: str
    resolutions: list[Resolution]
    failures: list[Failure]
    sheets: dict[str, list[Thumbnail]]
    told: Told
    sheets_of_causes: dict[str, list[Thumbnail]]
    provenance: dict[str, str]

    @property
    def scored(self) -> int:
        """Rows with a score."""
        return self.statuses.get(Status.OK.value, 0)

    @property
    def group_count(self) -> int:
        """How many there are."""
        return len(self.groups)

    def lost(self, step: int) -> list[str]:
        """Groups that have scores and keep none of them at a step of the threshold."""
        pairs = zip(self.groups, self.runs.left(step), strict=True)
        return [group.name for group, kept in pairs if group.mean is not None and not kept]

    @property
    def unscored(self) -> list[str]:
        """Groups without an image that has a score, of which no threshold leaves anything."""
        return [group.name for group in self.groups if group.mean is None]


def survey(
    scores: Place,
    *,
    threshold: float | None = None,
    group_by: str = PARENT,
    sheet: int = 24,
    image_column: str | None = None,
    report: Report = silent,
) -> Survey:
    """Gather everything that the page shows.

    Args:
        scores: a scores file.
        threshold: where the slider begins; by default at the score that a fifth of the images does not reach.
        group_by: see `curation.select.Rules`.
        sheet: images of a contact sheet; 0 for none.
        image_column: see `read_output`.
        report: receives the thumbnails done.

    Raises:
        InputError: the file cannot be read, has no rows, or the groups cannot be told.
    """
    import pyarrow.compute as pc

    tally, by_step = Tally(), np.zeros(STEPS + 1, np.int64)
    by_side = np.zeros((len(SIDES) - 1, STEPS + 1), np.int64)
    ledger, failures, members = Ledger(), list[Failure](), Differences()
    worst, best = Extremes(sheet), Extremes(sheet)
    group_of = grouping(group_by, scores)
    rows = functools.partial(read_output, scores, ["path", "score", "status"], image_column)
    causes = CauseLedger(read_schema(scores, ["path"]), -(-sheet // 2))
    for table in tally.count(rows()):
        fine = pc.and_(pc.equal(table["status"], Status.OK.value), pc.is_valid(table["score"]))
        good = table.filter(fine)
        values = good["score"].to_numpy().astype(np.float32)
        steps = steps_of(values)
        by_step += np.bincount(steps, minlength=STEPS + 1)
        paths = good["path"].combine_chunks()
        worst.add(values.astype(np.float64), paths, values)
        best.add(-values.astype(np.float64), paths, values)
        members.add(good)
        _count_sides(by_side, good, steps)
        failed = table.filter(pc.not_equal(table["status"], Status.OK.value))
        wanted = MOST_FAILURES - len(failures)
        if wanted > 0 and failed.num_rows:
            known = [name for name in ("path", "status", "error") if name in table.column_names]
            failures += [_failure(row) for row in failed.select(known).slice(0, wanted).to_pylist()]
        of = group_of(table)
        causes.add(good, of.filter(fine))
        told = of.is_valid()  # not of a failed row whose path does not tell it
        ledger.add(of.filter(told), np.asarray(table["score"].filter(told).to_numpy(), np.float32))
    images = sum(tally.statuses.values())
    if not images:
        raise InputError(f"{scores} has no rows")
    quantiles = tally.quantiles()
    if threshold is None:
        threshold = quantile(by_step, DEFAULT_SHARE) if quantiles else 0.5
    bars = np.add.reduceat(by_step, np.arange(0, STEPS, STEPS // BARS))  # of the histogram
    groups, runs = ledger.groups()
    around = _around(rows() if sheet else (), threshold, sheet)
    sheets = {"The lowest scores": worst.rows(), f"Around {threshold:.3f}": around, "The highest scores": best.rows()}
    drawn = _thumbnails({**sheets, **causes.sheets()}, report) if sheet else {}
    return Survey(
        images=images,
        statuses=dict(tally.statuses.most_common()),
        below=[0, *(int(count) for count in np.cumsum(by_step)[:-1])],
        bars=[int(count) for count in bars],
        quantiles=quantiles,
        threshold=round(threshold, 3),
        members=members.count,
        agreement=members.agreement(),
        groups=groups,
        runs=runs,
        group_by=group_by,
        resolutions=_resolutions(by_side),
        failures=failures,
        sheets=dict(list(drawn.items())[: len(sheets)]),
        told=causes.told(),
        sheets_of_causes=dict(list(drawn.items())[len(sheets) :]),
        provenance=_provenance(scores),
    )


def _count_sides(by_side: npt.NDArray[np.int64], good: pa.Table, steps: npt.NDArray[np.int64]) -> None:
    import pyarrow.compute as pc

    if {"width", "height"} <= set(good.column_names):
        edge = pc.min_element_wise(good["width"], good["height"]).fill_null(0).to_numpy().clip(0)
        np.add.at(by_side, (np.searchsorted(SIDES, edge, "right") - 1, steps), 1)


def _failure(row: dict[str, Any]) -> Failure:
    return Failure(str(row["path"]), str(row["status"]), str(row.get("error") or ""))


def _resolutions(by_side: npt.NDArray[np.int64]) -> list[Resolution]:
    found = []
    for low, high, counts in zip(SIDES, SIDES[1:], by_side, strict=False):
        if counts.any():
            label = f"{low} px and more" if high > 1 << 20 else f"{low} to {high - 1} px"
            quantiles = [quantile(counts, share) for share in (0.05, 0.5, 0.95)]
            found.append(Resolution(label, int(counts.sum()), *quantiles))
    return found


def _around(tables: Iterable[pa.Table], threshold: float, count: int) -> list[tuple[str, float]]:
    """The images whose scores are nearest to a threshold, in the order of their scores."""
    nearest = Extremes(count)
    for table in tables:
        good = table.filter(table["score"].is_valid())
        values = good["score"].to_numpy().astype(np.float32)
        nearest.add(np.abs(values.astype(np.float64) - threshold), good["path"].combine_chunks(), values)
    return sorted(nearest.rows(), key=lambda row: row[1])


def _thumbnails(sheets: dict[str, list[tuple[str, float]]], report: Report) -> dict[str, list[Thumbnail]]:
    reader, found = ContainerReader(), dict[str, list[Thumbnail]]()
    total, done, lost = sum(map(len, sheets.values())), 0, 0
    for title, rows in sheets.items():
        found[title] = []
        for path, score in rows:
            data = _data_uri(path, reader)
            found[title].append(Thumbnail(path, score, data))
            done, lost = done + 1, lost + (not data)
            report(Progress(done, total, lost))
    reader.close()
    return found


def _data_uri(path: str, reader: ContainerReader) -> str:
    from PIL import Image

    blob = read_recorded(path, reader)
    try:
        if isinstance(blob, ImageError):
            return ""
        small = Image.fromarray(fit(decode_image(blob), THUMBNAIL))
    except ImageError:  # gone or changed since it was scored
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _provenance(scores: Place) -> dict[str, str]:
    found = {"file": str(scores)}
    metadata = output_metadata(scores)
    if metadata is not None:
        engine = metadata.get("engine", {})
        found |= {
            "command": printed(str(metadata.get("command") or "not recorded")),
            "fiqa-trt": str(metadata.get("version")),
            "engine": f"{engine.get('backend')} on {engine.get('device')}",
            "precision": f"{engine.get('precision')} (run as {engine.get('executed')}), batch {engine.get('batch')}",
            "checkpoint": str(engine.get("model")),
            "decoder": str(metadata.get("decoder", "cpu")),
        }
    return found | {"this page": f"fiqa-trt {__version__}"}


def _plain(value: object) -> object:
    """What a template prints: names of files without the control characters that they may hold."""
    return printable(value) if type(value) is str else value


def _columns(found: Survey) -> dict[str, object]:
    """What the page's script makes the table of groups of; names without what all of them begin with."""
    groups = found.groups
    prefix = os.path.commonprefix([group.name for group in groups]) if len(groups) > 1 else ""  # noqa: RUF071 - cut next
    prefix = prefix[: prefix.rfind("/") + 1]

    def figures(name: str) -> list[float | None]:
        values = (getattr(group, name) for group in groups)
        return [None if value is None else round(value, 6) for value in values]

    return {
        "prefix": printable(prefix),
        "names": [printable(group.name[len(prefix) :]) for group in groups],
        "images": [group.images for group in groups],
        "failed": [group.failed for group in groups],
        "mean": figures("mean"),
        "lowest": figures("lowest"),
        "highest": figures("highest"),
        "unit": found.runs.unit,
        "sizes": found.runs.sizes,
        "runs": base64.b64encode(found.runs.steps).decode(),
        "counts": base64.b64encode(found.runs.counts).decode(),
    }


def write_report(output: Place, found: Survey) -> None:
    """Write the page; it appears complete or not at all. Raises RunError if the disk does not take it."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("fiqa_trt"), autoescape=True, finalize=_plain)
    step = round(found.threshold * STEPS)
    page = environment.get_template("report.html").render(
        survey=found,
        steps=STEPS,
        here=step,
        kept=found.scored - found.below[step],
        lost=found.lost(step),
        left=found.runs.left(step).tolist(),
        plain=MOST_PLAIN,
        limits=LIMITS,
        groups=_columns(found),
        scores=path_word(found.provenance["file"]),
    )
    write_text(output, page)
