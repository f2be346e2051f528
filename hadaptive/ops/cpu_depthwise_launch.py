"""Gradients of depthwise convolutions of CPU tensors: memory layouts, chunks, and what the kernel is given."""

from collections.abc import Sequence

from torch import Tensor

from hadaptive.ops.cpu_compile import worker
from hadaptive.ops.cpu_depthwise_kernels import Task, depthwise_bwd_kernel
from hadaptive.ops.cpu_run import run, threads_for
from hadaptive.ops.layout import channels_contiguous
from hadaptive.ops.simd import LANES

MIN_CHUNKS = 32  # the batch is cut where there are fewer blocks of channels; never by the number of threads

MAX_LINES = 2**24  # of a copied map: a gibibyte


def _dense(tensor: Tensor, nhwc: bool) -> Tensor:
    """A map (B, C, H, W) as the kernel reads it: contiguous, as (B, H, W, C) if `nhwc`."""
    tensor = tensor.detach().resolve_neg()
    return (tensor.movedim(1, -1) if nhwc else tensor).contiguous()


def _check(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> None:
    """Raise ValueError unless the sizes fit, and the kernel's blocks into memory: it reads where they say."""
    if x.dim() != 4 or weight.dim() != 4:
        raise ValueError(f"x and weight must have four dims, got {tuple(x.shape)} and {tuple(weight.shape)}")
    out, lines = [], 1
    for size, kernel, step, pad, gap in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True):
        if step < 1 or gap < 1 or pad < 0 or kernel < 1:
            raise ValueError("kernel, stride and dilation must be positive, and padding not negative")
        out.append((size + 2 * pad - gap * (kernel - 1) - 1) // step + 1)
        lines *= size + 2 * pad + gap * (kernel - 1)
    if min(out) < 1 or grad.shape != (*x.shape[:2], *out) or weight.shape[:2] != (x.shape[1], 1):
        raise ValueError(
            f"x {tuple(x.shape)}, weight {tuple(weight.shape)} and grad {tuple(grad.shape)} "
            "must be of one depthwise convolution"
        )
    if lines > MAX_LINES:
        raise ValueError(f"a padded map of {lines} positions must be left to PyTorch: it is too large to copy")


def depthwise_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool] = (True, True),
) -> tuple[Tensor, Tensor]:
    """Gradients of x (B, C, H, W), in its layout, and of weight (C, 1, h, w), contiguous; (0,) if not wanted.

    Args:
        grad: (B, C, H', W'), float32 as x and weight are.
        stride, padding, dilation: of height and width.
        wanted: whether x's gradient is, and the weight's.

    Raises:
        ValueError: a tensor is not on the CPU, in float32, or of the size that the others imply.
        MemoryError: there is no memory to work in.
    """
    _check(grad, x, weight, stride, padding, dilation)
    nhwc, (batch, channels, height, width) = channels_contiguous(x), x.shape
    blocks = -(-channels // LANES)
    parts = max(1, min(batch, -(-MIN_CHUNKS // max(1, blocks))))
    shape = [batch, height, width, channels] if nhwc else [batch, channels, height, width]
    grad_x = x.new_empty(shape if wanted[0] else 0)
    sums = weight.new_zeros((parts, *weight.shape) if wanted[1] else (1, 0))
    if grad.numel() and any(wanted):
        arrays = {
            "x": (_dense(x, nhwc), x.numel()),
            "grad": (_dense(grad, nhwc), grad.numel()),
            "weight": (weight.detach().resolve_neg().contiguous(), weight.numel()),
        }
        arrays |= {"grad_x": (grad_x, x.numel())} if wanted[0] else {}
        arrays |= {"sums": (sums, parts * weight.numel())} if wanted[1] else {}
        names = ("height", "width", "out_height", "out_width", "kernel_h", "kernel_w")
        sizes = dict(zip(names, [*x.shape[2:], *grad.shape[2:], *weight.shape[2:]], strict=True))
        for name, values in (("stride", stride), ("padding", padding), ("dilation", dilation)):
            sizes |= {f"{name}_h": values[0], f"{name}_w": values[1]}
        task = Task(chunks=parts * blocks, parts=parts, batch=batch, channels=channels, nhwc=nhwc, **sizes)
        work = sum(map(bool, wanted)) * grad.numel() * weight.shape[2] * weight.shape[3]
        run(worker(depthwise_bwd_kernel, Task), task, arrays, threads_for(work))
    return grad_x.movedim(-1, 1) if wanted[0] and nhwc else grad_x, sums.sum(0)
