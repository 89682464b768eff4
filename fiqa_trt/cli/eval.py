"""`fiqa-trt eval`."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fiqa_trt.cli.streams import give
from fiqa_trt.errors import EngineError

if TYPE_CHECKING:
    from fiqa_trt.evaluation import Agreement, Edc

_PATH = click.Path(path_type=Path)


@click.command(short_help="Compare scores with ratings, or with what recognition makes of the images.")
@click.argument("scores", type=_PATH)
@click.option("--labels", metavar="FILE", type=_PATH, help="Ratings: .csv or .parquet with columns path and score.")
@click.option("--pairs", metavar="FILE", type=_PATH, help="Recognition: columns a, b, same (1 or 0), similarity.")
@click.option("--images", metavar="DIR", type=_PATH, help="Where the paths of --labels or --pairs start.")
@click.option("--by", metavar="COLUMN", help="Also for each value of this column of --labels.")
@click.option("--column", default="score", show_default=True, help="Which column of SCORES.")
@click.option("--fnmr", type=click.FloatRange(0, 1, min_open=True, max_open=True), help="FNMR to start from.  [0.05]")
@click.option("--fmr", type=click.FloatRange(0, 1, max_open=True), help="Or the threshold at this false match rate.")
@click.option("--resamples", type=click.IntRange(min=0), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--plot", metavar="FILE", type=_PATH, help="Scatter or EDC curve as PNG.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object on stdout.")
def command(
    scores: Path,
    labels: Path | None,
    pairs: Path | None,
    images: Path | None,
    by: str | None,
    column: str,
    fnmr: float | None,
    fmr: float | None,
    resamples: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """How far SCORES (an output of `fiqa-trt score`) can be trusted.

    With --labels: SRCC, KRCC, PLCC and RMSE, raw and after the 4-parameter logistic, with bootstrap 95 % intervals.
    With --pairs: the error-versus-discard characteristic (EDC): the FNMR that is left when the pairs of lowest quality
    are discarded, at a threshold that is fixed before, and the area under that curve (pAUC).

    \b
    Examples:
      fiqa-trt eval scores.parquet --labels ratings.csv --by camera --plot scatter.png
      fiqa-trt eval scores.parquet --pairs pairs.csv --fmr 0.001 --plot edc.png
    """
    if (labels is None) == (pairs is None):
        raise click.UsageError("give either --labels FILE or --pairs FILE")
    if labels is not None and (fnmr is not None or fmr is not None):
        raise click.UsageError("--fnmr and --fmr belong to --pairs")
    if pairs is not None and by is not None:
        raise click.UsageError("--by belongs to --labels")
    if fnmr is not None and fmr is not None:
        raise click.UsageError("give either --fnmr or --fmr")
    try:
        import scipy  # noqa: F401

        if plot is not None:
            import matplotlib  # noqa: F401
    except ImportError as exc:
        raise EngineError(f"this command needs {exc.name}: pip install 'fiqa-trt[train]'") from exc
    if labels is not None:
        result = _labels(scores, labels, images, by, column, resamples, plot)
    else:
        assert pairs is not None
        result = _pairs(scores, pairs, images, column, fnmr, fmr, plot)
    give(json.dumps(result) if as_json else result["text"])


def _labels(
    scores: Path, labels: Path, images: Path | None, by: str | None, column: str, resamples: int, plot: Path | None
) -> dict[str, Any]:
    import numpy as np

    from fiqa_trt import evaluation

    rated = evaluation.read_rated(scores, labels, images, column, by)
    found = evaluation.agreement(rated.scores, rated.ratings, resamples)
    if plot is not None:
        evaluation.plot_agreement(rated, found, plot)
    lines = [f"{found.rows:,} images, {rated.failed:,} without a score, {rated.unmatched:,} not among the scores"]
    lines += ["", _table({"": found})]
    groups: dict[str, Any] = {}
    if by is not None:
        names = np.array(rated.groups)
        chosen = {name: names == name for name in sorted(set(rated.groups))}
        parts = {
            name: evaluation.agreement(rated.scores[rows], rated.ratings[rows], resamples)
            for name, rows in chosen.items()
            if evaluation.comparable(rated.scores[rows], rated.ratings[rows])
        }
        lines += ["", _table(parts)] if parts else []
        lines += [f"{name}: too few images, or all alike" for name in chosen if name not in parts]
        groups = {name: dataclasses.asdict(part) for name, part in parts.items()}
    return {
        **dataclasses.asdict(found),
        "failed": rated.failed,
        "unmatched": rated.unmatched,
        "groups": groups,
        "text": "\n".join(lines),
    }


def _table(columns: dict[str, Agreement]) -> str:
    from fiqa_trt.evaluation import MEASURES

    width = max(8, *(len(name) for name in columns)) + 2
    lines = [" " * width + "rows".rjust(8) + "".join(name.rjust(24) for name in MEASURES)]
    for name, found in columns.items():
        cells = (found.measures[measure] for measure in MEASURES)
        text = "".join(f"{cell.value:.4f} [{cell.low:.4f}, {cell.high:.4f}]".rjust(24) for cell in cells)
        lines.append(name.ljust(width) + f"{found.rows:,}".rjust(8) + text)
    return "\n".join(lines)


def _pairs(
    scores: Path,
    pairs: Path,
    images: Path | None,
    column: str,
    fnmr: float | None,
    fmr: float | None,
    plot: Path | None,
) -> dict[str, Any]:
    from fiqa_trt import evaluation

    found = evaluation.read_pairs(scores, pairs, images, column)
    mated = found.similarity[found.same]
    if fmr is not None:
        threshold = evaluation.threshold_at_fmr(found.similarity[~found.same], fmr)
    else:
        threshold = evaluation.threshold_at_fnmr(mated, 0.05 if fnmr is None else fnmr)
    curve = evaluation.edc(found.quality[found.same], mated, threshold)
    if plot is not None:
        evaluation.plot_edc(curve, plot)
    return {
        "mated": curve.pairs,
        "non_mated": int((~found.same).sum()),
        "dropped": found.dropped,
        "threshold": threshold,
        "fnmr": {f"{share:g}": curve.at(share) for share in evaluation.DISCARDS},
        "pauc": {f"{share:g}": curve.pauc(share) for share in evaluation.AREAS},
        "pauc_ideal": {f"{share:g}": curve.pauc(share, ideal=True) for share in evaluation.AREAS},
        "text": _edc_text(curve, found.dropped),
    }


def _edc_text(curve: Edc, dropped: int) -> str:
    from fiqa_trt.evaluation import AREAS, DISCARDS

    lines = [
        f"{curve.pairs:,} mated pairs, {dropped:,} pairs dropped for want of a score, threshold {curve.threshold:g}"
    ]
    lines += [f"  FNMR with {share:4.0%} discarded: {curve.at(share):.4f}" for share in DISCARDS]
    lines += [
        f"  pAUC to {share:.0%}: {curve.pauc(share):.5f} (best possible {curve.pauc(share, ideal=True):.5f})"
        for share in AREAS
    ]
    return "\n".join(lines)
