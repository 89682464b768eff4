"""How far scores can be trusted: their agreement with ratings, and what they are worth to face recognition."""

from fiqa_trt.evaluation.edc import AREAS, DISCARDS, Edc, edc, threshold_at_fmr, threshold_at_fnmr
from fiqa_trt.evaluation.measures import (
    MEASURES,
    MIN_ROWS,
    Agreement,
    Estimate,
    agreement,
    comparable,
    fit_logistic,
    logistic,
)
from fiqa_trt.evaluation.plots import plot_agreement, plot_edc
from fiqa_trt.evaluation.reading import Pairs, Rated, read_pairs, read_rated

__all__ = [
    "AREAS",
    "DISCARDS",
    "MEASURES",
    "MIN_ROWS",
    "Agreement",
    "Edc",
    "Estimate",
    "Pairs",
    "Rated",
    "agreement",
    "comparable",
    "edc",
    "fit_logistic",
    "logistic",
    "plot_agreement",
    "plot_edc",
    "read_pairs",
    "read_rated",
    "threshold_at_fmr",
    "threshold_at_fnmr",
]
