"""What builds the engines of each backend, by name. A new one is a function, and a line here."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from fiqa_trt.building.request import Request
    from fiqa_trt.engines.manifest import Draft, Manifest
    from fiqa_trt.progress import Say


Build = Callable[["Request", str, "Draft", Path, "Say"], "tuple[Manifest, bytes]"]
"""Takes what is asked for, the device, a draft and a folder for scratch; returns the manifest, with all that was
measured, and the payload."""


@dataclasses.dataclass(frozen=True)
class Builder:
    """Where a `Build` is: a function of a module of `fiqa_trt.building`.

    Attributes:
        module: of that folder.
        function: in it.
        elsewhere: whether it builds, given the device `cpu`, for GPUs of other machines.
    """

    module: str
    function: str
    elsewhere: bool = False

    def load(self) -> Build:
        """The function."""
        return cast(Build, getattr(importlib.import_module(f"fiqa_trt.building.{self.module}"), self.function))


# Of several for a kind of device, the first that is installed is preferred.
BUILDERS = {
    "openvino": Builder("cpu", "build_openvino"),
    "tensorrt": Builder("cuda", "build_tensorrt"),
    "tensorrt-rtx": Builder("rtx", "build_rtx", elsewhere=True),
    "torch": Builder("cuda", "build_torch"),
}
