"""Channels appended to a map, with gradients that are maps of their own.

The gradient of torch.cat is views of one tensor. The backward pass of a normalisation on a CPU takes a slow path
for those: in channels_last, forty times as long as for a dense gradient.
"""

from typing import Any

import torch
from torch import Tensor

from hadaptive.ops.batching import transformed
from hadaptive.ops.layout import arranged, channels_contiguous


class _Append(torch.autograd.Function):
    """Concatenation on axis 1; made of PyTorch's operators, so that it can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, extra: Tensor) -> Tensor:
        ctx.parts = [(part.shape[1], channels_contiguous(part), part.dtype) for part in (x, extra)]
        return torch.cat([x, extra], dim=1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        found, start = [], 0
        for (channels, cols, dtype), needed in zip(ctx.parts, ctx.needs_input_grad, strict=True):
            part = grad.narrow(1, start, channels)
            found.append(arranged(part, cols).to(dtype) if needed else None)
            start += channels
        return tuple(found)


def append(x: Tensor, extra: Tensor) -> Tensor:
    """Path of :func:`hadaptive.ops.append`: plain PyTorch wherever something else than autograd looks at it.

    Raises:
        ValueError: shapes do not fit.
    """
    if not torch.jit.is_tracing() and (
        x.dim() < 2 or x.dim() != extra.dim() or x.shape[0] != extra.shape[0] or x.shape[2:] != extra.shape[2:]
    ):
        raise ValueError(
            "x and extra must have shapes (B, C, S...) and (B, E, S...), "
            f"got {tuple(x.shape)} and {tuple(extra.shape)}"
        )
    if (
        torch.jit.is_tracing()
        or torch.compiler.is_compiling()
        or torch.compiler.is_exporting()
        or x.device.type != "cpu"
        or not torch.is_grad_enabled()
        or not (x.requires_grad or extra.requires_grad)
        or any(type(part) not in (Tensor, torch.nn.Parameter) for part in (x, extra))
        or transformed()
        or any(torch.autograd.forward_ad.unpack_dual(part).tangent is not None for part in (x, extra))
    ):
        return torch.cat([x, extra], dim=1)
    return _Append.apply(x, extra)
