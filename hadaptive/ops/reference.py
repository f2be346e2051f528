"""Plain-PyTorch operators: the truth every kernel is tested against, and the path everywhere else.

Every function here is differentiable twice by autograd, scripts under TorchScript and
runs on every device and dtype PyTorch does. Shapes are validated by the door,
:mod:`hadaptive.ops`, not here.

Source: arXiv 2505.22226, section 3 (Adaptive Cross-Hadamard) and section 5 (pair order).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from hadaptive.ops.batching import transformed
from hadaptive.ops.convolution import both
from hadaptive.ops.pairs import pair_indices

ACTS = ("none", "relu", "relu6", "hardswish")  # activations that follow a normalisation


def unsupported_reason(operator: str, x: Tensor, *others: Tensor | None) -> str | None:
    """Plain PyTorch takes everything."""
    return None


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype products and DySoft are computed in: float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def largest_finite(dtype: torch.dtype) -> float:
    # torch.finfo does not script.
    return 1.7976931348623157e308 if dtype == torch.float64 else 3.4028234663852886e38


def select_channels(x: Tensor, index: Tensor, gate: Tensor | None) -> Tensor:
    """Gather k channels of each sample and scale them. (B, C, S...) -> (B, k, S...) in compute dtype."""
    shape = list(index.shape) + [1] * (x.dim() - 2)
    z = x.gather(1, index.view(shape).expand(list(index.shape) + list(x.shape[2:])))
    z = z.to(compute_dtype(x.dtype))
    if gate is not None:
        z = z * gate.to(z.dtype).view(shape)
    return z


def pair_products(z: Tensor, block: int = 1) -> Tensor:
    """All products z_i * z_j, i < j, in lexicographic order: (B, k, S...) -> (B, k(k-1)/2, S...), z's dtype.

    With `block` > 1 of whole blocks of so many channels, of which k is a multiple.
    """
    pairs = pair_indices(z.shape[1], z.device, block)
    return z.index_select(1, pairs[0]) * z.index_select(1, pairs[1])


def softsign_affine(q: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """DySoft of a tensor already in compute dtype. (B, P, S...) -> (B, P, S...)."""
    shape = [-1] + [1] * (q.dim() - 2)
    bound = largest_finite(q.dtype)
    # A product of finite maps may overflow to inf, and so may alpha * q. Without the two clamps the value is
    # inf / inf and alpha's gradient is 0 * inf, both NaN. NaN itself passes through.
    u = (alpha.to(q.dtype) * q.clamp(-bound, bound)).clamp(-bound, bound)
    return weight.to(q.dtype).view(shape) * (u / (1 + u.abs())) + bias.to(q.dtype).view(shape)


def restore_layout(y: Tensor, like: Tensor) -> Tensor:
    """y in the memory format of `like` (channels_last stays channels_last)."""
    if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips what stands under this alone
        if not torch.compiler.is_compiling() and transformed():
            return y  # torch.vmap knows no channels_last
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return y.contiguous(memory_format=torch.channels_last)
    return y


def cross_hadamard(z: Tensor) -> Tensor:
    """Plain path of :func:`hadaptive.ops.cross_hadamard`."""
    q = pair_products(z.to(compute_dtype(z.dtype)))
    return restore_layout(q.to(z.dtype), z)


def selected_products(x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1) -> Tensor:
    """Plain path of :func:`hadaptive.ops.selected_products`."""
    z = select_channels(x, index, gate)
    return restore_layout(pair_products(z, block), z)


def selected_products_backward(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1
) -> tuple[Tensor, Tensor]:
    """Gradients of x (B, C, S...) and gate (B, k): the twin of the kernel, itself differentiable."""
    dtype, k = compute_dtype(x.dtype), index.shape[1]
    per_sample = list(index.shape) + [1] * (x.dim() - 2)
    places = index.view(per_sample).expand(list(index.shape) + list(x.shape[2:]))
    plain = x.gather(1, places).to(dtype)
    scale = torch.ones_like(index, dtype=dtype) if gate is None else gate.to(dtype)
    z, scale, g = plain * scale.view(per_sample), scale.view(per_sample), grad.to(dtype)
    first, second = pair_indices(k, x.device, block).unbind()
    of_z = torch.zeros_like(z).index_add(1, first, g * z.index_select(1, second))
    of_z = of_z.index_add(1, second, g * z.index_select(1, first))
    of_x = torch.zeros_like(x, dtype=dtype).scatter_add(1, places, of_z * scale)
    of_gate = (of_z * plain).flatten(2).sum(2) if x.dim() > 2 else of_z * plain
    return restore_layout(of_x.to(x.dtype), x), of_gate if gate is None else of_gate.to(gate.dtype)


def dysoft(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Plain path of :func:`hadaptive.ops.dysoft`."""
    return softsign_affine(x.to(compute_dtype(x.dtype)), alpha, weight, bias).to(x.dtype)


def cross_hadamard_expand(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor, block: int = 1
) -> Tensor:
    """Plain path of :func:`hadaptive.ops.cross_hadamard_expand`."""
    return restore_layout(concatenated(x, index, gate, alpha, weight, bias, block), x)


def concatenated(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor, block: int = 1
) -> Tensor:
    """The expansion in whatever memory layout comes out."""
    q = pair_products(select_channels(x, index, gate), block)
    return torch.cat([x, softsign_affine(q, alpha, weight, bias).to(x.dtype)], dim=1)


def cross_hadamard_expand_backward(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, block: int = 1
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, S...), gate (B, k), alpha (1,), weight (P,) and bias (P,), each in its tensor's dtype.

    The twin of the kernels' backward pass, itself differentiable. The gate's gradient is float32 (float64 for
    float64) where gate is None; bias's has weight's dtype.
    """
    dtype, channels, k = compute_dtype(x.dtype), x.shape[1], index.shape[1]
    per_sample, per_pair = list(index.shape) + [1] * (x.dim() - 2), [-1] + [1] * (x.dim() - 2)
    places = index.view(per_sample).expand(list(index.shape) + list(x.shape[2:]))
    plain = x.gather(1, places).to(dtype)
    scale = torch.ones_like(index, dtype=dtype) if gate is None else gate.to(dtype)
    z, scale = plain * scale.view(per_sample), scale.view(per_sample)
    first, second = pair_indices(k, x.device, block).unbind()
    zi, zj = z.index_select(1, first), z.index_select(1, second)
    bound = largest_finite(dtype)
    q = (zi * zj).clamp(-bound, bound)
    u = (alpha.to(dtype) * q).clamp(-bound, bound)
    r = 1 / (1 + u.abs())
    g = grad[:, channels:].to(dtype)
    others = [0, *range(2, x.dim())]
    of_u = weight.to(dtype).view(per_pair) * (g * r * r)
    of_q = of_u * alpha.to(dtype)
    of_z = torch.zeros_like(z).index_add(1, first, of_q * zj).index_add(1, second, of_q * zi)
    of_x = grad[:, :channels].to(dtype).scatter_add(1, places, of_z * scale)
    of_gate = (of_z * plain).flatten(2).sum(2) if x.dim() > 2 else of_z * plain
    return (
        restore_layout(of_x.to(x.dtype), x),
        of_gate if gate is None else of_gate.to(gate.dtype),
        (of_u * q).sum().to(alpha.dtype).view(alpha.shape),
        (g * u * r).sum(others).to(weight.dtype),
        g.sum(others).to(weight.dtype),
    )


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
) -> Tensor:
    """Plain path of :func:`hadaptive.ops.depthwise`."""
    return F.conv2d(x, weight, bias, both(stride), both(padding), both(dilation), x.shape[1])


def depthwise_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of weight, each (0,) if not wanted: the twin of the kernel, itself differentiable."""
    sizes = (stride, padding, dilation, False, [0, 0], x.shape[1])
    found = torch.ops.aten.convolution_backward(grad, x, weight, None, *sizes, [*wanted, False])
    of_x, of_weight = (t if yes else x.new_empty(0) for t, yes in zip(found, wanted, strict=False))
    return of_x, of_weight


def activated(z: Tensor, act: str) -> Tensor:
    """z after one of ``ACTS``."""
    if act == "hardswish":
        return F.hardswish(z)
    if act == "relu6":
        return F.relu6(z)
    return F.relu(z) if act == "relu" else z


def batch_norm_act(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    act: str,
) -> Tensor:
    """Plain path of :func:`hadaptive.ops.batch_norm_act`."""
    return activated(F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps), act)


def _slope(z: Tensor, act: str) -> Tensor:
    """The derivative of an activation, itself differentiable."""
    if act == "hardswish":
        return torch.where(z <= -3, 0.0, torch.where(z >= 3, 1.0, z / 3 + 0.5))
    beyond = z <= 0 if act in ("relu", "relu6") else torch.zeros_like(z, dtype=torch.bool)
    if act == "relu6":
        beyond = beyond | (z >= 6)
    return (~beyond).to(z.dtype)


def batch_norm_act_backward(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, act: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (B, C, S...), weight (C,) and bias (C,) in training, in x's dtype.

    The twin of the kernel's backward pass, itself differentiable.
    """
    over, shape = [0, *range(2, x.dim())], [-1] + [1] * (x.dim() - 2)
    d = x - x.mean(over, keepdim=True)
    scale = torch.rsqrt(d.square().mean(over, keepdim=True) + eps)
    h = d * scale
    z = h if weight is None else h * weight.view(shape)
    z = z if bias is None else z + bias.view(shape)
    g = grad * _slope(z, act)
    rest = g - g.mean(over, keepdim=True) - h * (g * h).mean(over, keepdim=True)
    of_x = rest * (scale if weight is None else scale * weight.view(shape))
    return restore_layout(of_x, x), (g * h).sum(over), g.sum(over)
