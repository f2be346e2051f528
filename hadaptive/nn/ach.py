"""The Adaptive Cross-Hadamard module, for feature maps and for tokens.

Source: arXiv 2505.22226, section 3.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import torch
import torch.fx
from timm.layers import to_2tuple
from timm.models import register_notrace_module
from torch import Tensor, nn

from hadaptive import ops
from hadaptive.nn.normalisation import create_norm
from hadaptive.nn.selection import ChannelScore, ChannelSelection, FixedSelection, check_k
from hadaptive.ops import num_pairs


def k_for_width(channels: int, width: int) -> int:
    """The largest k whose products widen `channels` to at most `width`: channels + k(k-1)/2 <= width."""
    if width <= channels:
        raise ValueError(f"the wanted width {width} must exceed the {channels} channels there are")
    return (1 + math.isqrt(1 + 8 * (width - channels))) // 2


class CrossHadamardExpansion(nn.Module):
    """Score, select, multiply, normalise, append: ACH without its mixing layer. (B, C, S...) -> (B, C + P, S...).

    Args:
        channels: C.
        k: channels selected per sample, 2 <= k <= C; P = k(k-1)/2.
        norm: of the products; a name in :data:`hadaptive.nn.NORMS`.
        order: of the selected channels, "rank" (the paper's) or "index".
        surrogate: of the selection's gradient, "softmax" (the paper's) or "softmax_k".
        score_kernel: odd width of the score's convolution over channels.

    Raises:
        ValueError: an argument is out of its range.
    """

    fused: Final[bool]

    def __init__(
        self,
        channels: int,
        k: int,
        norm: str = "dysoft",
        order: str = "rank",
        surrogate: str = "softmax",
        score_kernel: int = 5,
    ) -> None:
        super().__init__()
        check_k(k, channels)
        self.channels = channels
        self.k = k
        self.out_channels = channels + num_pairs(k)
        self.fused = norm == "dysoft"
        self.score = ChannelScore(score_kernel)
        self.select = ChannelSelection(k, order, surrogate)
        self.norm = create_norm(norm, num_pairs(k))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        index, gate = self.select(self.score(x), generator)
        if self.fused:
            norm = self.norm
            return ops.expand(x, index, gate, norm.alpha, norm.weight, norm.bias)  # pyright: ignore[reportArgumentType]
        z = ops.select_channels(x, index, gate)
        return torch.cat([x, self.norm(ops.cross_hadamard(z)).to(x.dtype)], dim=1)

    def freeze(self, index: Tensor) -> None:
        """Select these channels, (k,) int64, for every sample from now on; the score is gone.

        Raises:
            ValueError: they are not k different channels.
        """
        numbers = index.tolist()
        if (
            len(numbers) != self.k
            or len(set(numbers)) != self.k
            or not all(0 <= c < self.channels for c in numbers)
        ):
            raise ValueError(f"expected {self.k} different channels of {self.channels}, got {numbers}")
        device = next(self.parameters()).device
        self.register_module("score", nn.Identity())
        self.register_module("select", FixedSelection(index.to(device)))

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        # A state of fixed selections has no score: become what it was saved from.
        index = state_dict.get(f"{prefix}select.index")
        if index is not None and not isinstance(self.select, FixedSelection):
            self.freeze(index)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def update_temperature(self) -> None:
        """Adapt the temperature to the score's accumulated gradient; nothing happens where there is none."""
        if not isinstance(self.select, ChannelSelection):
            return
        gradient = self.score.conv.weight.grad
        if gradient is not None:
            self.select.update_temperature(gradient)


@torch.fx.wrap
def _as_map(x: Tensor, channels: int) -> Tensor:
    """(B, C, S...) as a map of two spatial dims."""
    if torch.jit.is_tracing():
        return x if x.dim() == 4 else x.reshape(x.shape[0], channels, -1, 1)
    if x.dim() < 2 or x.shape[1] != channels:
        raise ValueError(f"expected (B, {channels}, S...), got {list(x.shape)}")
    if x.dim() == 4:
        return x
    area = 1
    for size in x.shape[2:]:
        area *= size
    return x.reshape(x.shape[0], channels, area, 1)


@torch.fx.wrap
def _with_positions_of(y: Tensor, x: Tensor) -> Tensor:
    """A map y in the spatial dims of x."""
    if x.dim() == 4:
        return y
    return y.reshape([y.shape[0], y.shape[1]] + list(x.shape[2:]))  # noqa: RUF005 (TorchScript)


class AdaptiveCrossHadamard(nn.Module):
    """ACH for feature maps: Conv1x1 + BatchNorm, then the cross-Hadamard expansion.

    Args:
        channels: C, channels in.
        k: channels selected per sample; the output has C + k(k-1)/2 channels.
        norm: of the products, see :data:`hadaptive.nn.NORMS`.
        order: "rank" (the paper's) or "index", see :func:`hadaptive.nn.top_k_channels`.
        surrogate: "softmax" (the paper's) or "softmax_k", see :func:`hadaptive.nn.gumbel_top_k`.
        score_kernel: odd width of the score's convolution over channels.

    Shape:
        (B, C, S...) -> (B, C + k(k-1)/2, S...), any number of spatial dims, any floating dtype.

    Raises:
        ValueError: an argument or the input's shape does not fit.

    Call :func:`hadaptive.nn.update_temperatures` after each backward pass to adapt the temperature.
    """

    def __init__(
        self,
        channels: int,
        k: int,
        norm: str = "dysoft",
        order: str = "rank",
        surrogate: str = "softmax",
        score_kernel: int = 5,
    ) -> None:
        super().__init__()
        check_k(k, channels)
        self.channels = channels
        self.out_channels = channels + num_pairs(k)
        # No bias: the BatchNorm that follows has one.
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.expansion = CrossHadamardExpansion(channels, k, norm, order, surrogate, score_kernel)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        y = self.expansion(self.bn(self.mix(_as_map(x, self.channels))), generator)
        return _with_positions_of(y, x)


# One node each in timm's FX graphs, which follow train() and eval() so.
register_notrace_module(CrossHadamardExpansion)
register_notrace_module(AdaptiveCrossHadamard)


@torch.fx.wrap
def _as_input(x: Tensor, features: int, maps: bool) -> Tensor:
    if torch.jit.is_tracing():
        return x
    if maps and (x.dim() != 4 or x.shape[1] != features):
        raise ValueError(f"expected maps (B, {features}, H, W), got {list(x.shape)}")
    if not maps and (x.dim() != 3 or x.shape[2] != features):
        raise ValueError(f"expected tokens (B, N, {features}), got {list(x.shape)}")
    return x


class CrossHadamardMlp(nn.Module):
    """ACH in place of a transformer's MLP; the signature is that of timm's ``Mlp``.

    Linear C -> C, cross-Hadamard expansion, activation, dropout, norm, Linear C + P -> out, dropout. Scores pool
    over the tokens.

    Args:
        in_features: C.
        hidden_features: wanted width of the expansion, default 4 C; k is the largest that fits in it, at most C.
        out_features: default C.
        act_layer: activation between expansion and projection.
        norm_layer: of the activated channels, None for none; `norm` is that of the products.
        bias: of both linear layers, or of each.
        drop: dropout before and after the projection, or of each.
        use_conv: take maps, with 1x1 convolutions for the linear layers.
        device, dtype: of parameters and buffers.
        k: set it to override `hidden_features`.
        norm, order, surrogate, score_kernel: as in :class:`AdaptiveCrossHadamard`.

    Shape:
        (B, N, C) -> (B, N, out_features), or (B, C, H, W) -> (B, out_features, H, W).

    Raises:
        ValueError: an argument or the input's shape does not fit.
    """

    def __init__(
        self,
        in_features: int,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        norm_layer: Callable[[int], nn.Module] | None = None,
        bias: bool | tuple[bool, bool] = True,
        drop: float | tuple[float, float] = 0.0,
        use_conv: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        k: int | None = None,
        norm: str = "dysoft",
        order: str = "rank",
        surrogate: str = "softmax",
        score_kernel: int = 5,
    ) -> None:
        super().__init__()
        if k is None:
            k = min(k_for_width(in_features, hidden_features or 4 * in_features), in_features)
        self.in_features = in_features
        self.use_conv = use_conv
        layer: Any = partial(nn.Conv2d, kernel_size=1) if use_conv else nn.Linear
        biases: Any = to_2tuple(bias)
        drops: Any = to_2tuple(drop)
        self.mix = layer(in_features, in_features, bias=biases[0])
        self.expansion = CrossHadamardExpansion(in_features, k, norm, order, surrogate, score_kernel)
        width = self.expansion.out_channels
        self.act = act_layer()
        self.drop_hidden = nn.Dropout(drops[0])
        self.norm = nn.Identity() if norm_layer is None else norm_layer(width)
        self.project = layer(width, out_features or in_features, bias=biases[1])
        self.drop = nn.Dropout(drops[1])
        if device is not None or dtype is not None:
            self.to(device, dtype)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        x = self.mix(_as_input(x, self.in_features, self.use_conv))
        if self.use_conv:
            x = self.expansion(x, generator)
        else:
            x = self.expansion(x.transpose(1, 2), generator).transpose(1, 2)
        return self.drop(self.project(self.norm(self.drop_hidden(self.act(x)))))


def update_temperatures(model: nn.Module) -> None:
    """Adapt the temperature of every ACH in `model`; call it once after each backward pass.

    It reads the gradients of the scores, so call it before they are zeroed, after they have been unscaled
    (fp16) and, if you accumulate, once per optimiser step. Under DistributedDataParallel every rank holds the
    same gradients and so reaches the same temperature.
    """
    for module in model.modules():
        if isinstance(module, CrossHadamardExpansion):
            module.update_temperature()


def expansions(model: nn.Module) -> dict[str, CrossHadamardExpansion]:
    """Every cross-Hadamard expansion in `model` by its qualified name, in order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, CrossHadamardExpansion)}
