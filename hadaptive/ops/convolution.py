"""Depthwise 2-D convolutions: what one is, and when its gradients are better taken by our kernel than by PyTorch.

PyTorch's gradient of the weights is fast in channels_last for kernels of up to three taps a row that are padded by
no more than half of themselves; otherwise it takes up to twenty times as long as the rest of the step.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hadaptive.ops.batching import transformed
from hadaptive.ops.layout import channels_contiguous

# Positions of a map beyond which sixteen channels of it, three times over, no longer stay in a processor's cache.
MAX_POSITIONS = 2**16
# Below, a call of a registered operator costs more than its gradients save: products where PyTorch is slow,
# numbers of x where it only rearranges them.
MIN_PRODUCTS = MIN_NUMBERS = 2**20
Size = int | tuple[int, int]


def kernel_is_faster(
    nhwc: bool,
    shape: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> bool:
    """Whether our kernel takes both gradients sooner than PyTorch; measured by ``python -m benchmarks depthwise``.

    Args:
        nhwc: whether the channels of x are side by side in memory.
        shape: of x, (B, C, H, W).
        kernel, stride, padding, dilation: of height and width.
    """
    h, w = kernel
    padded = any(p > k // 2 for p, k in zip(padding, kernel, strict=True))
    numbers = shape[0] * shape[1] * shape[2] * shape[3]
    if shape[2] * shape[3] > MAX_POSITIONS:
        return False
    if w > 3 or h * w == 1 or padded or tuple(dilation) != (1, 1):
        return numbers * h * w >= MIN_PRODUCTS * stride[0] * stride[1]
    return not nhwc and numbers >= MIN_NUMBERS


def pytorch_reason(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
) -> str | None:
    """Why the whole operator is left to PyTorch although there may be a kernel, or None if it is not.

    It costs least where it is asked most: before all that decides whether there is a kernel.
    """
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "exports and traces take plain PyTorch operators"
    if not torch.is_grad_enabled():
        return "without gradients it is PyTorch's convolution"
    if transformed():
        return "transforms of torch.func run through plain PyTorch"
    if x.dim() != 4:
        return "one map alone, without a batch, is left to PyTorch"
    if weight is None:
        return None
    if not weight.requires_grad:
        return "x's gradient alone is as fast in PyTorch"
    sizes = (x.shape, weight.shape[2:], both(stride), both(padding), both(dilation))
    if not kernel_is_faster(channels_contiguous(x), *sizes):
        return "PyTorch's gradients are as fast for this kernel, size and layout"
    return None


def unsupported_reason(x: Tensor, *others: Tensor | None) -> str | None:
    """Why our kernel cannot take x, weight and bias, or None if it depends on what holds for all operators."""
    tensors = [t for t in (x, *others) if t is not None]
    if x.device.type != "cpu":
        return f"there is no kernel of a depthwise convolution for {x.device.type}"
    for tensor in tensors:
        if tensor.dtype != torch.float32:
            return f"{tensor.dtype} is left to plain PyTorch"
    if others and not any(t.requires_grad for t in tensors):
        return "without gradients it is PyTorch's convolution"
    if torch.is_autocast_enabled("cpu"):
        return "autocast chooses the dtype of convolutions"
    return None


def both(size: Size) -> tuple[int, int]:
    """One number for height and width, or one of each."""
    if isinstance(size, int):
        return (size, size)
    return (size[0], size[1])


def check(x: Tensor, weight: Tensor, bias: Tensor | None, **sizes: Size) -> None:
    """Raise ValueError unless these are the arguments of a depthwise convolution."""
    channels = x.shape[1]
    if x.dim() != 4:
        raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}")
    if weight.dim() != 4 or weight.shape[:2] != (channels, 1):
        raise ValueError(f"weight must have shape ({channels}, 1, h, w), got {tuple(weight.shape)}")
    if bias is not None and bias.shape != (channels,):
        raise ValueError(f"bias must have shape ({channels},), got {tuple(bias.shape)}")
    if not torch.is_autocast_enabled(x.device.type):
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is not None and tensor.dtype != x.dtype:
                raise ValueError(f"{name} is {tensor.dtype} and x {x.dtype}: both must have one dtype")
    for name, size in sizes.items():
        if not isinstance(size, int) and len(size) != 2:
            raise ValueError(f"{name} must be a number or two, got {size}")
        if min(both(size)) < (0 if name == "padding" else 1):
            raise ValueError(
                f"{name} must {'not be negative' if name == 'padding' else 'be positive'}, got {size}"
            )
    pads, gaps = both(sizes["padding"]), both(sizes["dilation"])
    reach = tuple(gap * (k - 1) + 1 for gap, k in zip(gaps, weight.shape[2:], strict=True))
    padded = tuple(n + 2 * pad for n, pad in zip(x.shape[2:], pads, strict=True))
    if reach[0] > padded[0] or reach[1] > padded[1]:
        raise ValueError(f"the kernel reaches over {reach} positions, and the padded map has {padded}")
