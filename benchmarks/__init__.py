"""Measurements whose results are in `results/`; each module says what it measures and how to run it."""
