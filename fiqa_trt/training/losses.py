"""MSECorrLoss, the correlation-aware loss of the ensemble's paper (2025): MSE + lambda * (1 - Pearson r)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pearson(prediction: Tensor, target: Tensor, eps: float = 1e-8) -> Tensor:
    """Pearson correlation of two [N] tensors as a scalar in [-1, 1], computed in float32 or better.

    Where it is not defined (fewer than two values, or either side constant) it is 0 with zero gradient,
    so that a degenerate batch neither rewards nor poisons the weights.
    """
    dtype = torch.promote_types(prediction.dtype, torch.float32)
    x, y = prediction.to(dtype), target.to(dtype)
    x, y = x - x.mean(), y - y.mean()
    energy = (x * x).sum() * (y * y).sum()
    defined = energy > eps * eps
    # The inner `where` keeps the undefined branch out of the backward pass: 0 * inf would be nan there.
    safe = torch.where(defined, energy, torch.ones_like(energy))
    return torch.where(defined, (x * y).sum() / safe.sqrt(), torch.zeros_like(safe))


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
        mse = nn.functional.mse_loss(prediction.float(), target.float())
        if prediction.dtype == torch.float64:
            mse = nn.functional.mse_loss(prediction, target)
        return mse + self.weight * (1 - pearson(prediction, target))
