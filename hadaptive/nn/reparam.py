"""Layers that train with more than they are deployed with: branches and scales that one convolution takes in.

Source: arXiv 2101.03697 (RepVGG) for the branches; arXiv 2103.17239 (CaiT) for the scale of a residual branch.
"""

import copy
from typing import Any, TypeVar

import torch
from timm.layers import LayerScale2d
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.types import Device

from hadaptive.nn.layers import Layers

Network = TypeVar("Network", bound=nn.Module)


class RepDepthwise(nn.Module):
    """The sum of a depthwise k x k convolution, a 3x3 one and the identity, each with a BatchNorm.

    The 3x3 one is there where the kernel is odd and larger, the identity where the map keeps its size.
    ``timm.utils.reparameterize_model`` puts :meth:`fuse`'s convolution in its place.

    Args:
        channels: C, in and out.
        kernel_size: k; padding is (k - 1) // 2.
        stride: of all branches.
        device, dtype: of parameters and buffers.

    Shape:
        (B, C, H, W) -> (B, C, H', W').
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int = 1,
        device: Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: Any = {"device": device, "dtype": dtype}
        self.kernel_size = (kernel_size, kernel_size)
        odd = kernel_size % 2 == 1
        self.main = depthwise(channels, kernel_size, stride, **dd)
        self.beside = nn.ModuleDict()
        if odd and kernel_size > 3:
            self.beside["small"] = depthwise(channels, 3, stride, **dd)
        if odd and stride == 1:
            self.beside["identity"] = Layers(nn.BatchNorm2d(channels, **dd))

    def forward(self, x: Tensor) -> Tensor:
        y = self.main(x)
        for branch in self.beside.values():
            y = y + branch(x)
        return y

    @torch.no_grad()
    def fuse(self) -> nn.Conv2d:
        """The one convolution, with a bias, that does in eval mode what the branches do."""
        size = self.kernel_size[0]
        convs = []
        for branch in (self.main, *self.beside.values()):
            layers: list[Any] = list(copy.deepcopy(branch).eval())  # pyright: ignore[reportArgumentType]
            *convolution, norm = layers
            conv = convolution[0] if convolution else _identity_like(norm).eval()
            convs.append(fuse_conv_bn_eval(conv, norm))
        whole: Any = convs[0]
        for conv in convs[1:]:
            edge = (size - conv.kernel_size[0]) // 2
            inner = whole.weight[..., edge : size - edge, edge : size - edge]
            inner += conv.weight
            whole.bias += conv.bias
        return whole


def _identity_like(norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A depthwise 1x1 convolution that changes nothing, where this norm is."""
    channels, like = norm.num_features, norm.weight
    conv = nn.Conv2d(channels, channels, 1, groups=channels, bias=False, device=like.device, dtype=like.dtype)
    nn.init.ones_(conv.weight)
    return conv


def reparameterized(network: Network) -> Network:
    """A network as it is deployed: a copy in eval mode with one convolution for the branches of each layer.

    timm's networks, too, where their layers have a method for it; any other is handed back as it is.
    """
    methods = ("fuse", "reparameterize", "switch_to_deploy")
    known = [m for m in network.modules() if type(m).__module__.split(".")[0] in ("timm", "hadaptive")]
    if not any(hasattr(module, method) for module in known for method in methods):
        return network
    return reparameterize_model(copy.deepcopy(network).eval(), inplace=True)  # pyright: ignore[reportReturnType]


def depthwise(
    channels: int, kernel_size: int, stride: int = 1, *after: nn.Module, reparam: bool = False, **dd: Any
) -> Layers:
    """Depthwise convolution + BatchNorm, or, with `reparam`, :class:`RepDepthwise` of an odd kernel."""
    if reparam and kernel_size % 2:
        return Layers(RepDepthwise(channels, kernel_size, stride, **dd), *after)
    pad = (kernel_size - 1) // 2
    conv = nn.Conv2d(channels, channels, kernel_size, stride, pad, groups=channels, bias=False, **dd)
    return Layers(conv, nn.BatchNorm2d(channels, **dd), *after)


def layer_scale(channels: int, init: float | None, **dd: Any) -> nn.Module:
    """A learnt factor of each channel of a residual branch; an identity for None."""
    return nn.Identity() if init is None else LayerScale2d(channels, init, **dd)
