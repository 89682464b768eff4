"""`fiqa-trt eval`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiqa_trt.cli.streams import give, tell
from fiqa_trt.errors import EngineError, printable

if TYPE_CHECKING:
    from fiqa_trt.evaluation import Table
    from fiqa_trt.ratings import Form

_PATH = click.Path(path_type=Path)


@click.command(short_help="Compare scores with ratings, or with what recognition makes of the images.")
@click.argument("scores", type=_PATH)
@click.option("--labels", metavar="FILE", type=_PATH, help="Ratings: .csv or .parquet with columns path and score.")
@click.option("--pairs", metavar="FILE", type=_PATH, help="Recognition: columns a, b, same (1 or 0), similarity.")
@click.option("--images", metavar="DIR", type=_PATH, help="Where the paths of --labels or --pairs start.")
@click.option("--path-column", metavar="NAME", help="Of --labels.  [default: path, image, filename, ...]")
@click.option("--score-column", metavar="NAME", help="Of --labels.  [default: score, mos, rating, ...]")
@click.option("--skip-blank", is_flag=True, help="Leave out, and count, rows of --labels without a rating.")
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
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def command(
    scores: Path,
    labels: Path | None,
    pairs: Path | None,
    images: Path | None,
    path_column: str | None,
    score_column: str | None,
    skip_blank: bool,
    by: str | None,
    column: str,
    fnmr: float | None,
    fmr: float | None,
    distance: bool,
    resamples: int,
    plot: Path | None,
    form: str,
    as_json: bool,
) -> None:
    """How far SCORES (an output of `fiqa-trt score`) can be trusted.

    With --labels: SRCC, KRCC, PLCC and RMSE, raw and after the 4-parameter logistic, with bootstrap 95 % intervals.
    With --pairs: the error-versus-discard characteristic (EDC): the FNMR that is left when the pairs of lowest quality
    are discarded, at a threshold that is fixed before, and the area under that curve (pAUC).

    Images are matched by their paths, as written or real ones, else by the longest end of a path that fits only one.
    With --format markdown or latex, only the table goes to stdout.

    \b
    Examples:
      fiqa-trt eval scores.parquet --labels ratings.csv --by camera --plot scatter.png
      fiqa-trt eval scores.parquet --pairs pairs.csv --fmr 0.001 --plot edc.png
    """
    if (labels is None) == (pairs is None):
        raise click.UsageError("give either --labels FILE or --pairs FILE")
    if labels is not None and (fnmr is not None or fmr is not None):
        raise click.UsageError("--fnmr and --fmr belong to --pairs")
    if pairs is not None and (by or path_column or score_column or skip_blank):
        raise click.UsageError("--by, --path-column, --score-column and --skip-blank belong to --labels")
    if labels is not None and distance:
        raise click.UsageError("--distance belongs to --pairs")
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
        from fiqa_trt.storage import check_output

        check_output(plot, (".png",))
    if labels is not None:
        from fiqa_trt.ratings import Form

        wanted = Form(path_column, score_column, skip_blank)
        result = _labels(scores, labels, images, wanted, by, column, resamples, plot)
    else:
        assert pairs is not None
        result = _pairs(scores, pairs, images, column, fnmr, fmr, distance, plot)
    if as_json:
        give(json.dumps(result.figures | {"text": result.text()}))
    elif form == "text":
        give(result.text())
    else:
        tell("\n".join(map(printable, result.notes)))
        give(result.table(form))


@dataclasses.dataclass(frozen=True)
class _Result:
    """What an evaluation gave: for machines, and lines above a table for people."""

    figures: dict[str, Any]
    notes: list[str]
    cells: Table

    def table(self, form: str) -> str:
        from fiqa_trt.evaluation import FORMATS

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
) -> _Result:
    import numpy as np

    from fiqa_trt import evaluation

    rated = evaluation.read_rated(scores, labels, images, column, by, form)
    found = evaluation.agreement(rated.scores, rated.ratings, resamples)
    if plot is not None:
        evaluation.plot_agreement(rated, found, plot)
    notes = [f"{found.rows:,} images, {rated.failed:,} without a score, {rated.unmatched:,} not among the scores"]
    notes += rated.notes
    parts = {}
    if by is not None:
        names = np.array(rated.groups, object)
        for name in sorted(set(rated.groups)):
            chosen = names == name
            if evaluation.comparable(rated.scores[chosen], rated.ratings[chosen]):
                parts[name] = evaluation.agreement(rated.scores[chosen], rated.ratings[chosen], resamples)
            else:
                notes.append(f"{name}: too few images, or all alike")
    figures = {
        **dataclasses.asdict(found),
        "failed": rated.failed,
        "unmatched": rated.unmatched,
        "notes": rated.notes,
        "groups": {name: dataclasses.asdict(part) for name, part in parts.items()},
    }
    rows = [(evaluation.OVERALL, found), *parts.items()]
    return _Result(figures, notes, evaluation.agreement_table(rows))


def _pairs(
    scores: Path,
    pairs: Path,
    images: Path | None,
    column: str,
    fnmr: float | None,
    fmr: float | None,
    distance: bool,
    plot: Path | None,
) -> _Result:
    from fiqa_trt import evaluation

    found = evaluation.read_pairs(scores, pairs, images, column, distance=distance)
    mated = found.similarity[found.same]
    if fmr is not None:
        threshold = evaluation.threshold_at_fmr(found.similarity[~found.same], fmr)
    else:
        threshold = evaluation.threshold_at_fnmr(mated, 0.05 if fnmr is None else fnmr)
    curve = evaluation.edc(found.quality[found.same], mated, threshold)
    given = -threshold if distance else threshold  # as the table has it
    at = f"threshold {given:.6g}{' (distance)' if distance else ''}"
    if plot is not None:
        evaluation.plot_edc(curve, plot, at)
    figures = {
        "mated": curve.pairs,
        "non_mated": int((~found.same).sum()),
        "dropped": found.dropped,
        "threshold": given,
        "notes": found.notes,
        "fnmr": {f"{share:g}": curve.at(share) for share in evaluation.DISCARDS},
        "pauc": {f"{share:g}": curve.pauc(share) for share in evaluation.AREAS},
        "pauc_ideal": {f"{share:g}": curve.pauc(share, ideal=True) for share in evaluation.AREAS},
    }
    counts = f"{curve.pairs:,} mated pairs, {found.dropped:,} pairs dropped for want of a score, {at}"
    return _Result(figures, [counts, *found.notes], evaluation.edc_table(curve))
