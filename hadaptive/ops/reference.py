"""Plain-PyTorch operators: the truth every kernel is tested against, and the path everywhere else.

Every function here is differentiable twice by autograd, scripts under TorchScript and
runs on every device and dtype PyTorch does. Shapes are validated by the door,
:mod:`hadaptive.ops`, not here.

Source: arXiv 2505.22226, section 3 (Adaptive Cross-Hadamard) and section 5 (pair order).
"""

import torch
from torch import Tensor


def obstacle(x: Tensor) -> str | None:
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


def pair_products(z: Tensor) -> Tensor:
    """All products z_i * z_j, i < j, in lexicographic order. (B, k, S...) -> (B, k(k-1)/2, S...), z's dtype."""
    k = z.shape[1]
    if torch.jit.is_tracing():  # the older exporter to ONNX does not know triu_indices
        numbers = torch.arange(k, device=z.device)
        pairs = (numbers.unsqueeze(1) < numbers).nonzero().t()
    else:
        pairs = torch.triu_indices(k, k, 1, device=z.device)
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
    if like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous():
        return y.contiguous(memory_format=torch.channels_last)
    return y


def cross_hadamard(z: Tensor) -> Tensor:
    """Plain path of :func:`hadaptive.ops.cross_hadamard`."""
    q = pair_products(z.to(compute_dtype(z.dtype)))
    return restore_layout(q.to(z.dtype), z)


def dysoft(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Plain path of :func:`hadaptive.ops.dysoft`."""
    return softsign_affine(x.to(compute_dtype(x.dtype)), alpha, weight, bias).to(x.dtype)


def expand(x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Plain path of :func:`hadaptive.ops.expand`."""
    return restore_layout(concatenated(x, index, gate, alpha, weight, bias), x)


def concatenated(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    """The expansion in whatever memory layout comes out."""
    q = pair_products(select_channels(x, index, gate))
    return torch.cat([x, softsign_affine(q, alpha, weight, bias).to(x.dtype)], dim=1)
