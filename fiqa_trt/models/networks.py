"""The two backbones and their ensemble, in PyTorch. No I/O here.

Source of the architecture: "A Lightweight Ensemble-Based Face Image Quality Assessment Method with
Correlation-Aware Loss" (2025): MobileNetV3-Small and ShuffleNetV2, one output each, predictions averaged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torchvision.models import ShuffleNetV2 as TorchvisionShuffleNetV2
from torchvision.models import mobilenet_v3_small, shufflenet_v2_x1_0

from fiqa_trt.models.causes import NONE, Causes
from fiqa_trt.models.folding import fold_shuffles
from fiqa_trt.models.spec import ModelSpec


class Member(nn.Module):
    """A backbone, global average pooling, and on what that gives one output: the score. Where causes are asked for
    there is a second layer on the same, with an output for each.
    """

    features: nn.Module
    head: nn.Linear
    causes: nn.Linear | None

    def __init__(self) -> None:
        super().__init__()
        self.causes = None

    def maps(self, images: Tensor) -> Tensor:
        """Normalised float NCHW images to the features that are pooled, [N, C, H, W]."""
        raise NotImplementedError

    def add_causes(self, count: int) -> None:
        """A new layer for so many causes, with random weights."""
        self.causes = nn.Linear(self.head.in_features, count)

    def pool(self, images: Tensor) -> Tensor:
        """Normalised float NCHW images to what the heads judge by, [N, features]."""
        return self.maps(images).to(self.head.weight.dtype).mean(dim=(2, 3))

    def score(self, pooled: Tensor) -> Tensor:
        """What `pool` gives to quality in [0, 1], shape [N]."""
        return torch.sigmoid(self.head(pooled)).squeeze(1)

    def severities(self, pooled: Tensor) -> Tensor:
        """What `pool` gives to the severity of each cause in [0, 1], shape [N, causes]."""
        assert self.causes is not None
        return torch.sigmoid(self.causes(pooled))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised float NCHW images to quality in [0, 1], shape [N]."""
        return self.score(self.pool(images))


class MobileNetV3Small(Member):
    """torchvision's MobileNetV3-Small features, global average pooling and one output (0.93 M parameters)."""

    def __init__(self) -> None:
        super().__init__()
        net = mobilenet_v3_small(weights=None)
        self.features = net.features
        self.head = nn.Linear(576, 1)

    def maps(self, images: Tensor) -> Tensor:
        """See `Member.maps`."""
        maps: Tensor = self.features(images)
        return maps


class ShuffleNetV2(Member):
    """torchvision's ShuffleNetV2 x1.0 and one output (1.26 M parameters)."""

    features: TorchvisionShuffleNetV2

    def __init__(self) -> None:
        super().__init__()
        self.features = shufflenet_v2_x1_0(weights=None)
        self.features.fc = nn.Linear(1024, 1)

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The layer of the score."""
        head = self.features.fc
        assert isinstance(head, nn.Linear)
        return head

    def maps(self, images: Tensor) -> Tensor:
        """See `Member.maps`."""
        net = self.features
        maps: Tensor = net.conv5(net.stage4(net.stage3(net.stage2(net.maxpool(net.conv1(images))))))
        return maps

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
    """All members behind one preprocessing: uint8 pixels in, one score per member out, and causes if it has such.

    Everything numeric is inside (cast, layout, normalisation, sigmoid), so that an engine made from it is fed with
    the decoder's pixels as they are.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: ModelSpec | None = None) -> None:
        super().__init__()
        self.spec = spec = spec or ModelSpec()
        self.members = nn.ModuleDict({name: NETWORKS[name]() for name in spec.members})
        self.register_buffer("mean", torch.tensor(spec.mean) * 255, persistent=False)
        self.register_buffer("std", torch.tensor(spec.std) * 255, persistent=False)
        self.dtype = torch.float32
        if spec.causes:
            self.add_causes(spec.causes)

    def each(self) -> list[Member]:
        """The members."""
        return [member for member in self.members.values() if isinstance(member, Member)]

    def add_causes(self, causes: Causes) -> None:
        """Give every member a new layer for these causes, with random weights; what there was of such is forgotten."""
        self.spec = dataclasses.replace(self.spec, causes=causes)
        for member in self.each():
            member.add_causes(len(causes))

    def forget_causes(self) -> None:
        """Tell nothing but scores."""
        self.spec = dataclasses.replace(self.spec, causes=NONE)
        for member in self.each():
            member.causes = None

    def lower(self, dtype: torch.dtype) -> None:
        """Compute the features in `dtype` (FP16 or BF16), in place. What is sensitive and costs nothing stays in FP32:
        the normalisation, the pooling, the heads and the sigmoid.
        """
        self.dtype = dtype
        for member in self.each():
            member.features.to(dtype)
            member.head.float()  # of one network it is among the features

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

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """uint8 RGB [N, 224, 224, 3] to float32 [N, members] in [0, 1]; the score is the mean over members.

        Behind it, where the spec has causes: their severities, float32 [N, causes] in [0, 1], the mean over members.
        """
        normalised, members = self.normalise(images), self.each()
        pooled = [member.pool(normalised) for member in members]
        scores = torch.stack([m.score(p).float() for m, p in zip(members, pooled, strict=True)], dim=1)
        if not self.spec.causes:
            return (scores,)
        causes = [m.severities(p).float() for m, p in zip(members, pooled, strict=True)]
        return scores, torch.stack(causes, dim=1).mean(dim=1)
