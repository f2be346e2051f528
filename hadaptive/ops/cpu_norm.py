"""Batch normalisation with an activation on CPU tensors: what its kernels are given."""

from typing import Any

import torch
from torch import Tensor

from hadaptive.ops import cpu_norm_kernels as kernels
from hadaptive.ops import cpu_norm_nhwc as nhwc_kernels
from hadaptive.ops import reference
from hadaptive.ops.cpu_compile import worker
from hadaptive.ops.cpu_run import run, threads_for
from hadaptive.ops.norm import as_map, new_like, nhwc_of

ROWS = 128  # of a map in nhwc that are worth a part of the sums of their own
PARTS = 32  # that suffice for any number of threads that a map of this size is worth
LONGEST = 1024  # rows of a part: distances from the first row of more lose digits
NUMBERS = 4096  # of a map in nchw that are worth a chunk

Steps = tuple[tuple[Any, int], ...]  # kernels and their chunks; 0: the parts of the sums
FORWARD: Steps = (
    (nhwc_kernels.norm_nhwc_sums_kernel, 0),
    (nhwc_kernels.norm_nhwc_statistics_kernel, 1),
    (nhwc_kernels.norm_nhwc_map_kernel, 0),
)
BACKWARD: Steps = (
    (nhwc_kernels.norm_nhwc_table_kernel, 1),
    (nhwc_kernels.norm_nhwc_bwd_sums_kernel, 0),
    (nhwc_kernels.norm_nhwc_bwd_statistics_kernel, 1),
    (nhwc_kernels.norm_nhwc_bwd_map_kernel, 0),
)


def _vector(x: Tensor, given: Tensor | None, value: float) -> tuple[Tensor, int]:
    channels = x.shape[1]
    if given is None:
        return x.new_full((channels,), value), channels
    return given.detach().resolve_neg().contiguous(), channels


def _arrays(x: Tensor, weight: Tensor | None, bias: Tensor | None, nhwc: bool) -> dict[str, tuple]:
    return {
        "x": (x.detach().movedim(1, -1) if nhwc else x.detach(), x.numel()),
        "weight": _vector(x, weight, 1),
        "bias": _vector(x, bias, 0),
    }


def _run(x: Tensor, eps: float, act: str, arrays: dict[str, tuple], kernel: Any, steps: Steps) -> None:
    """The kernel, or the steps that it is made of where several threads share a map in nhwc."""
    batch, channels = x.shape[:2]
    positions = x.numel() // (batch * channels)
    rows, threads = batch * positions, threads_for(4 * x.numel())
    parts = max(1, min(PARTS, rows // ROWS), -(-rows // LONGEST)) if steps else 0
    if parts:
        arrays["sums"] = (
            x.new_empty(parts * 2 * channels, dtype=torch.float64),
            parts * 2 * channels,
            torch.float64,
        )
        arrays["table"] = (x.new_empty(6 * channels), 6 * channels)
    task = kernels.NormTask(
        batch=batch, channels=channels, positions=positions, act=reference.ACTS.index(act), parts=parts, eps=eps
    )
    task.arrays = arrays  # whoever works on the task holds its memory
    if not parts:
        steps = ((kernel, max(1, min(channels, x.numel() // NUMBERS))),)
    elif threads == 1:
        steps = ((kernel, 1),)
    for step, chunks in steps:
        task.next, task.done, task.chunks = 0, 0, chunks or parts
        run(worker(step, kernels.NormTask), task, arrays, threads)
        arrays = {}  # the task has their addresses


def norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: str
) -> tuple[Tensor, Tensor, Tensor]:
    """The activated map in x's layout, and the mean and variance of each channel, (C,) float64.

    Args:
        x: (B, C, S...) float32, of a layout that :func:`hadaptive.ops.norm.nhwc_of` knows.
        weight, bias: (C,) float32, or None.
        eps: added to the variance.
        act: one of ``hadaptive.ops.reference.ACTS``.

    Raises:
        ValueError: a tensor is no such one.
    """
    nhwc, y = nhwc_of(x) is True, new_like(x)
    mean, var = (x.new_empty(x.shape[1], dtype=torch.float64) for _ in range(2))
    arrays = _arrays(x, weight, bias, nhwc)
    arrays |= {
        "y": (y, x.numel()),
        "mean": (mean, x.shape[1], torch.float64),
        "var": (var, x.shape[1], torch.float64),
    }
    kernel = nhwc_kernels.norm_nhwc_fwd_kernel if nhwc else kernels.norm_nchw_fwd_kernel
    _run(x, eps, act, arrays, kernel, FORWARD if nhwc else ())
    return as_map(y, x), mean, var


def norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    act: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, weight (C,) and bias (C,), from what :func:`norm_forward` was given and made.

    Raises:
        ValueError: a tensor is not such a one.
    """
    channels, nhwc, grad_x = x.shape[1], nhwc_of(x) is True, new_like(x)
    grad_weight, grad_bias = x.new_empty(channels), x.new_empty(channels)
    grad = grad.detach().resolve_neg()
    arrays = _arrays(x, weight, bias, nhwc)
    arrays |= {
        "grad": ((grad.movedim(1, -1) if nhwc else grad).contiguous(), x.numel()),
        "grad_x": (grad_x, x.numel()),
        "grad_weight": (grad_weight, channels),
        "grad_bias": (grad_bias, channels),
        "mean": (mean, channels, torch.float64),
        "var": (var, channels, torch.float64),
    }
    kernel = nhwc_kernels.norm_nhwc_bwd_kernel if nhwc else kernels.norm_nchw_bwd_kernel
    _run(x, eps, act, arrays, kernel, BACKWARD if nhwc else ())
    return as_map(grad_x, x), grad_weight, grad_bias
