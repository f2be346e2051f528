"""The Adaptive Cross-Hadamard module for feature maps.

Source: arXiv 2505.22226, section 3.
"""

import math
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.types import Device

from hadaptive import ops
from hadaptive.nn.checks import JOINS, check_choice, check_k, check_selection
from hadaptive.nn.fixed_selection import FixedSelection, StaticSelection, random_selection
from hadaptive.nn.grouped_selection import GroupedSelection
from hadaptive.nn.layers import is_watched, run_layers
from hadaptive.nn.normalisation import DySoft, create_norm
from hadaptive.nn.selection import ChannelScore, ChannelSelection
from hadaptive.nn.state import rename_children
from hadaptive.ops import num_pairs

PAIRINGS = ("triangle", "blocks")

LIVE_INTO_FIXED = (
    "the network's selections are fixed, and this state's are not, so that it does not say which channels to fix: "
    "load it into a network that is not frozen, and freeze that"
)


LIVE_INTO_STATIC = (
    "the network selects its first k channels, and this state holds other selections: build the network with the "
    "selection that it was trained with"
)

OTHER_SELECTION = (
    "this state was saved from a network that selects otherwise, by groups or in another order, and this one "
    "would compute something else with it: build the network with the selection that it was trained with"
)


def k_for_width(channels: int, width: int) -> int:
    """The largest k whose products widen `channels` to at most `width`: channels + k(k-1)/2 <= width."""
    if width <= channels:
        raise ValueError(f"the wanted width {width} must exceed the {channels} channels there are")
    return (1 + math.isqrt(1 + 8 * (width - channels))) // 2


def block_size(channels: int, k: int, pairing: str) -> int:
    """How many channels are multiplied as one: 1, or the size of k blocks.

    Raises:
        ValueError: there is no such pairing.
    """
    check_choice("pairing", pairing, PAIRINGS)
    return channels // k if pairing == "blocks" else 1


class CrossHadamardExpansion(nn.Module):
    """Score, select, multiply, normalise, append: ACH without its mixing layer. (B, C, S...) -> (B, C + P, S...).

    Args:
        channels: C.
        k: channels selected per sample, 2 <= k <= C; P = k(k-1)/2. Of pairing "blocks" how many blocks.
        norm: of the products; a name in :data:`hadaptive.nn.NORMS`.
        order: of the selected channels, "rank" (the paper's) or "index".
        surrogate: of the selection's gradient, "softmax" (the paper's), "softmax_k", "simple" or "sfess".
        score_kernel: odd width of the score's convolution over channels; 0 for none, so that the pooled channels
            are the scores, and the temperature stays where it begins.
        device, dtype: of parameters and buffers; the temperature is float32.
        selection: "static" (the first k channels), "sample" (the paper's: the k highest scores of each sample),
            "grouped" (the highest score in each of k groups) or "random" (k channels drawn once). Static and
            random ones have no score. None is "static", and blocks have no other.
        noise: scale of the Gumbel noise on scores in training, 1 in the paper.
        temperature: a constant one; None adapts it, as the paper does.
        seed: of the random draw.
        pairing: "triangle" (the paper's: all pairs of k channels) or "blocks" (all pairs of the first k whole
            blocks of w = C // k channels, channel by channel; P = w k(k-1)/2).

    Attributes:
        k: channels that are multiplied.
        block: channels that are multiplied as one; 1 in the triangle.

    Raises:
        ValueError: an argument is out of its range, or has no effect on this selection.
    """

    def __init__(
        self,
        channels: int,
        k: int,
        norm: str = "dysoft",
        order: str = "rank",
        surrogate: str = "softmax",
        score_kernel: int = 5,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        selection: str | None = None,
        noise: float = 1.0,
        temperature: float | None = None,
        seed: int = 0,
        pairing: str = "triangle",
    ) -> None:
        super().__init__()
        check_k(k, channels)
        self.block = block_size(channels, k, pairing)
        selection = "static" if selection is None else selection
        if pairing == "blocks" and selection != "static":
            raise ValueError(f"whole blocks are always the first: leave selection out, got {selection!r}")
        check_selection(selection, order, surrogate, noise, temperature, score_kernel, seed)
        k *= self.block
        self.channels = channels
        self.k = k
        self.out_channels = channels + num_pairs(k, self.block)
        self.score: nn.Module = nn.Identity()
        self.select: nn.Module
        if selection == "static":
            self.select = StaticSelection(k)
        elif selection == "random":
            self.select = random_selection(channels, k, seed, device)
        else:
            self.score = ChannelScore(score_kernel, device, dtype)
            how: Any = {"device": device, "dtype": dtype, "noise": noise, "temperature": temperature}
            grouped = selection == "grouped"
            self.select = GroupedSelection(k, **how) if grouped else ChannelSelection(k, order, surrogate, **how)
        self.norm = create_norm(norm, num_pairs(k, self.block), device, dtype)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        index, gate = self.select(self.score(x), generator)
        if not torch.jit.is_scripting():  # noqa: SIM102  TorchScript skips what stands under this alone
            # What is put in its place, hooked to it or pruned shows only where it is called.
            if type(self.norm) is DySoft and not is_watched(self.norm):
                norm = self.norm
                return ops.cross_hadamard_expand(x, index, gate, norm.alpha, norm.weight, norm.bias, self.block)
        return ops.append(x, self.norm(ops.selected_products(x, index, gate, self.block)).to(x.dtype))

    def freeze(self, index: Tensor) -> None:
        """Select these channels, (k,) int64, for every sample from now on; the score is gone.

        Raises:
            ValueError: they are not k different channels.
        """
        numbers = index.tolist()
        if (
            index.dim() != 1
            or index.is_floating_point()
            or len(numbers) != self.k
            or len(set(numbers)) != self.k
            or not all(0 <= c < self.channels for c in numbers)
        ):
            raise ValueError(f"expected {self.k} different channels of {self.channels}, got {numbers}")
        device = next((t.device for t in (*self.select.buffers(), *self.norm.parameters())), None)
        self.register_module("score", nn.Identity())
        self.register_module("select", FixedSelection(index.long(), device))

    def _selects(self) -> str | None:
        """What tells apart selections of which states have the same names; None where names tell."""
        if isinstance(self.select, GroupedSelection):
            return "one of each group"
        return f"the best by {self.select.order}" if isinstance(self.select, ChannelSelection) else None

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        selects, metadata = self._selects(), getattr(destination, "_metadata", {})
        if selects is not None and prefix[:-1] in metadata:
            metadata[prefix[:-1]]["selects"] = selects

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        theirs, ours = local_metadata.get("selects"), self._selects()
        if ours is not None and theirs is not None and theirs != ours and OTHER_SELECTION not in error_msgs:
            error_msgs.append(OTHER_SELECTION)
        index = state_dict.get(f"{prefix}select.index")
        live = [key for key in state_dict if key.startswith((f"{prefix}score.", f"{prefix}select."))]
        if isinstance(self.select, StaticSelection):
            if index is not None and torch.equal(index.cpu(), self.select.index):
                del state_dict[f"{prefix}select.index"]  # of one that was drawn or frozen so
            elif live:
                if LIVE_INTO_STATIC not in error_msgs:
                    error_msgs.append(LIVE_INTO_STATIC)
                for key in live:
                    del state_dict[key]
        elif isinstance(self.select, FixedSelection):
            if index is None and live:
                if LIVE_INTO_FIXED not in error_msgs:
                    error_msgs.append(LIVE_INTO_FIXED)
                for key in live:
                    del state_dict[key]
                state_dict[f"{prefix}select.index"] = self.select.index
        elif index is not None:  # a state of fixed selections has no score: become what it was saved from
            try:
                self.freeze(index)
            except ValueError as error:
                error_msgs.append(f"{prefix}select.index: {error}")
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )

    def update_temperature(self, scale: Tensor | None = None, skipped: Tensor | None = None) -> None:
        """Adapt the temperature to the score's accumulated gradient; nothing happens where there is none.

        Args:
            scale: what the gradient is still multiplied with, one number; None for nothing.
            skipped: not 0 where the step is left out, one number; None where it is not.
        """
        if not isinstance(self.select, ChannelSelection) or not isinstance(self.score, ChannelScore):
            return
        gradient = self.score.conv.weight.grad if isinstance(self.score.conv, nn.Conv1d) else None
        if gradient is None:
            return
        whole = getattr(gradient, "full_tensor", None)
        if whole is not None:  # a process has a shard of it under FSDP, and the temperature is the same in all
            gradient = whole()
        if scale is not None:
            gradient = gradient / scale
        if skipped is not None:  # a gradient that is not finite changes nothing, and to ask would wait for a GPU
            gradient = torch.where(skipped.to(gradient.device) > 0, torch.nan, gradient)
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


@torch.fx.wrap
def _added(y: Tensor, channels: int, wide: int, products: int) -> Tensor:
    """The last P channels of a map (B, C + P, H, W) added to the first of the others: max(C, P) channels."""
    own = F.pad(y[:, :channels], (0, 0, 0, 0, 0, wide - channels))
    return own + F.pad(y[:, channels:], (0, 0, 0, 0, 0, wide - products))


class AdaptiveCrossHadamard(nn.Module):
    """ACH for feature maps: Conv1x1 + BatchNorm, then the cross-Hadamard expansion.

    Args:
        channels: C, channels in.
        k: channels selected per sample, or, of pairing "blocks", how many blocks.
        norm: of the products, see :data:`hadaptive.nn.NORMS`.
        order: "rank" (the paper's) or "index", see :func:`hadaptive.nn.top_k_channels`.
        surrogate: "softmax" (the paper's), "softmax_k", "simple" or "sfess", see :class:`ChannelSelection`.
        device, dtype: of parameters and buffers; the temperature is float32.
        score_kernel, selection, noise, temperature, seed, pairing: as in :class:`CrossHadamardExpansion`.
        mix: whether there is the convolution. Without it channels are normalised and multiplied as they come.
        join: "concat" (the paper's), or "add": product p is added to mixed channel p in place of being appended,
            and what of either is left over stays as it is.

    Shape:
        (B, C, S...) -> (B, C + P, S...), P = k(k-1)/2 or, of blocks, (C // k) k(k-1)/2; with join "add"
        (B, max(C, P), S...). Any number of spatial dims, any floating dtype.

    Raises:
        ValueError: an argument or the input's shape does not fit.

    The paper's module is the one with ``selection="sample"``. For it and for "grouped", call
    :func:`hadaptive.nn.adapt_temperatures` with your optimiser, once, to adapt the temperature.
    """

    _version = 2  # 1 called `cross_hadamard` `expansion`

    def __init__(
        self,
        channels: int,
        k: int,
        norm: str = "dysoft",
        order: str = "rank",
        surrogate: str = "softmax",
        score_kernel: int = 5,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        selection: str | None = None,
        noise: float = 1.0,
        temperature: float | None = None,
        seed: int = 0,
        pairing: str = "triangle",
        mix: bool = True,
        join: str = "concat",
    ) -> None:
        super().__init__()
        check_k(k, channels)
        check_choice("join", join, JOINS)
        self.channels = channels
        self.mix: nn.Module = nn.Identity()
        if mix:  # no bias: the BatchNorm that follows has one
            self.mix = nn.Conv2d(channels, channels, 1, bias=False, device=device, dtype=dtype)
        self.bn = nn.BatchNorm2d(channels, device=device, dtype=dtype)
        how: Any = {"selection": selection, "noise": noise, "temperature": temperature, "seed": seed}
        self.cross_hadamard = CrossHadamardExpansion(
            channels, k, norm, order, surrogate, score_kernel, device, dtype, **how, pairing=pairing
        )
        self.added = join == "add"
        self.out_channels = self.cross_hadamard.out_channels
        self.products = self.out_channels - channels
        if self.added:
            self.out_channels = max(channels, self.products)

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        y = _as_map(x, self.channels)
        if torch.jit.is_scripting():  # noqa: SIM108 (TorchScript)
            y = self.bn(self.mix(y))
        else:
            y = run_layers((self.mix, self.bn), y)
        y = self.cross_hadamard(y, generator)
        if self.added:
            y = _added(y, self.channels, self.out_channels, self.products)
        return _with_positions_of(y, x)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        if local_metadata.get("version", 1) < 2:
            rename_children(self, state_dict, prefix, {"expansion": "cross_hadamard"})
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


# One node each in timm's FX graphs, which follow train() and eval() so.
register_notrace_module(CrossHadamardExpansion)
register_notrace_module(AdaptiveCrossHadamard)


def expansions(model: nn.Module) -> dict[str, CrossHadamardExpansion]:
    """Every cross-Hadamard expansion in `model` by its qualified name, in order."""
    return {n: m for n, m in model.named_modules() if isinstance(m, CrossHadamardExpansion)}
