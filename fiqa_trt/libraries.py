"""Libraries of others: whether they are there, and without their telemetry, as fiqa-trt tells nobody what it does."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from typing import Any

from fiqa_trt.errors import UsageError

_OPENVINO = "openvino_telemetry"  # of OpenVINO and NNCF, which have a stub for where it is not installed
_ONNX_RUNTIME = "ORT_DISABLE_TELEMETRY"  # looked at when it is loaded


def has_torch() -> bool:
    """Whether it is installed, which takes long to import."""
    return importlib.util.find_spec("torch") is not None


@functools.cache
def require(name: str, otherwise: str) -> None:
    """Raise UsageError, with what is said `otherwise`, if a module, or what it needs, is not installed."""
    try:
        importlib.import_module(name)
    except ImportError as exc:
        raise UsageError(otherwise) from exc


def import_library(name: str) -> Any:
    """A module that would report its start, or more, over the network to its maker.

    What the program that we run in has loaded before stays as it is.

    Raises:
        ImportError: it, or what it needs, is not installed.
    """
    if name in sys.modules:
        return sys.modules[name]
    with _without_telemetry():
        return importlib.import_module(name)


@contextlib.contextmanager
def _without_telemetry() -> Iterator[None]:
    hide, asked = _OPENVINO not in sys.modules, os.environ.get(_ONNX_RUNTIME)
    os.environ[_ONNX_RUNTIME] = "1"
    if hide:
        sys.modules[_OPENVINO] = None  # type: ignore[assignment]  # an import of it fails, as if it were not there
    try:
        yield
    finally:
        if hide:
            del sys.modules[_OPENVINO]
        if asked is None:
            del os.environ[_ONNX_RUNTIME]
        else:
            os.environ[_ONNX_RUNTIME] = asked
