"""`fiqa-trt eval`."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiqa_trt.cli.common import interruptible, quiet_and_json, speaker
from fiqa_trt.cli.progress import ProgressLine
from fiqa_trt.cli.streams import give
from fiqa_trt.errors import EngineError, number_of, printable
from fiqa_trt.progress import Progress

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from fiqa_trt.analysis.evaluation import Agreement, PairForm, Table
    from fiqa_trt.inputs.ratings import Form

_PATH = click.Path(path_type=Path)
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
@click.option("--score-column", metavar="NAME", help="Of ratings or similarities.  [default: score, mos, rating, ...]")
@click.option("--same-column", metavar="NAME", help="Of --pairs.  [default: same, label, match, ...]")
@click.option("--skip-blank", is_flag=True, help="Leave out, and count, rows with a blank where that should be.")
@click.option("--by", metavar="COLUMN", help="Also for each value of this column of --labels.")
@click.option("--column", default="score", show_default=True, help="Which column of SCORES.")
@click.option("--fnmr", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="FNMR to start from.  [0.05]")
@click.option("--fmr", type=click.FloatRange(0, 1, max_open=True), help="Or the threshold at this false match rate.")
@click.option("--distance", is_flag=True, help="Lower means more alike in --pairs (column distance or similarity).")
@click.option("--resamples", type=click.IntRange(min=0), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--plot", metavar="FILE", type=_PATH, help="Scatter or EDC curve as PNG.")
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
    scores: Path,
    labels: Path | None,
    pairs: Path | None,
    images: Path | None,
    path_columns: tuple[str, ...],
    score_column: str | None,
    same_column: str | None,
    skip_blank: bool,
    by: str | None,
    column: str,
    fnmr: float | None,
    fmr: float | None,
    distance: bool,
    resamples: int,
    plot: Path | None,
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
    if pairs is not None and by:
        raise click.UsageError("--by belongs to --labels")
    if labels is not None and (distance or same_column):
        raise click.UsageError("--distance and --same-column belong to --pairs")
    if len(path_columns) not in ((0, 1) if pairs is None else (0, 2)):
        raise click.UsageError("--path-column: --labels has one column of paths, --pairs has two")
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
        from fiqa_trt.storage.writing import check_output

        check_output(plot, (".png",))
    if labels is not None:
        from fiqa_trt.inputs.ratings import Form

        wanted = Form(path_columns[0] if path_columns else None, score_column, skip_blank)
        bar = ProgressLine("draws", quiet=quiet)
        result = _labels(scores, labels, images, wanted, by, column, resamples, plot, bar)
    else:
        from fiqa_trt.analysis.evaluation import PairForm

        assert pairs is not None
        sides = (path_columns[0], path_columns[1]) if path_columns else ()
        meant = PairForm(sides, same_column, score_column, distance, skip_blank)
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
    scores: Path,
    labels: Path,
    images: Path | None,
    form: Form,
    by: str | None,
    column: str,
    resamples: int,
    plot: Path | None,
    bar: ProgressLine,
) -> _Result:
    import numpy as np

    from fiqa_trt.analysis import evaluation

    rated = evaluation.read_rated(scores, labels, images, column, by, form)
    names, left_out = np.array(rated.groups, object), Counter[str]()
    sets: dict[str | None, npt.NDArray[np.bool_]] = {None: np.ones(len(names), bool)}  # by group; None: all
    for name in sorted(set(rated.groups)) if by is not None else ():
        own = names == name
        if evaluation.comparable(rated.scores[own], rated.ratings[own]):
            sets[name] = own
        else:
            few = own.sum() < evaluation.MIN_ROWS
            left_out[f"fewer than {evaluation.MIN_ROWS} images" if few else "scores or ratings all alike"] += 1

    def agreement(rows: npt.NDArray[np.bool_], before: int) -> Agreement:
        def report(done: int) -> None:
            bar(Progress(before + done, resamples * len(sets)))

        return evaluation.agreement(rated.scores[rows], rated.ratings[rows], resamples, report=report)

    with interruptible(bar, "the same command starts again"):
        parts = {name: agreement(rows, at * resamples) for at, (name, rows) in enumerate(sets.items())}
    found = parts.pop(None)
    if plot is not None:
        evaluation.plot_agreement(rated, found, plot)
    notes = [
        f"{number_of(found.rows, 'image')}, {rated.failed:,} without a score, {rated.unmatched:,} not among the scores",
        *rated.notes,
        f"ratings from {rated.ratings.min():g} to {rated.ratings.max():g}: RMSE is on their scale, after the logistic",
        *(f"left out: {number_of(count, 'group')} with {reason}" for reason, count in left_out.items()),
    ]
    figures = {
        **dataclasses.asdict(found),
        "failed": rated.failed,
        "unmatched": rated.unmatched,
        "notes": rated.notes,
        "groups": {str(name): dataclasses.asdict(part) for name, part in parts.items()},
        "groups_left_out": left_out.total(),
    }
    rows = [(evaluation.OVERALL, found), *((name or "(blank)", part) for name, part in parts.items())]
    return _Result(figures, notes, evaluation.agreement_table(rows))


def _pairs(
    scores: Path,
    pairs: Path,
    images: Path | None,
    form: PairForm,
    column: str,
    fnmr: float | None,
    fmr: float | None,
    plot: Path | None,
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
