"""Average the weights of two checkpoints of one training, or of one and the one that it began with.

`python -m benchmarks.release.average LATER EARLIER --share 0.33 -o FILE`. Where one came from the other, the mean of
the weights is a network as good as either, and steadier (Izmailov et al., "Averaging weights leads to wider optima",
2018; Wortsman et al., "Robust fine-tuning of zero-shot models", 2022).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor


def average(later: Tensor, earlier: Tensor, share: float) -> Tensor:
    """`share` of the earlier and the rest of the later one; counters as in the later."""
    if not later.is_floating_point():
        return later
    return ((1 - share) * later.double() + share * earlier.double()).to(later.dtype)


def main() -> None:
    """Average what both hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("later", type=Path)
    parser.add_argument("earlier", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the earlier one")
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    later, earlier = load_file(options.later), load_file(options.earlier)
    with safe_open(options.later, "pt") as file:
        metadata = file.metadata()
    # Heads of causes that only the later one has stay as they are, and so do their thresholds.
    weights = {name: average(value, earlier.get(name, value), options.share) for name, value in later.items()}
    save_file(weights, options.output, metadata)


if __name__ == "__main__":
    main()
