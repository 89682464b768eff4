"""The version of this package, as its metadata, its outputs and its working state name it."""

__version__ = "0.1.0"
