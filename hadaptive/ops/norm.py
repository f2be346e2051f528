"""Batch normalisation and the activation after it: PyTorch's own, or one kernel of ours in training on a CPU.

PyTorch reads and writes a map four times in a forward pass, and keeps the normalised map for the gradient of the
activation beside the input. The kernel writes it once and keeps the input alone.
"""

from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from hadaptive import packages
from hadaptive.ops import reference
from hadaptive.ops.batching import transformed

LANES = 16  # numbers side by side that a kernel needs
# Of a map, by layout, from which on a step is shorter with the kernel; ``python -m benchmarks norms`` measures it.
FROM_NCHW, FROM_NHWC = 2**18, 2**19


def nhwc_of(x: Tensor) -> bool | None:
    """Whether the kernel reads x (B, C, S...) with its channels side by side; None where it does not at all."""
    if x.shape[1] >= LANES and (
        x.is_contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.movedim(1, -1).is_contiguous()
    ):
        return True
    if x.numel() >= LANES * x.shape[0] * x.shape[1] and x.is_contiguous():
        return False
    return None


def new_like(x: Tensor) -> Tensor:
    """An uninitialised map as the kernel writes it: (B, S..., C) if nhwc, else (B, C, S...)."""
    return x.new_empty([x.shape[0], *x.shape[2:], x.shape[1]] if nhwc_of(x) else x.shape)


def as_map(y: Tensor, x: Tensor) -> Tensor:
    """What :func:`new_like` made of x, as (B, C, S...)."""
    return y.movedim(-1, 1) if nhwc_of(x) else y


@cache
def _unusable() -> str | None:
    """Why there are no kernels, or None if there are; to ask costs as much as a small map."""
    why = packages.obstacle("hadaptive.ops.cpu_norm", "numba")
    return None if why is None else f"Numba {why}"


def unsupported_reason(x: Tensor, *others: Tensor | None) -> str | None:
    """Why the kernel cannot take x (B, C, S...) with these (C,), or None if it can."""
    if x.device.type != "cpu":
        return f"there is no kernel of batch normalisation for {x.device.type}"
    if torch.jit.is_tracing() or torch.compiler.is_exporting() or torch.compiler.is_compiling():
        return "compilers, exports and traces take plain PyTorch operators"
    unusable = _unusable()
    if unusable is not None:
        return unusable
    tensors = [x, *(t for t in others if t is not None)]
    for tensor in tensors:
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
            return f"{type(tensor).__name__} is not a plain tensor"
        if tensor.dtype is not torch.float32 or tensor.device != x.device:
            return f"{tensor.dtype} on {tensor.device} is left to plain PyTorch"
        if tensor.is_neg() or (tensor is not x and tensor.shape != x.shape[1:2]):
            return "other shapes and views are left to plain PyTorch"
    if x.numel() <= x.shape[1] or nhwc_of(x) is None:
        return f"the kernel takes maps of which {LANES} numbers lie side by side, in NCHW or channels_last"
    if transformed():
        return "transforms of torch.func run through plain PyTorch"
    if any(torch.autograd.forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        return "forward-mode derivatives are taken in plain PyTorch"
    return None


def kernel_is_faster(nhwc: bool, numbers: int, act: str) -> bool:
    """Whether our kernel takes a step sooner than PyTorch.

    Args:
        nhwc: whether the channels of x are side by side in memory.
        numbers: of x.
        act: the activation; without one PyTorch is as fast in nhwc.
    """
    return act != "none" and numbers >= FROM_NHWC if nhwc else numbers >= FROM_NCHW


def pytorch_reason(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "hardswish",
    *_: object,
) -> str | None:
    """Why :func:`hadaptive.ops.batch_norm_act` is left to PyTorch, or None if it is not."""
    if not training or eps <= 0:
        return "with running statistics there is no kernel"
    reason = unsupported_reason(x, running_mean, running_var, weight, bias)
    if reason is None and not kernel_is_faster(bool(nhwc_of(x)), x.numel(), act):
        return "PyTorch is as fast for a map of this size and layout"
    return reason


_LIBRARY = torch.library.Library("hadaptive", "FRAGMENT")  # what it holds lives as long as it does
_TAGS = torch.Tag.pt2_compliant_tag
_AFFINE = "Tensor x, Tensor? weight, Tensor? bias"
_LIBRARY.define(f"batch_norm_act({_AFFINE}, float eps, str act) -> (Tensor, Tensor, Tensor)", tags=_TAGS)
_LIBRARY.define(
    f"batch_norm_act_backward(Tensor grad, {_AFFINE}, Tensor mean, Tensor var, float eps, str act)"
    " -> (Tensor, Tensor, Tensor)",
    tags=_TAGS,
)
_forward = torch.ops.hadaptive.batch_norm_act.default
_backward = torch.ops.hadaptive.batch_norm_act_backward.default


def _check(x: Tensor) -> None:
    if x.dtype is not torch.float32 or nhwc_of(x) is None or x.numel() <= x.shape[1]:
        raise ValueError("the kernel cannot take this map: call hadaptive.ops.batch_norm_act, which can")


@torch.library.impl(_LIBRARY, "batch_norm_act", "CPU")
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: str) -> tuple[Tensor, ...]:
    from hadaptive.ops import cpu_norm  # Numba takes half a second to import

    _check(x)
    return cpu_norm.norm_forward(x, weight, bias, eps, act)


@torch.library.register_fake("hadaptive::batch_norm_act", lib=_LIBRARY)
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: str) -> tuple[Tensor, ...]:
    mean, var = (x.new_empty(x.shape[1], dtype=torch.float64) for _ in range(2))
    return as_map(new_like(x), x), mean, var


@torch.library.impl(_LIBRARY, "batch_norm_act_backward", "CPU")
def _(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    from hadaptive.ops import cpu_norm

    _check(x)
    return cpu_norm.norm_backward(grad, x, *rest)


@torch.library.register_fake("hadaptive::batch_norm_act_backward", lib=_LIBRARY)
def _(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    return as_map(new_like(x), x), x.new_empty(x.shape[1]), x.new_empty(x.shape[1])


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    x, weight, bias, *ctx.rest = inputs
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(x, weight, bias, mean, var)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, mean, var = ctx.saved_tensors
    # With grad mode on (create_graph), these gradients may be differentiated themselves.
    if torch.is_grad_enabled():
        found = reference.batch_norm_act_backward(grad, x, weight, bias, *ctx.rest)
    else:
        found = _backward(grad, x, weight, bias, mean, var, *ctx.rest)
    gradients = (g if wanted else None for g, wanted in zip(found, ctx.needs_input_grad, strict=False))
    return (*gradients, None, None)


torch.library.register_autograd("hadaptive::batch_norm_act", _differentiate, setup_context=_save, lib=_LIBRARY)


def _save_all(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.rest = inputs[6:]


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    places = [n for n, t in enumerate(ctx.saved_tensors) if t is not None]
    plain = partial(_plain_backward, list(ctx.saved_tensors), places, ctx.rest)
    found = torch.func.vjp(plain, *(ctx.saved_tensors[n] for n in places))[1](grads)
    gradients: list[Tensor | None] = [None] * 8
    for n, gradient in zip(places, found, strict=True):
        gradients[n] = gradient
    return tuple(gradients)


def _plain_backward(saved: list, places: list[int], rest: tuple, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Of the tensors at these places, the mean and the variance being x's own."""
    for n, tensor in zip(places, tensors, strict=True):
        saved[n] = tensor
    return reference.batch_norm_act_backward(*saved, *rest)


torch.library.register_autograd(
    "hadaptive::batch_norm_act_backward", _differentiate_backward, setup_context=_save_all, lib=_LIBRARY
)


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
    act: str,
) -> Tensor:
    """Fused path of :func:`hadaptive.ops.batch_norm_act` in training."""
    y, mean, var = _forward(x, weight, bias, eps, act)
    count = x.numel() // x.shape[1]
    with torch.no_grad():  # .data: PyTorch does not count this as a change, and holds these for its own gradients
        if running_mean is not None:
            running_mean.data.mul_(1 - momentum).add_(mean, alpha=momentum)
        if running_var is not None:  # of the population
            running_var.data.mul_(1 - momentum).add_(var, alpha=momentum * count / (count - 1))
    return y


def chosen(backend: str | None, asked: bool, *arguments: Any) -> Tensor:
    """The path of :func:`hadaptive.ops.batch_norm_act` that a backend's name leaves open.

    Args:
        backend: "fused", "reference", or None for whichever is faster.
        asked: whether it was asked for in this call; a network under a backend has other maps, too.
        arguments: x, running_mean, running_var, weight, bias, training, momentum, eps, act.

    Raises: as that does.
    """
    x, *vectors, training, momentum, eps, act = arguments
    if act not in reference.ACTS:
        raise ValueError(f"act must be one of {', '.join(reference.ACTS)}; got {act!r}")
    if backend != "reference":
        if backend is None:
            reason = pytorch_reason(*arguments)
        elif training and eps > 0:
            reason = unsupported_reason(x, *vectors)
        else:
            reason = "with running statistics there is no kernel"
        if reason is None:
            mean, var, weight, bias = vectors
            return batch_norm_act(x, mean, var, weight, bias, momentum, eps, act)
        if asked:
            raise ValueError(f"the backend {backend!r} cannot take this input: {reason}")
    return reference.batch_norm_act(*arguments)
