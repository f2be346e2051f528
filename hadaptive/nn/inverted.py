"""Inverted-bottleneck expansion: every new channel by a 1x1 convolution, the rival that ACH is to replace.

Source: arXiv 1801.04381 (MobileNetV2), with Hardswish as in arXiv 1905.02244 (MobileNetV3).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from hadaptive.nn.layers import Layers


class InvertedExpansion(nn.Module):
    """Expand C channels to int(C * ratio) by Conv1x1 + BN + activation.

    Args:
        channels: C, channels in.
        ratio: how many times as many come out.
        device, dtype: of parameters and buffers.
        act: whether there is the activation. Without, a ratio of 1 is ACH's mix alone, and a larger one appends
            linear maps to it where ACH appends products.
        act_layer: the activation.
        groups: of the convolution; the projection behind it mixes them.

    Shape:
        (B, C, H, W) -> (B, int(C * ratio), H, W).

    Raises:
        ValueError: the ratio gives no channel at all, or the groups do not divide the channels.
    """

    def __init__(
        self,
        channels: int,
        ratio: float,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act: bool = True,
        act_layer: type[nn.Module] = nn.Hardswish,
        groups: int = 1,
    ) -> None:
        super().__init__()
        self.out_channels = int(channels * ratio)
        if self.out_channels < 1:
            raise ValueError(f"ratio {ratio} leaves no channel of {channels}")
        if groups < 1 or channels % groups or self.out_channels % groups:
            raise ValueError(f"groups must divide {channels} and {self.out_channels} channels, got {groups}")
        dd: Any = {"device": device, "dtype": dtype}
        layers = (
            nn.Conv2d(channels, self.out_channels, 1, groups=groups, bias=False, **dd),
            nn.BatchNorm2d(self.out_channels, **dd),
        )
        self.convolution = Layers(*layers, act_layer()) if act else Layers(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x)
