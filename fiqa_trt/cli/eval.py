"""`fiqa-trt eval`."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiqa_trt.cli.common import PlaceType, interruptible, quiet_and_json, speaker
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import give
from fiqa_trt.errors import EngineError, number_of, printable
from fiqa_trt.progress import Progress
from fiqa_trt.storage.places import Place

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fiqa_trt.analysis.evaluation import Agreement, Comparison, PairForm, Rated, Table
    from fiqa_trt.inputs.ratings import Form

_PATH = PlaceType()
_FEW = 10  # errors at a threshold; fewer are mostly chance


@click.command(short_help="Compare scores with ratings, or with what recognition makes of the images.")
@click.argument("scores", type=_PATH)
@click.option("--labels", metavar="FILE", type=_PATH, help="Ratings: .csv or .parquet with columns path and score.")
@click.option("--pairs", metavar="FILE", type=_PATH, help="Recognition: columns a, b, same (1 or 0), similarity.")
@click.option("--images", metavar="DIR", type=_PATH, help="Where the paths of --labels or --pairs start.")
@click.option(
    "--path-column",
    "path_columns",
    metavar="NAME",
    multiple=True,
    help="Of the table; twice with --pairs.  [default: path, image, filename, ...; a, b, image1, image2, ...]",
)
@click.option(
    "--score-column",
    "score_columns",
    metavar="NAME",
    multiple=True,
    help="Of ratings (of several raters, given for each) or similarities.  [default: score, mos, rating, ...]",
)
@click.option("--same-column", metavar="NAME", help="Of --pairs.  [default: same, label, match, ...]")
@click.option("--skip-blank", is_flag=True, help="Leave out, and count, rows with a blank where that should be.")
@click.option("--against", metavar="FILE", type=_PATH, help="Other scores: how much SCORES differ in agreement.")
@click.option("--by", metavar="COLUMN", help="Also for each value of this column of --labels.")
@click.option("--column", default="score", show_default=True, help="Which column of SCORES.")
@click.option("--fnmr", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="FNMR to start from.  [0.05]")
@click.option("--fmr", type=click.FloatRange(0, 1, max_open=True), help="Or the threshold at this false match rate.")
@click.option("--distance", is_flag=True, help="Lower means more alike in --pairs (column distance or similarity).")
@click.option("--resamples", type=click.IntRange(min=0), help="Of the bootstrap, with --labels.  [default: 1000]")
@click.option("--plot", metavar="FILE", type=_PATH, help="Scatter or EDC curve: .png, .pdf or .svg.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "markdown", "latex"]),
    default="text",
    show_default=True,
    help="Of the table.",
)
@quiet_and_json
def command(
    scores: Place,
    labels: Place | None,
    pairs: Place | None,
    images: Path | None,
    path_columns: tuple[str, ...],
    score_columns: tuple[str, ...],
    same_column: str | None,
    skip_blank: bool,
    against: Place | None,
    by: str | None,
    column: str,
    fnmr: float | None,
    fmr: float | None,
    distance: bool,
    resamples: int | None,
    plot: Place | None,
    quiet: bool,
    form: str,
    as_json: bool,
) -> None:
    """How far SCORES (an output of `fiqa-trt score`) can be trusted.

    With --labels: SRCC, KRCC, PLCC, and PLCC and RMSE after the 4-parameter logistic, with bootstrap 95 % intervals.
    With --pairs: the error-versus-discard characteristic (EDC): the FNMR that is left when the pairs of lowest quality
    are discarded, at a threshold that is fixed before, and the area under that curve (pAUC).

    Images are matched by their paths, as written or real ones, else by the longest end of a path that fits only one.
    The table goes to stdout; what is to be known of it (columns, counts, how paths were matched) to stderr.

    \b
    Examples:
      fiqa-trt eval scores.parquet --labels ratings.csv --by camera --plot scatter.png
      fiqa-trt eval scores.parquet --pairs pairs.csv --fmr 0.001 --plot edc.png
    """
    if (labels is None) == (pairs is None):
        raise click.UsageError("give either --labels FILE or --pairs FILE")
    if labels is not None and (fnmr is not None or fmr is not None):
        raise click.UsageError("--fnmr and --fmr belong to --pairs")
    if pairs is not None and (by or against or resamples is not None):
        raise click.UsageError("--against, --by and --resamples belong to --labels")
    if labels is not None and (distance or same_column):
        raise click.UsageError("--distance and --same-column belong to --pairs")
    if len(path_columns) not in ((0, 1) if pairs is None else (0, 2)):
        raise click.UsageError("--path-column: --labels has one column of paths, --pairs has two")
    if pairs is not None and len(score_columns) > 1:
        raise click.UsageError("--score-column: --pairs has one column of similarities")
    resamples = 1000 if resamples is None else resamples
    if as_json and form != "text":
        raise click.UsageError("give either --json or --format")
    if fnmr is not None and fmr is not None:
        raise click.UsageError("give either --fnmr or --fmr")
    try:
        import scipy  # noqa: F401

        if plot is not None:
            import matplotlib  # noqa: F401
    except ImportError as exc:
        raise EngineError(f"this command needs {exc.name}: pip install 'fiqa-trt[train]'") from exc
    if plot is not None:
        from fiqa_trt.analysis.plots import KINDS
        from fiqa_trt.storage.writing import check_output

        check_output(plot, KINDS)
    if labels is not None:
        from fiqa_trt.inputs.ratings import Form

        wanted = Form(path_columns[0] if path_columns else None, score_columns, skip_blank)
        bar = ProgressLine("draws", quiet=quiet)
        result = _labels(scores, against, labels, images, wanted, by, column, resamples, plot, bar)
    else:
        from fiqa_trt.analysis.evaluation import PairForm

        assert pairs is not None
        sides = (path_columns[0], path_columns[1]) if path_columns else ()
        meant = PairForm(sides, same_column, next(iter(score_columns), None), distance, skip_blank)
        result = _pairs(scores, pairs, images, meant, column, fnmr, fmr, plot)
    say = speaker(quiet)
    for note in [*result.notes, *([] if plot is None else [f"written to {plot}"])]:
        say(note)
    give(json.dumps(result.figures | {"text": result.text()}) if as_json else result.table(form))


@dataclasses.dataclass(frozen=True)
class _Result:
    """What an evaluation gave: for machines, and for people lines about a table."""

    figures: dict[str, Any]
    notes: list[str]
    cells: Table

    def table(self, form: str) -> str:
        from fiqa_trt.analysis.evaluation import FORMATS

        return FORMATS[form](self.cells)

    def text(self) -> str:
        return "\n".join([*map(printable, self.notes), "", self.table("text")])


def _labels(
    scores: Place,
    against: Place | None,
    labels: Place,
    images: Path | None,
    form: Form,
    by: str | None,
    column: str,
    resamples: int,
    plot: Place | None,
    bar: ProgressLine,
) -> _Result:

    from fiqa_trt.analysis import evaluation

    rated = evaluation.read_rated(scores, labels, images, column, by, form)
    other = None
    if against is not None:
        rated, other = evaluation.in_common(rated, evaluation.read_rated(against, labels, images, column, by, form))
    sets, left_out = _sets(rated, other, grouped=by is not None)
    comparisons: dict[str | None, Comparison] = {}

    def agreement(name: str | None, rows: npt.NDArray[np.bool_], before: int) -> Agreement:
        def report(done: int) -> None:
            bar(Progress(before + done, resamples * len(sets)))

        scored, ratings = rated.scores[rows], rated.ratings[rows]
        if other is None:
            return evaluation.agreement(scored, ratings, resamples, report=report)
        comparisons[name] = evaluation.comparison(scored, other.scores[rows], ratings, resamples, report=report)
        return comparisons[name].one

    with interruptible(bar, "the same command starts again"):
        parts = {name: agreement(name, rows, at * resamples) for at, (name, rows) in enumerate(sets.items())}
    found = parts.pop(None)
    if plot is not None:
        evaluation.plot_agreement(rated, found, plot)
    notes = [
        f"{number_of(found.rows, 'image')}, {rated.failed:,} without a score, {rated.unmatched:,} not among the scores",
        *rated.notes,
        f"ratings from {rated.ratings.min():g} to {rated.ratings.max():g}: RMSE is on their scale, after the logistic",
        *(f"left out: {number_of(count, 'group')} with {reason}" for reason, count in left_out.items()),
    ]
    if other is not None:
        notes += [
            f"{against}: {other.failed:,} without a score, {other.unmatched:,} not among the scores",
            f"only images with both scores; difference: {scores} less {against}, hardly chance if its interval is "
            "without 0",
        ]

    def told(name: str | None, part: Agreement) -> dict[str, Any]:
        return _told(part, comparisons.get(name))

    figures = {
        **told(None, found),
        "failed": rated.failed,
        "unmatched": rated.unmatched,
        "notes": rated.notes,
        "groups": {str(name): told(name, part) for name, part in parts.items()},
        "groups_left_out": left_out.total(),
    }
    rows = []
    for group, part in {None: found, **parts}.items():
        title = evaluation.OVERALL if group is None else group or "(blank)"
        rows.append((title, part.rows, part.measures))
        if group in comparisons:
            compared = comparisons[group]
            rows.append((f"{title}, {against}", part.rows, compared.other.measures))
            rows.append((f"{title}, difference", part.rows, compared.difference))
    return _Result(figures, notes, evaluation.agreement_table(rows))


def _sets(
    rated: Rated, other: Rated | None, *, grouped: bool
) -> tuple[dict[str | None, npt.NDArray[np.bool_]], Counter[str]]:
    """Rows by group, under None all of them; and why groups are left out."""
    import numpy as np

    from fiqa_trt.analysis import evaluation

    names, left_out = np.array(rated.groups, object), Counter[str]()
    sets: dict[str | None, npt.NDArray[np.bool_]] = {None: np.ones(len(names), bool)}
    for name in sorted(set(rated.groups), key=_by_value) if grouped else ():
        own = names == name
        if all(evaluation.comparable(each.scores[own], each.ratings[own]) for each in (rated, other) if each):
            sets[name] = own
        else:
            few = own.sum() < evaluation.MIN_ROWS
            left_out[f"fewer than {evaluation.MIN_ROWS} images" if few else "scores or ratings all alike"] += 1
    return sets, left_out


def _told(part: Agreement, comparison: Comparison | None) -> dict[str, Any]:
    """For machines, with what it was compared with."""
    if comparison is None:
        return dataclasses.asdict(part)
    compared = dataclasses.asdict(comparison)
    return {**compared["one"], "against": compared["other"], "difference": compared["difference"]}


def _by_value(name: str) -> tuple[float, str]:
    """Numbers by what they are, then texts by their letters: a key to sort by."""
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(name.replace(",", "."))):
            return number, name
    return math.inf, name


def _pairs(
    scores: Place,
    pairs: Place,
    images: Path | None,
    form: PairForm,
    column: str,
    fnmr: float | None,
    fmr: float | None,
    plot: Place | None,
) -> _Result:
    from fiqa_trt.analysis import evaluation

    found = evaluation.read_pairs(scores, pairs, images, column, form)
    mated, others = found.similarity[found.same], found.similarity[~found.same]
    if fmr is not None:
        threshold = evaluation.threshold_at_fmr(others, fmr)
    else:
        threshold = evaluation.threshold_at_fnmr(mated, 0.05 if fnmr is None else fnmr)
    curve = evaluation.edc(found.quality[found.same], mated, threshold)
    kind = "distance" if form.distance else "similarity"
    given = -threshold if form.distance else threshold  # as the table has it
    false_matches = int((others >= threshold).sum())
    if plot is not None:
        evaluation.plot_edc(curve, plot, f"threshold {given:.6g} ({kind})")
    figures = {
        "mated": curve.pairs,
        "non_mated": len(others),
        "dropped": found.dropped,
        "threshold": given,
        "fmr": false_matches / len(others) if len(others) else None,
        "notes": found.notes,
        "fnmr": {f"{share:g}": curve.at(share) for share in evaluation.DISCARDS},
        "pauc": {f"{share:g}": curve.pauc(share) for share in evaluation.AREAS},
        "pauc_ideal": {f"{share:g}": curve.pauc(share, ideal=True) for share in evaluation.AREAS},
    }
    notes = [
        f"{curve.pairs:,} mated, {len(others):,} non-mated pairs; {found.dropped:,} more dropped for want of a score",
        *found.notes,
    ]
    errors = round(curve.fnmr[0] * curve.pairs)
    decisive, what = (errors, "false non-matches") if fmr is None else (false_matches, "false matches")
    if decisive < _FEW:
        notes.append(f"the threshold rests on {decisive:,} {what}: with other pairs it may be far from this one")
    if not errors:
        notes.append("no mated pair is below the threshold, so there is no error that discarding could lower")
    point = [("mated pairs", f"{curve.pairs:,}"), ("non-mated pairs", f"{len(others):,}")]
    point += [(f"threshold ({kind})", f"{given:.6g}")]
    point += [("FMR there", f"{false_matches / len(others):.3g}")] if len(others) else []
    return _Result(figures, notes, evaluation.edc_table(curve, point))
