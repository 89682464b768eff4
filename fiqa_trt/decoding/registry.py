"""The decoders by name. Another one is a module beside this one, and a line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from fiqa_trt.errors import EngineError
from fiqa_trt.progress import Say, silent

if TYPE_CHECKING:
    from fiqa_trt.decoding.base import Decoder

# Each module has the functions `opened`, which takes place, max_pixels, threads and say, and `libraries`: what it works
# with, and its version, as a run records it.
DECODERS = {"cpu": "fiqa_trt.decoding.cpu", "dali": "fiqa_trt.decoding.dali"}
NAMES = ("auto", *DECODERS)
_ON_GPUS = "dali"  # what `auto` takes for an engine there, if it can be had


def open_decoder(name: str, place: str, threads: int, max_pixels: int, say: Say = silent) -> Decoder:
    """The decoder for an engine that takes its images at `place`, `cpu` or `cuda:i`.

    Args:
        name: one of NAMES.
        place: where the engine takes its images.
        threads: that decode.
        max_pixels: larger images are refused (`too_large`).
        say: hears of decisions that one should know of.

    Raises:
        EngineError: what was asked for cannot be had.
    """
    if name not in NAMES:
        raise EngineError(f"--decoder {name}: it is one of {', '.join(NAMES)}")

    def opened(named: str) -> Decoder:
        found: Decoder = import_module(DECODERS[named]).opened(place, max_pixels, threads, say)
        return found

    if name != "auto":
        return opened(name)
    if place != "cpu":
        try:
            return opened(_ON_GPUS)
        except EngineError as exc:
            reason = str(exc).removeprefix(f"--decoder {_ON_GPUS}: ")
            say(f"{reason}: the CPU decodes, which is likely to be slower")
    return opened("cpu")


def libraries(decoder: str) -> str:
    """Versions of what a decoder works with, given by its `name`, which begins with one of DECODERS."""
    module = next((module for name, module in DECODERS.items() if decoder.startswith(name)), DECODERS["cpu"])
    found: str = import_module(module).libraries()
    return found
