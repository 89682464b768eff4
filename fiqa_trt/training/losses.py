"""MSECorrLoss, the correlation-aware loss of the ensemble's paper (2025): MSE + lambda * (1 - Pearson r)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pearson(prediction: Tensor, target: Tensor, floor: float = 1e-3) -> Tensor:
    """Pearson correlation of two [N] tensors as a scalar in [-1, 1], computed in float32 or better.

    Standard deviations below `floor` count as `floor`: the correlation of a constant batch, or of a single value, is 0,
    and the gradient stays below 1 / (N * floor) where the correlation itself would be ill-conditioned.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    x, y = prediction.to(dtype), target.to(dtype)
    x, y = x - x.mean(), y - y.mean()
    # Clamped before the root, whose own gradient at 0 is infinite.
    deviations = [(v * v).mean().clamp(min=floor * floor).sqrt() for v in (x, y)]
    return (x * y).mean() / (deviations[0] * deviations[1])


class MSECorrLoss(nn.Module):
    """MSE + `weight` * (1 - r) over a batch.

    Args:
        weight: lambda. The paper does not publish its value; ours is 0.5, chosen on the `val` split.
    """

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        if weight < 0:
            raise ValueError(f"the weight of the correlation term must not be negative, got {weight}")
        self.weight = weight

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Loss of two tensors of the same shape [N], N >= 1, as a scalar."""
        dtype = torch.promote_types(prediction.dtype, torch.float32)
        mse = nn.functional.mse_loss(prediction.to(dtype), target.to(dtype))
        return mse + self.weight * (1 - pearson(prediction, target))
