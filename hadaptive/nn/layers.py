"""A convolution and what follows it, run by faster operators where nothing can tell the difference."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _every_module

from hadaptive import ops


def is_watched(module: nn.Module) -> bool:
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
    return any(hooks) or "forward" in vars(module) or module._compiled_call_impl is not None


def _convolved(conv: nn.Module, x: Tensor) -> Tensor:
    """conv(x), by :func:`hadaptive.ops.depthwise` where that has a kernel and nothing watches."""
    if (
        type(conv) is not nn.Conv2d
        or not conv.groups == conv.in_channels == conv.out_channels
        or conv.padding_mode != "zeros"
        or isinstance(conv.padding, str)
        or type(x) is not Tensor
        or is_watched(conv)
    ):
        return conv(x)
    arguments: Any = (x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation)
    return ops.depthwise(*arguments) if ops.has_kernel("depthwise", *arguments) else conv(x)


ACTIVATIONS: dict[str, type[nn.Module]] = {"hardswish": nn.Hardswish, "relu6": nn.ReLU6, "relu": nn.ReLU}
_ACTS = {layer: name for name, layer in ACTIVATIONS.items()}


def _has_batch_statistics(layer: nn.Module, x: Tensor) -> bool:
    return (
        type(layer) is nn.BatchNorm2d
        and layer.training
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and type(x) is Tensor
        and x.dim() == 4
        and not is_watched(layer)
    )


def _normalised(norm: nn.BatchNorm2d, act: str, x: Tensor) -> Tensor:
    """What the two layers do in training, as nn.BatchNorm2d does it."""
    factor, tracked = norm.momentum or 0.0, norm.track_running_stats
    if tracked and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the plain mean of the batches
            factor = 1.0 / float(norm.num_batches_tracked)
    mean, var = (norm.running_mean, norm.running_var) if tracked else (None, None)
    return ops.batch_norm_act(x, mean, var, norm.weight, norm.bias, True, factor, norm.eps, act)


def run_layers(layers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """One layer after another, as :class:`Layers` runs them."""
    n = 0
    while n < len(layers):
        layer, act = layers[n], "none"
        n += 1
        if _has_batch_statistics(layer, x):
            if n < len(layers) and not is_watched(layers[n]):
                act = _ACTS.get(type(layers[n]), "none")
                n += act != "none"
            x = _normalised(layer, act, x)  # pyright: ignore[reportArgumentType]
        else:
            x = _convolved(layer, x)
    return x


class Layers(nn.Sequential):
    """nn.Sequential whose layers may be run by operators of ours in training on a CPU.

    Those are the gradients of a depthwise nn.Conv2d, and an nn.BatchNorm2d with the activation after it. Layers
    stay PyTorch's own modules, so that whatever looks for those finds them: exporters, quantisers, hooks, and all
    that fuses them. Any other module in their place is simply called.

    Shape:
        (B, C, H, W) -> (B, C', H', W').
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            for module in self:
                input = module(input)
            return input
        if not self.training and not torch.is_grad_enabled():
            return super().forward(input)  # what is faster is so for gradients and for the statistics of a batch
        return run_layers(list(self), input)
