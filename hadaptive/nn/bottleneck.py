"""The adaptive bottleneck: any expansion, a depthwise convolution, a projection.

Source: arXiv 2505.22226, section 4.
"""

from typing import Any

import timm.layers
import torch
import torch.fx
from timm.layers import drop_path
from torch import Tensor, nn
from torch.types import Device

from hadaptive.nn.layers import Layers
from hadaptive.nn.reparam import depthwise, layer_scale

torch.fx.wrap("drop_path")  # it changes its mask in place, which feature extractors take for a node without use


class DropPath(timm.layers.DropPath):
    """timm's stochastic depth, as one node of an FX graph."""

    def forward(self, x: Tensor) -> Tensor:
        return drop_path(x, self.drop_prob, self.training, self.scale_by_keep)


class AdaptiveBottleneck(nn.Module):
    """expansion -> depthwise k x k + BN + activation -> Conv1x1 + BN, with a residual where shapes allow.

    Args:
        expansion: (B, in_channels, H, W) -> (B, expanded, H, W); ACH, Ghost or your own.
        in_channels: channels in.
        expanded: channels the expansion puts out.
        out_channels: channels out.
        kernel_size: of the depthwise convolution; padding is (kernel_size - 1) // 2.
        stride: of the depthwise convolution.
        drop_path: stochastic-depth rate of the residual branch.
        device, dtype: of the parameters and buffers that it adds to those of `expansion`.
        act_layer: the activation.
        reparam: whether the depthwise convolution is trained as a :class:`hadaptive.nn.RepDepthwise`.
        layer_scale_init: of a learnt scale of each channel of the residual branch; None for none.

    Shape:
        (B, in_channels, H, W) -> (B, out_channels, H', W').

    Raises:
        ValueError: kernel_size or stride is not positive.
    """

    def __init__(
        self,
        expansion: nn.Module,
        in_channels: int,
        expanded: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        drop_path: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act_layer: type[nn.Module] = nn.Hardswish,
        reparam: bool = False,
        layer_scale_init: float | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or stride < 1:
            raise ValueError(f"kernel_size and stride must be positive, got {kernel_size} and {stride}")
        self.residual = stride == 1 and in_channels == out_channels
        if self.residual and kernel_size % 2 == 0:
            raise ValueError(f"a stride-1 bottleneck needs an odd kernel to keep its size, got {kernel_size}")
        dd: Any = {"device": device, "dtype": dtype}
        self.expansion = expansion
        self.depthwise = depthwise(expanded, kernel_size, stride, act_layer(), reparam=reparam, **dd)
        self.project = Layers(
            nn.Conv2d(expanded, out_channels, 1, bias=False, **dd), nn.BatchNorm2d(out_channels, **dd)
        )
        self.scale = layer_scale(out_channels, layer_scale_init if self.residual else None, **dd)
        self.drop_path = DropPath(drop_path) if self.residual and drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expansion(x)))
        return x + self.drop_path(self.scale(y)) if self.residual else y
