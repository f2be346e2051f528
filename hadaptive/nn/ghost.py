"""Ghost expansion: half of the new channels by a 1x1 convolution, half by a cheap depthwise one.

Source: arXiv 1911.11907 (GhostNet); the form used here: arXiv 2505.22226, section 4; with channels added in place
of appended: arXiv 2211.06088 (RepGhost).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from hadaptive import ops
from hadaptive.nn.checks import JOINS, check_choice
from hadaptive.nn.layers import Layers
from hadaptive.nn.reparam import depthwise


class GhostExpansion(nn.Module):
    """Expand C channels to about C * ratio.

    Args:
        channels: C, channels in.
        ratio: e = int(C * ratio) channels are wanted; each half has h = ceil(e / 2), so 2h come out.
        device, dtype: of parameters and buffers.
        act_layer: activation of the primary channels, with join "add" of the sum, too.
        join: "concat", or "add", which adds the cheap channels to the primary ones, each behind a BatchNorm: one
            depthwise convolution when it is deployed.

    Shape:
        (B, C, H, W) -> (B, 2h, H, W), with join "add" (B, h, H, W).

    Raises:
        ValueError: the ratio gives no channel at all, or there is no such join.
    """

    def __init__(
        self,
        channels: int,
        ratio: float,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act_layer: type[nn.Module] = nn.Hardswish,
        join: str = "concat",
    ) -> None:
        super().__init__()
        check_choice("join", join, JOINS)
        wanted = int(channels * ratio)
        if wanted < 1:
            raise ValueError(f"ratio {ratio} leaves no channel of {channels}")
        half = -(-wanted // 2)
        dd: Any = {"device": device, "dtype": dtype}
        self.added = join == "add"
        self.out_channels = half if self.added else 2 * half
        self.primary = Layers(
            nn.Conv2d(channels, half, 1, bias=False, **dd), nn.BatchNorm2d(half, **dd), act_layer()
        )
        behind = [act_layer()] if self.added else []
        self.cheap = depthwise(half, 3, 1, *behind, reparam=self.added, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        y = self.cheap(x)
        return y if self.added else ops.append(x, y)
