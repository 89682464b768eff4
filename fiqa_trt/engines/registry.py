"""The backends by name: what runs the networks. A new one is a module beside this one, and a line here.

Nothing is imported but the module that is used, so that the command line can list the names.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from fiqa_trt.engines.base import Engine, Wanted
    from fiqa_trt.engines.manifest import Manifest


class Opener(Protocol):
    """What the module of a backend has."""

    def open_directory(self, folder: Path, wanted: Wanted) -> Engine:
        """The engine of an engine directory of this backend.

        Raises:
            EngineError: it is damaged, or belongs to another machine; a batch that it does not take.
        """
        ...

    def open_unbuilt(self, released: Path, wanted: Wanted) -> Engine:
        """The released network as it is: `released` is an engine directory of its ONNX form, with its checkpoint,
        `ensemble.safetensors`, beside it.

        Only asked for on the devices of `Backend.unbuilt`.

        Raises:
            EngineError: a precision or a batch that is not to be had here.
        """
        ...

    def difference_from_here(self, manifest: Manifest, device: str) -> str | None:
        """What keeps an engine from being used here, in a line; None if nothing does."""
        ...

    def missing(self) -> str | None:
        """How to install what it needs; None if that is there."""
        ...

    def unfit(self, device: str) -> str | None:
        """Why no engine of its can run on a device of its kind, though it is installed; None if they can."""
        ...


@dataclasses.dataclass(frozen=True)
class Backend:
    """What runs the networks.

    Attributes:
        title: its name as its makers write it.
        module: of `fiqa_trt.engines`, with all that `Opener` says.
        kind: `cpu` or `cuda`: where its engine directories run.
        unbuilt: where it runs the released network with nothing built.
        built: whether its engines are built for a machine; another is an export for any, and has no name but its
            directory's.
        stored: whether its name stands for the best of its engines that were built here, and not for the network as
            it is.
    """

    title: str
    module: str
    kind: str
    unbuilt: tuple[str, ...] = ()
    built: bool = True
    stored: bool = True

    @property
    def kinds(self) -> set[str]:
        """Where it runs, built or not."""
        return {self.kind, *self.unbuilt}

    def load(self) -> Opener:
        """Its module."""
        return cast(Opener, importlib.import_module(f"fiqa_trt.engines.{self.module}"))


# Where several can run, the first is preferred.
BACKENDS = {
    "onnx": Backend("ONNX", "openvino", "cpu", built=False),
    "openvino": Backend("OpenVINO", "openvino", "cpu", unbuilt=("cpu",)),
    "tensorrt": Backend("TensorRT", "tensorrt", "cuda"),
    "tensorrt-rtx": Backend("TensorRT for RTX", "rtx", "cuda"),
    "torch": Backend("PyTorch", "torch", "cuda", unbuilt=("cpu", "cuda"), stored=False),
}


def names() -> tuple[str, ...]:
    """Of the backends that one can ask for."""
    return tuple(name for name, backend in BACKENDS.items() if backend.built)


def obstacle(name: str, device: str) -> str | None:
    """Why engines of a backend can neither be built nor run on a device of its kind, in words; None if they can."""
    opener = BACKENDS[name].load()
    install = opener.missing()
    return opener.unfit(device) if install is None else f"{BACKENDS[name].title} is not here ({install})"


def unbuilt_on(kind: str) -> str:
    """The backend that runs the released network on `cpu` or `cuda` where nothing was built."""
    return next(name for name in names() if kind in BACKENDS[name].unbuilt)
