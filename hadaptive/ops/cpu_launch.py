"""The expansion on CPU tensors: memory layouts, chunks, and what each kernel is given."""

import math
from typing import Any

import torch
from torch import Tensor

from hadaptive.ops import cpu_kernels as kernels
from hadaptive.ops.cpu_compile import worker
from hadaptive.ops.cpu_run import run, threads_for
from hadaptive.ops.layout import channels_contiguous
from hadaptive.ops.library import DTYPES
from hadaptive.ops.pairs import num_pairs

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


def _sizes(x: Tensor, index: Tensor, block: int, appended: bool) -> dict[str, int]:
    if index.dim() == 2 and (block < 1 or index.shape[1] % block):
        raise ValueError(f"k = {index.shape[1]} selected channels are not whole blocks of {block}")
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
        "block": block,
        "kept": channels if appended else 0,
    }


def _selection(x: Tensor, index: Tensor, gate: Tensor | None, nhwc: bool) -> dict[str, tuple]:
    """What all kernels read."""
    entries = x.shape[0] * index.shape[1]
    return {
        "x": (_dense("x", x, nhwc), x.numel()),
        "index": (index.resolve_neg().contiguous(), entries, torch.int64),
        "gate": (_filled(x, 1, *index.shape) if gate is None else _dense("gate", gate), entries),
    }


def _affine(pairs: int, alpha: Tensor, weight: Tensor, bias: Tensor) -> dict[str, tuple]:
    return {
        "alpha": (_dense("alpha", alpha), 1),
        "weight": (_dense("weight", weight), pairs),
        "bias": (_dense("bias", bias), pairs),
    }


def _run(kernel: Any, sizes: dict[str, int], chunks: int, arrays: dict[str, tuple], threads: int) -> None:
    made = worker(kernel, kernels.Task)
    try:
        run(made, kernels.Task(chunks=chunks, **sizes), arrays, threads)
    except IndexError:
        raise IndexError(f"index holds channels outside 0 to {sizes['channels'] - 1}") from None


def _forward(sizes: dict[str, int], arrays: dict[str, tuple], y: Tensor, nhwc: bool) -> None:
    """Fill y, as it lies in memory."""
    batch, pairs = sizes["batch"], num_pairs(sizes["k"], sizes["block"])
    if not y.numel():
        return
    arrays["y"] = (y, batch * sizes["positions"] * (sizes["kept"] + pairs))
    threads = threads_for(batch * pairs * sizes["positions"])
    if nhwc:
        kernel, chunks = kernels.expand_nhwc_fwd_kernel, 1 if threads == 1 else 4 * threads
    else:  # whole samples, and parts of them where there are too few
        kernel = kernels.expand_nchw_fwd_kernel
        chunks = batch * (1 if threads == 1 else max(1, 2 * threads // batch))
    _run(kernel, sizes, chunks, arrays, threads)


def _backward(
    sizes: dict[str, int], arrays: dict[str, tuple], grad: Tensor, x: Tensor, index: Tensor, nhwc: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of x, as it lies in memory, and gate, in float32; and what `arrays` has for sums is filled."""
    grad_x, grad_gate = _new_map(x, x.shape[1], nhwc), _filled(x, 0, *index.shape)
    if x.numel():
        pairs, pixels = num_pairs(sizes["k"], sizes["block"]), sizes["batch"] * sizes["positions"]
        arrays["grad"] = (_dense("grad", grad, nhwc), pixels * (sizes["kept"] + pairs))
        arrays |= {"grad_x": (grad_x, x.numel()), "grad_gate": (grad_gate, index.numel())}
        kernel = kernels.expand_nhwc_bwd_kernel if nhwc else kernels.expand_nchw_bwd_kernel
        _run(kernel, sizes, _chunks(x), arrays, threads_for(pixels * pairs))
    return grad_x, grad_gate


def _chunks(x: Tensor) -> int:
    return max(1, min(x.shape[0], MAX_CHUNKS))


def expand_forward(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor, block: int = 1
) -> Tensor:
    """Forward of :func:`hadaptive.ops.cross_hadamard_expand` for CPU tensors in float32, bfloat16 or float16.

    Raises:
        ValueError: a tensor is not on the CPU, or not of the size that x and index imply.
        IndexError: an entry of `index` is no channel of x.
        MemoryError: there is no memory to work in.
    """
    sizes, nhwc = _sizes(x, index, block, True), channels_contiguous(x)
    pairs = num_pairs(sizes["k"], sizes["block"])
    y = _new_map(x, x.shape[1] + pairs, nhwc)
    arrays = _selection(x, index, gate, nhwc) | _affine(pairs, alpha, weight, bias)
    _forward(sizes, arrays, y, nhwc)
    return _as_map(y, x.dtype, nhwc)


def expand_backward(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, block: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, S...), gate (B, k), alpha (1,), weight (P,) and bias (P,), each in its tensor's dtype.

    The gate's gradient is float32 where gate is None.

    Raises: as :func:`expand_forward`.
    """
    sizes, nhwc = _sizes(x, index, block, True), channels_contiguous(x)
    pairs = num_pairs(sizes["k"], sizes["block"])
    arrays = _selection(x, index, gate, nhwc) | _affine(pairs, alpha, weight, weight)
    widths = {"sums_alpha": 1, "sums_weight": pairs, "sums_bias": pairs}
    sums = {name: _filled(x, 0, _chunks(x), width) for name, width in widths.items()}
    arrays |= {name: (total, total.numel()) for name, total in sums.items()}
    grad_x, grad_gate = _backward(sizes, arrays, grad, x, index, nhwc)
    of_alpha, of_weight, of_bias = (total.sum(0) for total in sums.values())
    return (
        _as_map(grad_x, x.dtype, nhwc),
        grad_gate if gate is None else grad_gate.to(gate.dtype),
        of_alpha.to(alpha.dtype).view(alpha.shape),
        of_weight.to(weight.dtype),
        of_bias.to(weight.dtype),
    )


def products_forward(x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1) -> Tensor:
    """Forward of :func:`hadaptive.ops.selected_products`, float32 (B, P, S...).

    Raises: as :func:`expand_forward`.
    """
    sizes, nhwc = _sizes(x, index, block, False), channels_contiguous(x)
    y = _new_map(x, num_pairs(sizes["k"], sizes["block"]), nhwc)
    _forward(sizes, _selection(x, index, gate, nhwc), y, nhwc)
    return _as_map(y, torch.float32, nhwc)


def products_backward(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1
) -> tuple[Tensor, Tensor]:
    """Gradients of x (B, C, S...) and gate (B, k), each in its tensor's dtype (float32 where gate is None)."""
    sizes, nhwc = _sizes(x, index, block, False), channels_contiguous(x)
    grad_x, grad_gate = _backward(sizes, _selection(x, index, gate, nhwc), grad, x, index, nhwc)
    return _as_map(grad_x, x.dtype, nhwc), grad_gate if gate is None else grad_gate.to(gate.dtype)
