"""A convolution and what follows it, run by faster operators where nothing can tell the difference."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _every_module

from hadaptive import ops


def _is_watched(module: nn.Module) -> bool:
    """Whether something has to see this module called: a hook on it or on all modules, or a forward of its own."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        _every_module._global_forward_hooks,
        _every_module._global_forward_pre_hooks,
        _every_module._global_backward_hooks,
        _every_module._global_backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def _convolved(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x), by :func:`hadaptive.ops.depthwise` where that has a kernel and nothing watches."""
    if (
        type(conv) is not nn.Conv2d
        or not conv.groups == conv.in_channels == conv.out_channels
        or conv.padding_mode != "zeros"
        or isinstance(conv.padding, str)
        or type(x) is not Tensor
        or _is_watched(conv)
    ):
        return conv(x)
    arguments: Any = (x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
    return ops.depthwise(*arguments) if ops.has_kernel("depthwise", *arguments) else conv(x)


class DepthwiseLayers(nn.Sequential):
    """nn.Sequential that begins with a depthwise nn.Conv2d, whose gradients may be taken by kernels of ours.

    The convolution stays PyTorch's own module, so that whatever looks for those finds it: exporters, quantisers,
    hooks, and all that fuses it with the norm that follows. Any other module in its place is simply called.

    Shape:
        (B, C, H, W) -> (B, C, H', W').
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            for module in self:
                input = module(input)
            return input
        for number, module in enumerate(self):
            input = module(input) if number else _convolved(module, input)
        return input
