"""Quality labels without human ratings: full-reference metrics between a degraded crop and its clean original.

Each metric is histogram-equalised over the pool and the results are averaged, as KADIS-700k (Lin et al., "DeepFL-IQA",
2020) does with eleven metrics. Four are used here, from the library `piq`: FSIM, VSI, HaarPSI and VIF.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fiqa_trt.training.degradations import Image

METRICS = ("fsim", "vsi", "haarpsi", "vif")
# FSIM holds dozens of maps of every crop; with those of a whole batch it waits for memory (2.2 times as long).
_FSIM_BATCH = 2


def full_reference(degraded: list[Image], clean: list[Image]) -> npt.NDArray[np.float64]:
    """The four metrics of each pair of uint8 [224, 224, 3] crops, as float64 [N, 4] in the order of METRICS.

    Values are about 0 (nothing in common) to 1 (identical); VIF may exceed 1 where contrast was enhanced.
    """
    import piq
    import torch

    def batch(images: list[Image]) -> torch.Tensor:
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255

    def measure(metric: Callable[..., torch.Tensor], size: int) -> torch.Tensor:
        parts = zip(torch.split(x, size), torch.split(y, size), strict=True)
        return torch.cat([metric(a, b, data_range=1.0, reduction="none").reshape(-1) for a, b in parts])

    sizes = {piq.fsim: _FSIM_BATCH, piq.vsi: len(clean), piq.haarpsi: len(clean), piq.vif_p: len(clean)}
    x, y = batch(degraded), batch(clean)
    with torch.inference_mode():
        columns = [measure(metric, size) for metric, size in sizes.items()]
    return torch.stack(columns, dim=1).double().numpy()


def equalise(
    metrics: npt.NDArray[np.float64], reference: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """Labels in (0, 1): the mean over metrics of each value's rank within `reference` (default: `metrics` itself).

    Args:
        metrics: [N, M], higher is better.
        reference: [R, M], the pool whose distribution is equalised; the `val` split is ranked within `train`.
    """
    pool = np.sort(metrics if reference is None else reference, axis=0)
    ranks = np.empty_like(metrics)
    for column in range(metrics.shape[1]):
        below = np.searchsorted(pool[:, column], metrics[:, column], "left")
        upto = np.searchsorted(pool[:, column], metrics[:, column], "right")
        ranks[:, column] = (below + upto + 1) / 2 / (len(pool) + 1)
    return np.asarray(ranks.mean(axis=1))
