"""A block whose only nonlinearity is one product of two depthwise convolutions: no channel is ever added.

Source: after PolyNeXt (arXiv 2605.20839). There is no expansion: it costs two 1x1 convolutions of C to C.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from hadaptive.nn.bottleneck import DropPath
from hadaptive.nn.layers import Layers
from hadaptive.nn.reparam import depthwise, layer_scale


class PolyBlock(nn.Module):
    """Conv1x1 + BN -> two depthwise + BN, one of them through an activation, multiplied -> Conv1x1 + BN, residual.

    Each channel of the one is multiplied with the channel of the other that lies half of all channels away: the
    product of a channel with itself is little more than its square.

    Args:
        channels: C, in and out; even.
        kernel_size: odd, of the first depthwise convolution; the second is 3x3.
        drop_path: stochastic-depth rate of the residual branch.
        device, dtype: of parameters and buffers.
        act_layer: of the 3x3 factor; None for none.
        reparam: whether the depthwise convolutions are trained as :class:`hadaptive.nn.RepDepthwise`.
        layer_scale_init: of a learnt scale of each channel of the residual branch; None for none.

    Shape:
        (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: the channels are not even, or the kernel is.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 7,
        drop_path: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act_layer: type[nn.Module] | None = nn.ReLU6,
        reparam: bool = False,
        layer_scale_init: float | None = None,
    ) -> None:
        super().__init__()
        if channels < 2 or channels % 2:
            raise ValueError(f"channels must be even, for each half multiplies the other, got {channels}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to keep the map's size, got {kernel_size}")
        dd: Any = {"device": device, "dtype": dtype}

        def conv() -> Layers:
            return Layers(nn.Conv2d(channels, channels, 1, bias=False, **dd), nn.BatchNorm2d(channels, **dd))

        self.shift = channels // 2
        self.mix = conv()
        self.wide = depthwise(channels, kernel_size, reparam=reparam, **dd)
        self.narrow = depthwise(channels, 3, reparam=reparam, **dd)
        self.act = nn.Identity() if act_layer is None else act_layer()
        self.project = conv()
        self.scale = layer_scale(channels, layer_scale_init, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        u = self.mix(x)
        factor = self.act(self.narrow(u)).roll(self.shift, dims=1)
        return x + self.drop_path(self.scale(self.project(self.wide(u) * factor)))
