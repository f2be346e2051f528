"""DySoft and its rivals: what tames the heavy-tailed products before they join the feature map.

All take and return (B, P, S...) with the channels on axis 1, compute in float32 whatever the input's dtype
(float64 for float64), and return the input's dtype.

Source: arXiv 2505.22226, section 3 and its ablations; DyT: arXiv 2503.10622.
"""

from collections.abc import Callable

import torch
import torch.fx
from torch import Tensor, nn
from torch.types import Device

from hadaptive import ops
from hadaptive.ops import compute_dtype, largest_finite

# What they do depends on a dtype, which FX does not know.
torch.fx.wrap("compute_dtype")
torch.fx.wrap("largest_finite")


class _DynamicNorm(nn.Module):
    """Shared state of the bounded, statistics-free norms: one alpha, a weight and a bias per channel."""

    def __init__(
        self, channels: int, alpha: float, weight: float, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.initial_alpha, self.initial_weight = alpha, weight
        self.alpha = nn.Parameter(torch.empty(1, device=device, dtype=dtype))
        self.weight = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set every parameter to its initial value."""
        nn.init.constant_(self.alpha, self.initial_alpha)
        nn.init.constant_(self.weight, self.initial_weight)
        nn.init.zeros_(self.bias)

    def scaled(self, x: Tensor) -> Tensor:
        u = x.to(compute_dtype(x.dtype))
        # A product of finite maps may overflow to inf, which would make alpha's gradient 0 * inf.
        bound = largest_finite(u.dtype)
        return self.alpha * u.clamp(-bound, bound)

    def affine(self, u: Tensor, dtype: torch.dtype) -> Tensor:
        shape = [-1] + [1] * (u.dim() - 2)
        return (self.weight.view(shape) * u + self.bias.view(shape)).to(dtype)


class DySoft(_DynamicNorm):
    """``w * (alpha x) / (1 + |alpha x|) + b``; the paper's choice (73.57 on CIFAR-100)."""

    def __init__(self, channels: int, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(channels, alpha=0.5, weight=1.0, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return ops.dysoft(x, self.alpha, self.weight, self.bias)


class DySig(_DynamicNorm):
    """``w * (sigmoid(alpha x) - 1/2) + b`` (paper: 73.14)."""

    def __init__(self, channels: int, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(channels, alpha=0.35, weight=2.0, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(torch.sigmoid(self.scaled(x)) - 0.5, x.dtype)


class DyAlge(_DynamicNorm):
    """``w * alpha x / sqrt(1 + (alpha x)^2) + b`` (paper: 72.80)."""

    def __init__(self, channels: int, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(channels, alpha=0.5, weight=1.0, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        # The square overflows from 1.8e19 on; at 1e9 the value is 1 to the last bit of float32 already.
        u = self.scaled(x).clamp(-1e9, 1e9)
        return self.affine(u * torch.rsqrt(1 + u * u), x.dtype)


class DyT(_DynamicNorm):
    """``w * tanh(alpha x) + b`` (Zhu et al., arXiv 2503.10622)."""

    def __init__(self, channels: int, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(channels, alpha=0.5, weight=1.0, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.affine(torch.tanh(self.scaled(x)), x.dtype)


class ChannelRMSNorm(nn.Module):
    """Root-mean-square norm over the channel axis at each position, with a weight per channel."""

    def __init__(
        self, channels: int, eps: float = 1e-6, device: Device = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(channels, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the weight to ones."""
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        # The square overflows from 1.8e19 on, and the sum of squares a little earlier.
        u = x.to(compute_dtype(x.dtype)).clamp(-1e18, 1e18)
        u = u * torch.rsqrt(u.square().mean(1, keepdim=True) + self.eps)
        return (self.weight.view([-1] + [1] * (x.dim() - 2)) * u).to(x.dtype)


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm over any number of spatial dims (paper: 64.39, the ablation's loser; M and L use it in turn).

    One of PyTorch's, so that what looks for those, to freeze or to convert them, finds it.
    """

    def forward(self, input: Tensor) -> Tensor:
        return _batch_norm(
            input,
            self.running_mean,
            self.running_var,
            self.num_batches_tracked,
            self.weight,
            self.bias,
            self.training,
            self.track_running_stats,
            self.momentum,
            self.eps,
        )


@torch.fx.wrap
def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    count: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    track_running_stats: bool,
    momentum: float | None,
    eps: float,
) -> Tensor:
    if input.dim() < 2:
        raise ValueError(f"expected (B, C, S...), got {input.dim()} dims")
    # Products stay float32 in a half-precision model (they overflow float16), and PyTorch refuses a wide
    # input with narrow parameters: widen them, and write the running statistics back.
    u = input.to(compute_dtype(input.dtype))
    mean, var = _widened(running_mean, u.dtype), _widened(running_var, u.dtype)
    factor = momentum if momentum is not None else 0.0
    tracked = training and track_running_stats
    if tracked and count is not None:
        count.add_(1)
        if momentum is None:  # the plain mean of the batches, as in PyTorch
            factor = 1.0 / float(count)
    y = ops.batch_norm_act(
        u,
        mean if tracked or not training else None,
        var if tracked or not training else None,
        _widened(weight, u.dtype),
        _widened(bias, u.dtype),
        training or (mean is None and var is None),
        factor,
        eps,
    )
    if tracked:
        _write_back(running_mean, mean)
        _write_back(running_var, var)
    return y.to(input.dtype)


def _widened(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


def _write_back(state: Tensor | None, value: Tensor | None) -> None:
    if state is not None and value is not None and state.dtype != value.dtype:
        state.copy_(value)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "dysoft": DySoft,
    "dysig": DySig,
    "dyalge": DyAlge,
    "dyt": DyT,
    "rmsnorm": ChannelRMSNorm,
    "batchnorm": BatchNorm,
    "identity": nn.Identity,  # which takes any arguments
}


def create_norm(name: str, channels: int, device: Device = None, dtype: torch.dtype | None = None) -> nn.Module:
    """The norm called `name` for `channels` product channels.

    Args:
        name: one of ``NORMS``.
        channels: P.
        device, dtype: of its parameters and buffers.

    Raises:
        ValueError: `name` is not one of ``NORMS``.
    """
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}; got {name!r}")
    return NORMS[name](channels, device=device, dtype=dtype)
