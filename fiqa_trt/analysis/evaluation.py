"""How far scores can be trusted: their agreement with ratings, and what they are worth to face recognition."""

from fiqa_trt.analysis.edc import AREAS, DISCARDS, Edc, edc, threshold_at_fmr, threshold_at_fnmr
from fiqa_trt.analysis.measures import (
    MEASURES,
    MIN_ROWS,
    Agreement,
    Comparison,
    Estimate,
    agreement,
    comparable,
    comparison,
    fit_logistic,
    logistic,
)
from fiqa_trt.analysis.plots import plot_agreement, plot_edc
from fiqa_trt.analysis.printing import FORMATS, OVERALL, Table, agreement_table, edc_table
from fiqa_trt.analysis.rated import PairForm, Pairs, Rated, in_common, read_pairs, read_rated

__all__ = [
    "AREAS",
    "DISCARDS",
    "FORMATS",
    "MEASURES",
    "MIN_ROWS",
    "OVERALL",
    "Agreement",
    "Comparison",
    "Edc",
    "Estimate",
    "PairForm",
    "Pairs",
    "Rated",
    "Table",
    "agreement",
    "agreement_table",
    "comparable",
    "comparison",
    "edc",
    "edc_table",
    "fit_logistic",
    "in_common",
    "logistic",
    "plot_agreement",
    "plot_edc",
    "read_pairs",
    "read_rated",
    "threshold_at_fmr",
    "threshold_at_fnmr",
]
