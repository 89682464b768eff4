"""fiqa-trt: quality scores for face crops by the million."""

__version__ = "0.1.0"
