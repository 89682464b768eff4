"""What a decoder is."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, Union

import numpy as np
import numpy.typing as npt

from fiqa_trt.outcomes import ImageError, Outcome

if TYPE_CHECKING:
    from torch import Tensor


Pixels = npt.NDArray[np.uint8]
Images = Union[Pixels, "Tensor"]
"""A batch where it was decoded: in memory as NumPy's, on a GPU as PyTorch's."""
DEFAULT_MAX_PIXELS = 64_000_000


@dataclasses.dataclass(frozen=True)
class Decoded:
    """A batch of inputs, decoded.

    Attributes:
        outcomes: N, in the order of the inputs.
        pixels: uint8 RGB [batch, size, size, 3], batch >= N; row k is input k if its outcome is `ok`, and of no meaning
            otherwise.
    """

    outcomes: list[Outcome]
    pixels: Images


class Decoder(Protocol):
    """Turns the bytes of several files into one batch of pixels."""

    name: str
    max_pixels: int
    """Larger images are refused."""
    threads: int
    """How many calls may run at once."""

    def decode(self, blobs: Sequence[bytes | ImageError], batch: int) -> Decoded:
        """Decode `blobs`, the bytes of up to `batch` files or why there are none. What is in one raises nothing.

        Raises:
            RunError: the device failed.
        """
        ...
