"""The executors: this process, or what an argument like `devices` asks for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fiqa_trt.executors.base import Executor, Setup
from fiqa_trt.progress import Say, silent

if TYPE_CHECKING:
    from fiqa_trt.executors.cluster import Cluster

# By the argument that asks for it. Each module has a function `opened`, which takes what was given, the setup and say.
EXECUTORS = {"devices": "fiqa_trt.executors.processes", "cluster": "fiqa_trt.executors.ray"}


def open_executor(setup: Setup, say: Say = silent, **elsewhere: str | Cluster | None) -> Executor:
    """What scores the units of a run: this process, unless something else is asked for.

    Args:
        setup: how to score.
        say: hears, in lines, of decisions that one should know of, and at the end which engine it is.
        elsewhere: by a name of EXECUTORS what to score on, as in `devices="0,1"` or `cluster=Cluster("auto")`; None
            asks for nothing.

    Raises:
        EngineError: what was asked for cannot be had.
    """
    executor: Executor
    name, where = next(((name, where) for name, where in elsewhere.items() if where is not None), ("", ""))
    if name:
        opened: Callable[[Any, Setup, Say], Executor] = import_module(EXECUTORS[name]).opened
        executor = opened(where, setup, say)
    else:
        from fiqa_trt.executors.in_process import InProcess

        executor = InProcess.open(setup, say)
    info = executor.info
    what = f"{info.backend} on {where or info.device}, {info.precision} (run as {info.executed})"
    say(f"engine: {what}, batch {info.batch}; decoder: {executor.decoder}")
    return executor
