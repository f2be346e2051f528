"""The expansion on CPU tensors: memory layouts, chunks, and what each kernel is given."""

import math

import torch
from torch import Tensor

from hadaptive.ops import cpu_kernels as kernels
from hadaptive.ops.cpu_compile import worker
from hadaptive.ops.cpu_run import run, threads_for
from hadaptive.ops.layout import channels_contiguous
from hadaptive.ops.library import DTYPES

MAX_CHUNKS = 32  # of the batch in a backward pass; fixed, so that sums are the same for any number of threads


def _dense(name: str, tensor: Tensor, nhwc: bool = False) -> Tensor:
    """In float32, as a kernel reads it: contiguous, a map (B, C, S...) as (B, S..., C) if `nhwc`."""
    if tensor.dtype is torch.float32 and not nhwc and tensor.is_contiguous() and not tensor.is_neg():
        return tensor  # and for the rest, which takes four times as long, see address()
    if tensor.is_complex() or tensor.layout is not torch.strided:
        raise ValueError(f"{name} must be a dense tensor of real numbers, got {tensor.dtype}, {tensor.layout}")
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        raise ValueError(f"{name} has no memory: its storage was resized to nothing")  # a copy would die of it
    tensor = tensor.float().resolve_neg()
    return (tensor.movedim(1, -1) if nhwc else tensor).contiguous()


def _new_map(x: Tensor, channels: int, nhwc: bool) -> Tensor:
    """The same for a result, uninitialised. float32 beside x, whatever PyTorch's default dtype and device are."""
    batch, spatial = x.shape[0], x.shape[2:]
    shape = [batch, *spatial, channels] if nhwc else [batch, channels, *spatial]
    return x.new_empty(shape, dtype=torch.float32)


def _as_map(y: Tensor, dtype: torch.dtype, nhwc: bool) -> Tensor:
    return (y.movedim(-1, 1) if nhwc else y).to(dtype)


def _filled(x: Tensor, value: float, *shape: int) -> Tensor:
    return x.new_full(shape, value, dtype=torch.float32)


def _sizes(x: Tensor, index: Tensor) -> dict[str, int]:
    if x.dim() < 2 or not x.shape[1] or index.dim() != 2 or x.dtype not in DTYPES:
        raise ValueError(
            f"x (B, C, S...) must be float32, bfloat16 or float16, with channels that index (B, k) selects; "
            f"got {tuple(x.shape)}, {x.dtype} and {tuple(index.shape)}"
        )
    batch, channels = x.shape[:2]
    return {
        "batch": batch,
        "channels": channels,
        "positions": math.prod(x.shape[2:]),
        "k": index.shape[1],
    }


def _operands(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor, nhwc: bool
) -> dict[str, tuple]:
    """What all kernels read."""
    entries, pairs = x.shape[0] * index.shape[1], index.shape[1] * (index.shape[1] - 1) // 2
    return {
        "x": (_dense("x", x, nhwc), x.numel()),
        "index": (index.resolve_neg().contiguous(), entries, torch.int64),
        "gate": (_filled(x, 1, *index.shape) if gate is None else _dense("gate", gate), entries),
        "alpha": (_dense("alpha", alpha), 1),
        "weight": (_dense("weight", weight), pairs),
        "bias": (_dense("bias", bias), pairs),
    }


def expand_forward(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """Forward of :func:`hadaptive.ops.cross_hadamard_expand` for CPU tensors in float32, bfloat16 or float16.

    Raises:
        ValueError: a tensor is not on the CPU, or not of the size that x and index imply.
        IndexError: an entry of `index` is no channel of x.
        MemoryError: there is no memory to work in.
    """
    sizes, nhwc, pairs = _sizes(x, index), channels_contiguous(x), len(weight)
    y = _new_map(x, x.shape[1] + pairs, nhwc)
    if y.numel():
        work = sizes["batch"] * pairs * sizes["positions"]
        threads = threads_for(work)
        arrays = _operands(x, index, gate, alpha, weight, bias, nhwc)
        arrays["y"] = (y, sizes["batch"] * sizes["positions"] * (x.shape[1] + pairs))
        if nhwc:
            kernel, chunks = kernels.expand_nhwc_fwd_kernel, 1 if threads == 1 else 4 * threads
        else:  # whole samples, and parts of them where there are too few
            kernel = kernels.expand_nchw_fwd_kernel
            chunks = sizes["batch"] * (1 if threads == 1 else max(1, 2 * threads // sizes["batch"]))
        task = kernels.Task(chunks=chunks, **sizes)
        _run(kernel, task, arrays, threads)
    return _as_map(y, x.dtype, nhwc)


def expand_backward(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, S...), gate (B, k), alpha (1,), weight (P,) and bias (P,), each in its tensor's dtype.

    The gate's gradient is float32 where gate is None.

    Raises: as :func:`expand_forward`.
    """
    sizes, nhwc, batch, pairs = _sizes(x, index), channels_contiguous(x), x.shape[0], len(weight)
    chunks = max(1, min(batch, MAX_CHUNKS))
    grad_x, grad_gate = _new_map(x, x.shape[1], nhwc), _filled(x, 0, *index.shape)
    sums = [_filled(x, 0, chunks, size) for size in (1, pairs, pairs)]
    if x.numel():
        arrays = _operands(x, index, gate, alpha, weight, weight, nhwc)
        arrays |= {
            "grad": (_dense("grad", grad, nhwc), x.numel() + sizes["batch"] * sizes["positions"] * pairs),
            "grad_x": (grad_x, x.numel()),
            "grad_gate": (grad_gate, index.numel()),
        }
        names = ("sums_alpha", "sums_weight", "sums_bias")
        arrays |= {name: (total, total.numel()) for name, total in zip(names, sums, strict=True)}
        kernel = kernels.expand_nhwc_bwd_kernel if nhwc else kernels.expand_nchw_bwd_kernel
        work = batch * pairs * sizes["positions"]
        _run(kernel, kernels.Task(chunks=chunks, **sizes), arrays, threads_for(work))
    of_alpha, of_weight, of_bias = (total.sum(0) for total in sums)
    return (
        _as_map(grad_x, x.dtype, nhwc),
        grad_gate if gate is None else grad_gate.to(gate.dtype),
        of_alpha.to(alpha.dtype).view(alpha.shape),
        of_weight.to(weight.dtype),
        of_bias.to(weight.dtype),
    )


def _run(kernel, task: kernels.Task, arrays: dict[str, tuple], threads: int) -> None:
    try:
        run(worker(kernel, kernels.Task), task, arrays, threads)
    except IndexError:
        raise IndexError(f"index holds channels outside 0 to {task.channels - 1}") from None
