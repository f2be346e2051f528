"""Which channels to multiply: per-sample scores, Gumbel top-k with a straight-through gate, temperature.

Source: arXiv 2505.22226, section 3; ECA (arXiv 1910.03151) for the score; Gumbel-softmax (arXiv 1611.01144).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.types import Device

from hadaptive.nn.checks import (
    ORDERS,
    SURROGATES,
    check_choice,
    check_noise,
    check_score_kernel,
    check_temperature,
)
from hadaptive.nn.layers import is_watched
from hadaptive.nn.subsets import k_subset_marginals, log_probability, sample_k_subset
from hadaptive.ops import compute_dtype

TEMPERATURE_MAX = 4.0
TEMPERATURE_MIN = 0.01
TEMPERATURE_RATE = 0.005


@torch.fx.wrap
def pooled(x: Tensor, training: bool) -> Tensor:
    """Mean over positions, (B, C, S...) -> (B, C), in x's dtype; a form for training, the other for speed."""
    if x.dim() <= 2:
        return x
    x = x.flatten(2)
    if not training:
        return x.mean(2)
    # The gradient of a sum is a view, that of a mean a whole map.
    return (x.sum(2, dtype=compute_dtype(x.dtype)) / x.shape[2]).to(x.dtype)


def _convolved(y: Tensor, weight: Tensor) -> Tensor:
    """A convolution along axis 1 as shifted sums, which a compiler fuses with what is around them."""
    width, channels = weight.shape[0], y.shape[1]
    padded = torch.nn.functional.pad(y, (width // 2, width // 2))
    total = weight[0] * padded[:, :channels]
    for tap in range(1, width):
        total = total + weight[tap] * padded[:, tap : tap + channels]
    return total


class ChannelScore(nn.Module):
    """ECA without its sigmoid: a 1-D convolution over the channel axis of the pooled map.

    Args:
        kernel_size: odd width of the convolution over channels; 0 for none, the pooled map being the scores.
        device, dtype: of the convolution's weight.

    Shape:
        (B, C, S...) -> (B, C), in x's dtype.
    """

    def __init__(self, kernel_size: int = 5, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        check_score_kernel(kernel_size)
        self.conv: nn.Module = nn.Identity()
        if kernel_size:
            padding = kernel_size // 2
            self.conv = nn.Conv1d(1, 1, kernel_size, padding=padding, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        y = pooled(x, self.training)
        if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript)
            if (
                torch.compiler.is_compiling()
                and not torch.compiler.is_exporting()
                and type(self.conv) is nn.Conv1d
                and not is_watched(self.conv)
            ):
                return _convolved(y, self.conv.weight.flatten())
        return self.conv(y.unsqueeze(1)).squeeze(1)


def gumbel_noise(like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gumbel noise of `like`'s shape and device, float32, always finite."""
    if generator is None:  # said to be None, it keeps a compiler from batches of any size
        u = torch.rand(like.shape, device=like.device, dtype=torch.float32)
    else:
        u = torch.rand(like.shape, generator=generator, device=like.device, dtype=torch.float32)
    # float32 cannot tell 1 - 6e-8 from 1, and log(0) is -inf: stay one step inside (0, 1).
    u = u.clamp(1.1754943508222875e-38, 1 - 1.1920928955078125e-07)
    return -torch.log(-torch.log(u))


def _counted_top_k(scores: Tensor, k: int) -> Tensor:
    """The same by counting who comes before whom: a compiler fuses comparisons and sums, and no sort."""
    numbers = torch.arange(scores.shape[1], device=scores.device)
    mine, other = scores.unsqueeze(2), scores.unsqueeze(1)
    mine_nan, other_nan = mine.isnan(), other.isnan()  # before every number, as torch.sort has it
    larger = (other > mine) | (other_nan & ~mine_nan)
    equal = (other == mine) | (other_nan & mine_nan)
    # In float32, which holds any number of channels and makes faster code than integers.
    before = larger | (equal & (numbers < numbers.unsqueeze(1)))
    rank = torch.where(before, 1.0, 0.0).sum(2)
    taken = rank.unsqueeze(1) == torch.arange(k, device=scores.device).unsqueeze(1)
    return torch.where(taken, numbers.float(), 0.0).sum(2).long()


def _stable_top_k(scores: Tensor, k: int) -> Tensor:
    if not torch.jit.is_scripting():
        if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
            return _counted_top_k(scores, k)
        if torch.onnx.is_in_onnx_export():
            # ONNX has no stable sort; its TopK gives the lower index of equal scores, PyTorch's promises nothing.
            return torch.topk(scores, k, dim=1)[1]
    return torch.sort(scores, dim=1, descending=True, stable=True)[1][:, :k]


def top_k_channels(scores: Tensor, k: int, order: str = "rank") -> Tensor:
    """Indices of the k largest scores of each row; among equals the lower index wins. (B, C) -> (B, k) int64.

    `order="rank"` lists them by descending score (the paper's), `"index"` by ascending channel number, which
    keeps the meaning of an output slot stable when the noise reshuffles ranks.
    """
    index = _stable_top_k(scores, k)
    if order == "index":
        index = torch.sort(index, dim=1)[0]
    return index


def perturbed(scores: Tensor, noise: float, generator: torch.Generator | None) -> Tensor:
    """Scores (B, C) in float32 with Gumbel noise of this scale."""
    plain = scores.float()
    return plain if noise == 0 else plain + noise * gumbel_noise(scores, generator)


def straight_through(soft: Tensor) -> Tensor:
    """Exactly 1, with the gradient of `soft`. (The authors' published code has the sign reversed.)"""
    return 1 + (soft - soft.detach())


def gumbel_top_k(
    scores: Tensor,
    k: int,
    temperature: Tensor,
    order: str = "rank",
    surrogate: str = "softmax",
    generator: torch.Generator | None = None,
    noise: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sample k channels by Gumbel top-k, with straight-through gates that carry the gradient to the scores.

    Top-k is taken of the noisy logits rather than of their softmax: the same channels, without the ties that
    appear when the softmax underflows at low temperature.

    Args:
        scores: (B, C), any floating dtype; noise and softmax are float32 whatever it is.
        k: channels to select.
        temperature: 0-d tensor, > 0; shapes gradients only.
        order: "rank" or "index", see :func:`top_k_channels`.
        surrogate: "softmax" (the paper's: its gradient is that of a distribution summing to 1) or
            "softmax_k" (the same scaled by k, the sum of the k-hot mask it stands for).
        generator: source of the noise; None uses PyTorch's global one of the scores' device.
        noise: scale of the noise, 1 in the paper; 0 selects the k largest scores.

    Returns:
        index (B, k) int64 and gate (B, k) float32, whose value is exactly 1 and whose gradient is
        ``+ d surrogate / d scores``. (The authors' published code has the sign reversed.)
    """
    logits = perturbed(scores, noise, generator) / temperature
    index = top_k_channels(logits.detach(), k, order)
    soft = torch.softmax(logits, dim=1).gather(1, index)
    if surrogate == "softmax_k":
        soft = soft * k
    return index, straight_through(soft)


def sampled_subset(
    scores: Tensor, k: int, order: str = "rank", generator: torch.Generator | None = None, noise: float = 1.0
) -> Tensor:
    """k channels of each row, sampled exactly with a probability proportional to exp(sum of scores / noise).

    Args, returns: index (B, k) int64, as :func:`gumbel_top_k`.
    """
    taken = sample_k_subset(scores.detach().float() / noise, k, generator)
    return top_k_channels(scores.detach().float().masked_fill(~taken, -float("inf")), k, order)


def simple_top_k(
    scores: Tensor,
    k: int,
    temperature: Tensor,
    order: str = "rank",
    generator: torch.Generator | None = None,
    noise: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Sample a subset of k channels exactly; the gates' gradient is that of its marginals, which sum to k.

    A subset's probability is the product of exp(score / noise) over its channels, up to a factor that all share.
    With a temperature equal to the noise this is SIMPLE as published; another one shapes gradients only, as it
    does in :func:`gumbel_top_k`. Source: arXiv 2210.01941.

    Args, returns: as :func:`gumbel_top_k`; noise 0 selects the k largest scores. Costs O(B k C) operations.
    """
    if noise == 0:
        index = top_k_channels(scores.detach(), k, order)
    else:
        index = sampled_subset(scores, k, order, generator, noise)  # by score, so that "rank" means what it does
    return index, straight_through(k_subset_marginals(scores.float() / temperature, k).gather(1, index))


@torch.fx.wrap
def _selected(
    scores: Tensor,
    k: int,
    temperature: Tensor,
    order: str,
    surrogate: str,
    training: bool,
    generator: torch.Generator | None,
    noise: float,
) -> tuple[Tensor, Tensor | None]:
    if training:
        # Its own copy: an optimiser may update the temperature before it differentiates a second time.
        if surrogate == "simple":
            return simple_top_k(scores, k, temperature.clone(), order, generator, noise)
        return gumbel_top_k(scores, k, temperature.clone(), order, surrogate, generator, noise)
    return top_k_channels(scores, k, order), None


def _unusual(noise: float, temperature: float | None) -> str:
    """What a selection prints of these, if they are not the paper's."""
    return ("" if noise == 1 else f", noise={noise:g}") + (
        "" if temperature is None else f", temperature={temperature:g}"
    )


class Sampled:
    """What a selection last sampled, for a score-function estimator; copies and saved modules have none of it.

    Attributes:
        log_probability: (B,), with a gradient to the scores; None before anything was sampled.
    """

    def __init__(self) -> None:
        self.log_probability: Tensor | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "Sampled":
        return Sampled()

    def __reduce__(self) -> tuple[Any, ...]:
        return Sampled, ()


class ChannelSelection(nn.Module):
    """Select k channels per sample: Gumbel top-k while training, plain top-k in eval mode.

    The temperature is a buffer, so it travels with checkpoints, and only :meth:`update_temperature` changes it. It
    is float32 whatever the network is: a step of half a percent is lost in half precision.

    Args:
        k: channels to select.
        order: "rank" (the paper's) or "index".
        surrogate: "softmax" (the paper's), "softmax_k", "simple", see :func:`simple_top_k`, or "sfess": no
            gradient through gates at all, but through the probability of what was selected, see
            :func:`hadaptive.nn.score_function_term`, which the training must add to its loss.
        device: of the buffers.
        dtype: taken as other layers take it, and without effect.
        noise: scale of the Gumbel noise in training, 1 in the paper.
        temperature: a constant one; None adapts it, as the paper does.

    Shape:
        scores (B, C) -> index (B, k) int64, gate (B, k) float32 or None (eval mode: all ones).
    """

    temperature: Tensor
    gradient_norm: Tensor

    def __init__(
        self,
        k: int,
        order: str = "rank",
        surrogate: str = "softmax",
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        noise: float = 1.0,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("order", order, ORDERS)
        check_choice("surrogate", surrogate, SURROGATES)
        check_noise(noise)
        check_temperature(temperature)
        self.k = k
        self.order = order
        self.surrogate = surrogate
        self.noise = float(noise)
        self.constant_temperature = temperature
        self.sampled = Sampled()
        for name in ("temperature", "gradient_norm"):
            self.register_buffer(name, torch.empty((), device=device, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set the temperature to what training begins with."""
        self.temperature.fill_(TEMPERATURE_MAX if self.constant_temperature is None else self.constant_temperature)
        self.gradient_norm.zero_()

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        for name, value in list(self.named_buffers()):  # assigned ones may be of a network in half precision
            setattr(self, name, value.float())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ChannelSelection":
        kept = {"temperature": self.temperature, "gradient_norm": self.gradient_norm}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = getattr(self, name)
            if moved.dtype != torch.float32:
                setattr(self, name, value.to(moved.device))
        return self

    def forward(self, scores: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips what stands under this alone
            if self.surrogate == "sfess" and self.training:
                chosen = sampled_subset(scores, self.k, self.order, generator, self.noise)
                self.sampled.log_probability = log_probability(scores.float() / self.noise, chosen)
                return chosen, None
        index, gate = _selected(
            scores, self.k, self.temperature, self.order, self.surrogate, self.training, generator, self.noise
        )
        return index, gate

    def best(self, scores: Tensor) -> Tensor:
        """What would be selected in eval mode: (B, C) -> (B, k) int64."""
        return top_k_channels(scores, self.k, self.order)

    def most(self, frequency: Tensor, place: Tensor) -> Tensor:
        """The one selection that stands for many, (k,) int64.

        Args:
            frequency: (C,), how often each channel was selected.
            place: (C,), its mean place among the selected, NaN where it never was.
        """
        index = torch.sort(frequency, descending=True, stable=True)[1][: self.k].sort()[0]
        if self.order == "rank":  # weights meet the products that they were trained with
            index = index[torch.sort(place[index].nan_to_num(nan=float(self.k)), stable=True)[1]]
        return index

    def margins(self, scores: Tensor) -> Tensor:
        """How near each selection came to another: the smallest gap of two scores whose order matters, (B,).

        Infinite where there is nothing to choose.
        """
        ranked = scores.sort(descending=True).values[:, : self.k + 1]
        steps = ranked[:, :-1] - ranked[:, 1:]
        if self.order == "index":  # only who is last in and first out matters
            steps = steps[:, self.k - 1 :]
        return steps.amin(1) if steps.shape[1] else torch.full_like(scores[:, 0], torch.inf)

    @torch.no_grad()
    def update_temperature(self, gradient: Tensor) -> None:
        """One step of the adaptive temperature: warmer while the score's gradient grows, cooler when it shrinks.

        Args:
            gradient: of the score's weight, any shape, unscaled. A non-finite one changes nothing.
        """
        if self.constant_temperature is not None:
            return
        norm = gradient.float().norm()
        step = torch.where(norm >= self.gradient_norm, 1 + TEMPERATURE_RATE, 1 - TEMPERATURE_RATE)
        warmer = (self.temperature * step).clamp(TEMPERATURE_MIN, TEMPERATURE_MAX)
        finite = torch.isfinite(norm)
        self.temperature.copy_(torch.where(finite, warmer, self.temperature))
        self.gradient_norm.copy_(torch.where(finite, norm, self.gradient_norm))

    def extra_repr(self) -> str:
        own = f"k={self.k}, order={self.order!r}, surrogate={self.surrogate!r}"
        return own + _unusual(self.noise, self.constant_temperature)
