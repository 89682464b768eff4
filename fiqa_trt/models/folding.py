"""ShuffleNetV2 without shuffles: the same function, with the channel permutations folded into the weights.

A unit concatenates two halves, shuffles their channels, and the next unit splits them again. All of that only decides
which channel goes where. Here each branch puts out its channels sorted by who will need them, so that a unit's input is
a concatenation of slices, and the following convolution's weights are permuted to match. No arithmetic changes but the
order of summation. On a CPU the shuffles take a fifth of the ensemble's time.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models import ShuffleNetV2 as TorchvisionShuffleNetV2

Channel = tuple[int, int]  # number of the branch that puts it out, and its index there


class FoldedStage(nn.Module):
    """One stage: a strided unit with two branches, then units that transform half of their input.

    `order` holds, for each channel that the stage puts out, its index in the original stage's output.
    """

    def __init__(self, stage: nn.Sequential, order: list[int]) -> None:
        """Fold `stage`, whose input's channels come in `order` (indices of the original input). Weights are copied."""
        super().__init__()
        units = [copy.deepcopy(unit) for unit in stage]
        first = [cast(nn.Sequential, units[0].branch1), cast(nn.Sequential, units[0].branch2)]
        self.branches = nn.ModuleList([*first, *(cast(nn.Sequential, unit.branch2) for unit in units[1:])])
        # A depthwise convolution's channels come out as they go in.
        _permute_output(cast(nn.Conv2d, first[0][0]), cast(nn.BatchNorm2d, first[0][1]), order)
        _permute_input(cast(nn.Conv2d, first[0][2]), order)
        _permute_input(cast(nn.Conv2d, first[1][0]), order)

        half = cast(nn.Conv2d, first[0][2]).out_channels
        # Follow every channel through the original stage: `needed[k]` is the input of unit k's branch, in its order;
        # the last entry is what the stage puts out.
        kept = [(0, index) for index in range(half)]
        needed: list[list[Channel]] = []
        for unit in range(len(units)):
            fresh = [(unit + 1, index) for index in range(half)]
            shuffled = [channel for pair in zip(kept, fresh, strict=True) for channel in pair]
            kept = shuffled[:half]
            needed.append(shuffled[half:])
        needed[-1] = kept + needed[-1]

        # Sort each branch's output by the unit that needs it, and tell that unit's convolution.
        user = {channel: number for number, channels in enumerate(needed) for channel in channels}
        self.sizes: list[list[int]] = []
        places: list[list[Channel]] = [[] for _ in needed]
        for number, branch in enumerate(self.branches):
            sorted_channels = sorted((user[number, index], index) for index in range(half))
            layers = cast(nn.Sequential, branch)
            _permute_output(
                cast(nn.Conv2d, layers[-3]), cast(nn.BatchNorm2d, layers[-2]), [i for _, i in sorted_channels]
            )
            self.sizes.append([sum(1 for u, _ in sorted_channels if u == wanted) for wanted in range(len(needed))])
            for wanted, index in sorted_channels:
                places[wanted].append((number, index))
        for number, channels in enumerate(places[:-1]):
            _permute_input(
                cast(nn.Conv2d, cast(nn.Sequential, self.branches[number + 2])[0]),
                [needed[number].index(channel) for channel in channels],
            )
        self.order = [needed[-1].index(channel) for channel in places[-1]]

    def forward(self, images: Tensor) -> Tensor:
        """Features [N, C, H, W] to [N, C', H / 2, W / 2]."""
        waiting: list[list[Tensor]] = [[] for _ in self.sizes[0]]

        def hand_out(number: int, features: Tensor) -> None:
            sizes = self.sizes[number]
            slices = torch.split(features, [size for size in sizes if size], dim=1)
            for user, part in zip([u for u, size in enumerate(sizes) if size], slices, strict=True):
                waiting[user].append(part)

        hand_out(0, self.branches[0](images))
        hand_out(1, self.branches[1](images))
        for number in range(2, len(self.branches)):
            hand_out(number, self.branches[number](torch.cat(waiting[number - 2], dim=1)))
        return torch.cat(waiting[-1], dim=1)


def _permute_input(layer: nn.Conv2d, order: list[int]) -> None:
    layer.weight.data = layer.weight.data[:, order].clone()


def _permute_output(layer: nn.Conv2d, norm: nn.BatchNorm2d, order: list[int]) -> None:
    layer.weight.data = layer.weight.data[order].clone()
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = cast(Tensor, getattr(norm, name))
        values.data = values.data[order].clone()


def fold_shuffles(network: TorchvisionShuffleNetV2) -> None:
    """Replace the stages of a ShuffleNetV2, in place, by folded ones; its outputs stay the same but for rounding."""
    order = list(range(cast(nn.Conv2d, network.conv1[0]).out_channels))
    for name in ("stage2", "stage3", "stage4"):
        folded = FoldedStage(cast(nn.Sequential, getattr(network, name)), order)
        setattr(network, name, folded)
        order = folded.order
    _permute_input(cast(nn.Conv2d, network.conv5[0]), order)
