"""A block whose expansion is nothing but products: the star operation, and more factors than two.

Source: arXiv 2403.19967 (StarNet) for the block around it and for two factors; pairs of several as in
arXiv 2505.22226.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.types import Device

from hadaptive import ops
from hadaptive.nn.bottleneck import DropPath
from hadaptive.nn.layers import Layers
from hadaptive.nn.normalisation import create_norm
from hadaptive.nn.reparam import depthwise, layer_scale
from hadaptive.ops import num_pairs


class BlockProducts(nn.Module):
    """All pairs of k blocks of channels multiplied, the lower block of each pair through an activation.

    Args:
        k: blocks, at least 2.
        width: w, channels of a block.
        act_layer: of the lower factor; None for none.

    Shape:
        (B, k w, H, W) -> (B, w k(k-1)/2, H, W), in the order of :func:`hadaptive.ops.pair_indices`.
    """

    def __init__(self, k: int, width: int, act_layer: type[nn.Module] | None = None) -> None:
        super().__init__()
        self.k, self.width = k, width
        self.bare = act_layer is None
        self.act = nn.Identity() if act_layer is None else act_layer()

    def forward(self, x: Tensor) -> Tensor:
        if self.bare:
            index = torch.arange(self.k * self.width, device=x.device).expand(x.shape[0], -1)
            return ops.selected_products(x, index, None, self.width)
        if self.width == 1:
            pairs = ops.pair_indices(self.k, x.device)
            return self.act(x).index_select(1, pairs[0]) * x.index_select(1, pairs[1])
        lower = self.act(x[:, : -self.width]).split(self.width, dim=1)
        upper = x.split(self.width, dim=1)
        products: list[Tensor] = []
        for i in range(self.k - 1):
            for j in range(i + 1, self.k):
                products.append(lower[i] * upper[j])
        return products[0] if self.k == 2 else torch.cat(products, dim=1)

    def extra_repr(self) -> str:
        return f"k={self.k}, width={self.width}"


class ProductBlock(nn.Module):
    """depthwise + BN -> Conv1x1 to k blocks -> products of all pairs -> Conv1x1 + BN (-> depthwise), residual.

    Args:
        channels: C, in and out.
        k: blocks that are multiplied with each other; 2 is the star operation.
        width: w, channels of a block; P = w k(k-1)/2 products.
        kernel_size: odd, of the depthwise convolutions.
        norm: of the products, a name in :data:`hadaptive.nn.NORMS`.
        act_layer: of the lower factor of each product; None for none.
        after: whether there is the second depthwise convolution, which StarNet has.
        drop_path: stochastic-depth rate of the residual branch.
        device, dtype: of parameters and buffers.
        reparam: whether the depthwise convolutions are trained as :class:`hadaptive.nn.RepDepthwise`.
        layer_scale_init: of a learnt scale of each channel of the residual branch; None for none.

    Shape:
        (B, C, H, W) -> (B, C, H, W).

    Raises:
        ValueError: k is less than 2, the width not positive, or the kernel even.
    """

    def __init__(
        self,
        channels: int,
        k: int,
        width: int,
        kernel_size: int = 7,
        norm: str = "identity",
        drop_path: float = 0.0,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        act_layer: type[nn.Module] | None = nn.ReLU6,
        after: bool = True,
        reparam: bool = False,
        layer_scale_init: float | None = None,
    ) -> None:
        super().__init__()
        if k < 2 or width < 1:
            raise ValueError(f"k must be at least 2 and width at least 1, got {k} and {width}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to keep the map's size, got {kernel_size}")
        dd: Any = {"device": device, "dtype": dtype}
        pairs = num_pairs(k * width, width)
        self.depthwise = depthwise(channels, kernel_size, reparam=reparam, **dd)
        self.factors = nn.Conv2d(channels, k * width, 1, **dd)
        self.products = BlockProducts(k, width, act_layer)
        self.norm = create_norm(norm, pairs, **dd)
        project = nn.Conv2d(pairs, channels, 1, bias=False, **dd)
        self.project = Layers(project, nn.BatchNorm2d(channels, **dd))
        self.after: nn.Module = nn.Identity()
        if after and reparam:
            self.after = depthwise(channels, kernel_size, reparam=True, **dd)
        elif after:
            pad = kernel_size // 2
            self.after = Layers(nn.Conv2d(channels, channels, kernel_size, 1, pad, groups=channels, **dd))
        self.scale = layer_scale(channels, layer_scale_init, **dd)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        q = self.products(self.factors(self.depthwise(x)))
        return x + self.drop_path(self.scale(self.after(self.project(self.norm(q).to(x.dtype)))))
