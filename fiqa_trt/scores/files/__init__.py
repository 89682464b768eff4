"""Files of rows that a run writes and others read: .parquet, .csv, .jsonl."""

from __future__ import annotations

from fiqa_trt.scores.files.columns import hold, to_json
from fiqa_trt.scores.files.formats import SUFFIXES, check_columns, holder
from fiqa_trt.scores.files.reading import output_metadata, read_output, read_schema, recorded_fingerprint
from fiqa_trt.scores.files.writing import with_metadata, write_output

__all__ = [
    "SUFFIXES",
    "check_columns",
    "hold",
    "holder",
    "output_metadata",
    "read_output",
    "read_schema",
    "recorded_fingerprint",
    "to_json",
    "with_metadata",
    "write_output",
]
