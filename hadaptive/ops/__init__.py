"""The only door to the operators: validation, device dispatch, and the choice of a backend.

A backend is a module with the operators as functions, under the signatures below, and with
``unsupported_reason(operator, *tensors)``, which says why it cannot take these, or None. Backends are tried in the
order of ``_PREFERENCE``; the plain PyTorch of :mod:`hadaptive.ops.reference` takes whatever is left, and is always
used inside TorchScript. In an FX graph each operator is one node.

    >>> with hadaptive.ops.backend("reference"):
    ...     y = hadaptive.ops.cross_hadamard_expand(x, index, gate, alpha, weight, bias)
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch
import torch.fx
from torch import Tensor

from hadaptive.ops import (
    convolution,
    cpu_run,  # noqa: F401  which must be there when the process forks
    library,
    norm,
    reference,
)
from hadaptive.ops.append import append as _append
from hadaptive.ops.checks import check_affine, check_beside, check_block, check_map, check_selection
from hadaptive.ops.pairs import num_pairs, pair_indices
from hadaptive.ops.reference import compute_dtype, largest_finite

__all__ = [
    "OPERATORS",
    "append",
    "available_backends",
    "backend",
    "batch_norm_act",
    "compute_dtype",
    "cross_hadamard",
    "cross_hadamard_expand",
    "depthwise",
    "dysoft",
    "expand",
    "explain",
    "has_kernel",
    "largest_finite",
    "num_pairs",
    "pair_indices",
    "select_channels",
    "selected_products",
]

_BACKENDS: dict[str, ModuleType] = {"fused": library, "reference": reference}
_PREFERENCE = ("fused",)  # best first; "reference" is the last resort
OPERATORS = (
    "cross_hadamard_expand",
    "cross_hadamard",
    "selected_products",
    "dysoft",
    "depthwise",
    "batch_norm_act",
)  # that a backend may have kernels for
_FORCED: ContextVar[str | None] = ContextVar("hadaptive_backend", default=None)


def available_backends() -> tuple[str, ...]:
    """Names that :func:`backend` and the ``backend=`` arguments accept."""
    return tuple(_BACKENDS)


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Use one backend for every operator called inside the block, in this thread or task.

    Raises:
        ValueError: `name` is not one of :func:`available_backends`.
    """
    _check_backend(name)
    token = _FORCED.set(name)
    try:
        yield
    finally:
        _FORCED.reset(token)


def _check_backend(name: str) -> None:
    if name not in _BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(_BACKENDS)}")


def _choose(operator: str, requested: str | None, *tensors: Tensor | None) -> ModuleType:
    name = requested if requested is not None else _FORCED.get()
    if name is not None:
        _check_backend(name)
        reason = _BACKENDS[name].unsupported_reason(operator, *tensors)
        if reason is not None:
            raise ValueError(f"the backend {name!r} cannot take this input: {reason}")
        return _BACKENDS[name]
    for name in _PREFERENCE:
        if _BACKENDS[name].unsupported_reason(operator, *tensors) is None:
            return _BACKENDS[name]
    return reference


def explain(operator: str, *arguments: Any) -> tuple[str, str]:
    """The backend that `operator` would use for these arguments, outside any :func:`backend` block, and why.

    Args:
        operator: one of ``OPERATORS``.
        arguments: its own; the first suffices where nothing is said about the others.

    Raises:
        ValueError: there is no such operator.
    """
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator {operator!r}; choose one of {', '.join(OPERATORS)}")
    reason = _plain_reason(operator, arguments)
    return (_PREFERENCE[0], library.describe(arguments[0])) if reason is None else ("reference", reason)


def has_kernel(operator: str, *arguments: Any) -> bool:
    """Whether `operator` would use a kernel for these arguments, as :func:`explain`; compilers follow this."""
    return _plain_reason(operator, arguments) is None


def _plain_reason(operator: str, arguments: tuple) -> str | None:
    """Why an operator is taken in plain PyTorch, or None if it is not."""
    rules = {"depthwise": convolution.pytorch_reason, "batch_norm_act": norm.pytorch_reason}
    reason = rules[operator](*arguments) if operator in rules else None
    if reason is not None:
        return reason
    tensors: list[Any] = [a for a in arguments if a is None or isinstance(a, Tensor)]
    reason = library.unsupported_reason(operator, *tensors)
    if reason is None and getattr(library, operator) is getattr(reference, operator):
        return "alone it moves the same bytes in plain PyTorch"
    return reason


@torch.fx.wrap
def select_channels(x: Tensor, index: Tensor, gate: Tensor | None = None) -> Tensor:
    """Pick k channels of each sample and scale them by their gates (plain PyTorch on every backend).

    Args:
        x: (B, C, S...), any floating dtype, any number of spatial dims.
        index: (B, k) int64, channel numbers.
        gate: (B, k) floating, or None for ones.

    Returns:
        (B, k, S...) in the compute dtype: float32, or float64 for float64 inputs.
    """
    if torch.jit.is_scripting():
        return reference.select_channels(x, index, gate)
    check_selection(x, index, gate)
    return reference.select_channels(x, index, gate)


@torch.fx.wrap
def cross_hadamard(z: Tensor, backend: str | None = None) -> Tensor:
    """Products of all channel pairs: ``out[:, p] = z[:, i] * z[:, j]`` for i < j in lexicographic order.

    Args:
        z: (B, k, S...), float16, bfloat16, float32 or float64; contiguous, channels_last or strided.
        backend: force one of :func:`available_backends`; None lets the dispatcher choose.

    Returns:
        (B, k(k-1)/2, S...), z's dtype and memory format. Computed in float32 (float64 for float64).

    Raises:
        ValueError: z has fewer than two dims, is not floating, or has fewer than two channels.

    Source: arXiv 2505.22226, section 3.
    """
    if torch.jit.is_scripting():
        return reference.cross_hadamard(z)
    check_map(z, "z", channels=2)
    return _choose("cross_hadamard", backend, z).cross_hadamard(z)


@torch.fx.wrap
def selected_products(
    x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1, backend: str | None = None
) -> Tensor:
    """Products of all pairs of the gated, selected channels, in one call: what a norm of PyTorch's then takes.

    Args:
        x: (B, C, S...), float16, bfloat16, float32 or float64; any memory format.
        index: (B, k) int64, the channels selected for each sample, 2 <= k <= C; entries in [0, C).
        gate: (B, k) floating, multiplies the selected channels; None means ones.
        block: channels that are multiplied as one, see :func:`pair_indices`; it divides k, at least twice.
        backend: force one of :func:`available_backends`; None lets the dispatcher choose.

    Returns:
        (B, P, S...) in float32 (float64 for float64), in the order of :func:`pair_indices`.

    Raises:
        ValueError: shapes, dtypes or devices do not fit.
        IndexError: an entry of `index` is no channel of x (on the CPU; a GPU is not waited for).

    Source: arXiv 2505.22226, section 3.
    """
    if torch.jit.is_scripting():
        return reference.selected_products(x, index, gate, block)
    check_selection(x, index, gate, channels=2)
    check_block(index, block)
    return _choose("selected_products", backend, x, index, gate).selected_products(x, index, gate, block)


@torch.fx.wrap
def dysoft(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor, backend: str | None = None) -> Tensor:
    """DySoft: ``weight * (alpha x) / (1 + |alpha x|) + bias``, finite for every finite input.

    Args:
        x: (B, P, S...), float16, bfloat16, float32 or float64.
        alpha: (1,), one scale for the whole module.
        weight: (P,), one per channel.
        bias: (P,), one per channel.
        backend: force one of :func:`available_backends`; None lets the dispatcher choose.

    Returns:
        (B, P, S...) in x's dtype. Computed in float32 (float64 for float64).

    Raises:
        ValueError: shapes or dtypes do not fit.

    Source: arXiv 2505.22226, section 3 (DySoft).
    """
    if torch.jit.is_scripting():
        return reference.dysoft(x, alpha, weight, bias)
    check_map(x, "x")
    check_affine(x, alpha, weight, bias, x.shape[1])
    return _choose("dysoft", backend, x, alpha, weight, bias).dysoft(x, alpha, weight, bias)


@torch.fx.wrap
def cross_hadamard_expand(
    x: Tensor,
    index: Tensor,
    gate: Tensor | None,
    alpha: Tensor,
    weight: Tensor,
    bias: Tensor,
    block: int = 1,
    backend: str | None = None,
) -> Tensor:
    """The whole expansion in one call: ``concat(x, DySoft(products of the gated, selected channels))``.

    Args:
        x: (B, C, S...), the mixed input; float16, bfloat16, float32 or float64; any memory format.
        index: (B, k) int64, the channels selected for each sample, 2 <= k <= C; entries in [0, C).
        gate: (B, k) floating, multiplies the selected channels; None means ones.
        alpha: (1,), DySoft's scale.
        weight: (P,), DySoft's weight, P = k(k-1)/2 or, of blocks, :func:`num_pairs` of k and block.
        bias: (P,), DySoft's bias.
        block: channels that are multiplied as one, see :func:`pair_indices`; it divides k, at least twice.
        backend: force one of :func:`available_backends`; None lets the dispatcher choose.

    Returns:
        (B, C + P, S...) in x's dtype and memory format; the first C channels are x.
        Products and DySoft are computed in float32 (float64 for float64).

    Raises:
        ValueError: shapes or dtypes do not fit. Entries of `index` are not checked (that would cost
            a synchronisation on a GPU); PyTorch reports one out of range on the CPU.

    Source: arXiv 2505.22226, section 3.
    """
    if torch.jit.is_scripting():
        return reference.cross_hadamard_expand(x, index, gate, alpha, weight, bias, block)
    check_selection(x, index, gate, channels=2)
    check_block(index, block)
    check_affine(x, alpha, weight, bias, num_pairs(index.shape[1], block))
    chosen = _choose("cross_hadamard_expand", backend, x, index, gate, alpha, weight, bias)
    return chosen.cross_hadamard_expand(x, index, gate, alpha, weight, bias, block)


def expand(
    x: Tensor,
    index: Tensor,
    gate: Tensor | None,
    alpha: Tensor,
    weight: Tensor,
    bias: Tensor,
    backend: str | None = None,
) -> Tensor:
    """The name of :func:`cross_hadamard_expand` up to version 0.1; it goes with the next one."""
    warnings.warn("hadaptive.ops.expand is called cross_hadamard_expand now", DeprecationWarning, stacklevel=2)
    return cross_hadamard_expand(x, index, gate, alpha, weight, bias, backend=backend)


@torch.fx.wrap
def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    backend: str | None = None,
) -> Tensor:
    """Depthwise 2-D convolution: torch.nn.functional.conv2d with a group for each channel.

    In training on a CPU, in float32, both gradients come from one kernel of ours where that is faster.

    Args:
        x: (B, C, H, W), any floating dtype, contiguous, channels_last or strided.
        weight: (C, 1, h, w), x's dtype.
        bias: (C,), x's dtype, or None.
        stride, padding, dilation: one number, or those of height and width.
        backend: force one of :func:`available_backends`; None lets the dispatcher choose.

    Returns:
        (B, C, H', W'), as of torch.nn.functional.conv2d.

    Raises:
        ValueError: shapes, sizes, dtypes or devices do not fit.
    """
    if torch.jit.is_scripting():
        return reference.depthwise(x, weight, bias, stride, padding, dilation)
    check_map(x, "x")
    if not torch.jit.is_tracing():
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None:
                check_beside(x, name, tensor)
        convolution.check(x, weight, bias, stride=stride, padding=padding, dilation=dilation)
    arguments = (x, weight, bias, stride, padding, dilation)
    forced = backend is not None or _FORCED.get() is not None
    if not forced and convolution.pytorch_reason(*arguments) is not None:
        return reference.depthwise(*arguments)
    return _choose("depthwise", backend, x, weight, bias).depthwise(*arguments)


@torch.fx.wrap
def append(x: Tensor, extra: Tensor) -> Tensor:
    """The channels of `extra` after those of x: torch.cat whose gradients are dense, each in its input's layout.

    Args:
        x: (B, C, S...), any dtype, device and memory format.
        extra: (B, E, S...).

    Returns:
        (B, C + E, S...), in the dtype that the two promote to.

    Raises:
        ValueError: shapes do not fit.
    """
    if torch.jit.is_scripting():
        return torch.cat([x, extra], dim=1)
    return _append(x, extra)


@torch.fx.wrap
def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    act: str = "none",
    backend: str | None = None,
) -> Tensor:
    """Batch normalisation and an activation in one step; the first eight arguments are F.batch_norm's.

    In training on a CPU, of a large float32 map in NCHW or channels_last, a kernel that keeps x alone for the
    backward pass; the rest is plain PyTorch.

    Args:
        x: (B, C, S...), any floating dtype.
        running_mean, running_var: (C,) or None, updated in training.
        weight, bias: (C,) or None.
        training: normalise by the batch's statistics rather than by the running ones.
        momentum: share of the batch in the running statistics.
        eps: added to the variance.
        act: "none", "relu", "relu6" or "hardswish".
        backend: force one of :func:`available_backends`; None lets the dispatcher choose.

    Returns:
        (B, C, S...) in x's dtype and memory format.

    Raises:
        ValueError: `act` is none of these, a channel has a single value in training, or the backend is unknown or
            cannot take x.
        RuntimeError: other tensors do not fit x.

    Source: arXiv 1502.03167.
    """
    if torch.jit.is_scripting():
        return reference.batch_norm_act(x, running_mean, running_var, weight, bias, training, momentum, eps, act)
    name = backend if backend is not None else _FORCED.get()
    if name is not None:
        _check_backend(name)
    tensors = (x, running_mean, running_var, weight, bias)
    return norm.chosen(name, backend is not None, *tensors, training, momentum, eps, act)
