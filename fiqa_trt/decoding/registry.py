"""The decoders by name."""

from __future__ import annotations

from fiqa_trt.decoding.base import Decoder
from fiqa_trt.decoding.cpu import CpuDecoder
from fiqa_trt.errors import EngineError
from fiqa_trt.progress import Say, silent

DECODERS = ("auto", "cpu", "dali")


def open_decoder(name: str, place: str, threads: int, max_pixels: int, say: Say = silent) -> Decoder:
    """The decoder for an engine that takes its images at `place`, `cpu` or `cuda:i`.

    Args:
        name: one of DECODERS.
        place: where the engine takes its images.
        threads: that decode.
        max_pixels: larger images are refused (`too_large`).
        say: hears of decisions that one should know of.

    Raises:
        EngineError: what was asked for cannot be had.
    """
    if name not in DECODERS:
        raise EngineError(f"--decoder {name}: it is one of {', '.join(DECODERS)}")
    if name == "dali" or (name == "auto" and place != "cpu"):
        from fiqa_trt.decoding.dali import DaliDecoder

        try:
            return DaliDecoder(place, max_pixels, threads, say)
        except EngineError as exc:
            if name == "dali":
                raise
            say(f"{str(exc).removeprefix('--decoder dali: ')}: the CPU decodes, which is likely to be slower")
    return CpuDecoder(max_pixels, threads)
