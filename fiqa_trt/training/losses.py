"""MSECorrLoss, the correlation-aware loss of the ensemble's paper (2025): MSE + lambda * (1 - Pearson r)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    return values.mean() if weights is None else (values * weights).sum() / weights.sum()


def pearson(prediction: Tensor, target: Tensor, weights: Tensor | None = None, floor: float = 1e-3) -> Tensor:
    """Pearson correlation of two [N] tensors as a scalar in [-1, 1], computed in float32 or better.

    Standard deviations below `floor` count as `floor`: the correlation of a constant batch, or of a single value, is 0,
    and the gradient stays below 1 / (N * floor) where the correlation itself would be ill-conditioned.

    Args:
        prediction: [N].
        target: [N].
        weights: [N], not negative and not all 0, of each pair; None counts all alike.
        floor: of the standard deviations.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    x, y = prediction.to(dtype), target.to(dtype)
    x, y = x - _mean(x, weights), y - _mean(y, weights)
    # Clamped before the root, whose own gradient at 0 is infinite.
    deviations = [_mean(v * v, weights).clamp(min=floor * floor).sqrt() for v in (x, y)]
    return _mean(x * y, weights) / (deviations[0] * deviations[1])


class MSECorrLoss(nn.Module):
    """`mse` * MSE + `weight` * (1 - r) over a batch.

    Args:
        weight: lambda. The paper does not publish its value; ours is 2, the best of three (see the model card).
        mse: 1 in the paper; 0 leaves the correlation alone, for comparison.
    """

    def __init__(self, weight: float = 2.0, mse: float = 1.0) -> None:
        super().__init__()
        if weight < 0 or mse < 0 or weight + mse == 0:
            raise ValueError(f"the weights of the two terms must not be negative, nor both 0: got {weight} and {mse}")
        self.weight = weight
        self.mse = mse

    def forward(self, prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
        """Loss of two tensors of the same shape [N], N >= 1, as a scalar; `weights` as in `pearson`."""
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        mse = _mean((prediction.to(dtype) - target.to(dtype)) ** 2, weights)
        return self.mse * mse + self.weight * (1 - pearson(prediction, target, weights))


def rarity(severities: Tensor) -> Tensor:
    """How much more a crop with a cause counts than one without, [causes], of severities [N, causes]: the root of how
    many there are without for each with it, so that the rare ones are learned as well.
    """
    present = severities.nan_to_num().sum(dim=0)
    absent = (1 - severities).nan_to_num().sum(dim=0)
    return (absent / present.clamp(min=1)).clamp(1, 100).sqrt()


def causes_loss(
    logits: Tensor, severities: Tensor, weights: Tensor | None = None, rare: Tensor | None = None
) -> Tensor:
    """Cross-entropy of severities, the mean over those that are known, as a scalar; 0 if none is.

    Args:
        logits: [N, causes], before the sigmoid.
        severities: likewise, in [0, 1]; NaN where nobody knows.
        weights: [N], as in `pearson`.
        rare: [causes], what a severity of 1 counts, where one of 0 counts 1; None for 1.
    """
    known = (~severities.isnan()).float() * (1 if weights is None else weights[:, None])
    truth = severities.nan_to_num()
    if rare is not None:
        known = known * (1 + (rare - 1) * truth)
    losses = nn.functional.binary_cross_entropy_with_logits(logits.float(), truth, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1e-6)
