"""The two backbones and their ensemble, in PyTorch. No I/O here.

Source of the architecture: "A Lightweight Ensemble-Based Face Image Quality Assessment Method with
Correlation-Aware Loss" (2025): MobileNetV3-Small and ShuffleNetV2, one output each, predictions averaged.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small, shufflenet_v2_x1_0

from fiqa_trt.models.folding import fold_shuffles
from fiqa_trt.models.spec import ModelSpec


class MobileNetV3Small(nn.Module):
    """torchvision's MobileNetV3-Small features, global average pooling and one output (0.93 M parameters)."""

    def __init__(self) -> None:
        super().__init__()
        net = mobilenet_v3_small(weights=None)
        self.features = net.features
        self.head = nn.Linear(576, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float NCHW images to quality in [0, 1], shape [N]."""
        pooled = self.features(images).to(self.head.weight.dtype).mean(dim=(2, 3))
        return torch.sigmoid(self.head(pooled)).squeeze(1)


class ShuffleNetV2(nn.Module):
    """torchvision's ShuffleNetV2 x1.0 and one output (1.26 M parameters)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = shufflenet_v2_x1_0(weights=None)
        self.features.fc = nn.Linear(1024, 1)

    @property
    def head(self) -> nn.Linear:
        """The output layer."""
        head = self.features.fc
        assert isinstance(head, nn.Linear)
        return head

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float NCHW images to quality in [0, 1], shape [N]."""
        net = self.features
        maps = net.conv5(net.stage4(net.stage3(net.stage2(net.maxpool(net.conv1(images))))))
        pooled = maps.to(self.head.weight.dtype).mean(dim=(2, 3))
        return torch.sigmoid(self.head(pooled)).squeeze(1)

    def fold(self) -> None:
        """Fold the channel shuffles into the weights, in place: quicker, same outputs. State dicts no longer fit."""
        fold_shuffles(self.features)

    def load_backbone(self, weights: Mapping[str, Tensor]) -> None:
        """Take over every tensor of `weights` (torchvision's names); what it lacks keeps its initialisation.

        Raises:
            RuntimeError: a name or a shape that this network does not have.
        """
        self.features.load_state_dict({**self.features.state_dict(), **weights})


NETWORKS: dict[str, type[MobileNetV3Small | ShuffleNetV2]] = {
    "mobilenet_v3_small": MobileNetV3Small,
    "shufflenet_v2_x1_0": ShuffleNetV2,
}
"""What a member can be, by name."""


class Ensemble(nn.Module):
    """All members behind one preprocessing: uint8 pixels in, one score per member out.

    Everything numeric is inside (cast, layout, normalisation, sigmoid), so that an engine made from it is fed with
    the decoder's pixels as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec | None = None) -> None:
        super().__init__()
        spec = spec or ModelSpec()
        self.members = nn.ModuleDict({name: NETWORKS[name]() for name in spec.members})
        self.register_buffer("mean", torch.tensor(spec.mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std) * 255, persistent=False)
        self.dtype = torch.float32

    def lower(self, dtype: torch.dtype) -> None:
        """Compute the features in `dtype` (FP16 or BF16), in place. What is sensitive and costs nothing stays in FP32:
        the normalisation, the pooling, the heads and the sigmoid.
        """
        self.dtype = dtype
        for member in self.members.values():
            assert isinstance(member, (MobileNetV3Small, ShuffleNetV2))
            member.features.to(dtype)
            member.head.float()

    def fold(self) -> None:
        """Make the network quicker without changing its outputs, in place, for export; see `models.folding`."""
        for member in self.members.values():
            if isinstance(member, ShuffleNetV2):
                member.fold()

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 [N, H, W, 3] to normalised float [N, 3, H, W]."""
        # Cast and normalise while the channels are last: engines then take the permutation for a matter of layout.
        # The copy is needed: without it, adaptive pooling exports as `as_strided`, which TensorRT cannot convert.
        normalised = (images.to(self.mean.dtype) - self.mean) / self.std
        return normalised.to(self.dtype).permute(0, 3, 1, 2).contiguous()

    def forward(self, images: Tensor) -> Tensor:
        """uint8 RGB [N, 224, 224, 3] to float32 [N, members] in [0, 1]; the score is the mean over members."""
        normalised = self.normalise(images)
        return torch.stack([member(normalised).float() for member in self.members.values()], dim=1)
