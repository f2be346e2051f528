"""How candidates of one kind share weights: which of the largest one's a smaller one has."""

import dataclasses
import functools

import torch
from torch import Tensor

from hadaptive.models.layer_spec import BlockSpec, ConvSpec
from hadaptive.search.position import Position

Layer = ConvSpec | BlockSpec
Parts = tuple[int, ...]  # widths of what lies side by side among the channels

# Behind the expansion of an adaptive bottleneck, as below.
_BEHIND = {"depthwise": ("inner", ""), "project": ("out", "inner"), "scale": ("out", "")}

# Of each kind of block, by the beginning of its parameters' names: what its channels out and in are.
_CHANNELS = {
    "ghost": {
        "expansion.primary": ("half", "in"),
        "expansion.cheap": ("half", ""),
        **_BEHIND,
    },
    "inverted": {
        "expansion": ("inner", "in"),
        **_BEHIND,
    },
    "ach": {
        "expansion.mix": ("in", "in"),
        "expansion.bn": ("in", ""),
        **_BEHIND,
    },
    "products": {
        "depthwise": ("in", ""),
        "factors": ("factors", "in"),
        "norm": ("inner", ""),
        "project": ("out", "inner"),
        "after": ("out", ""),
        "scale": ("out", ""),
    },
    "poly": {
        "mix": ("inner", "in"),
        "wide": ("inner", ""),
        "narrow": ("inner", ""),
        "project": ("out", "inner"),
        "scale": ("out", ""),
    },
    "conv": {"": ("out", "in")},
    "head": {"last": ("last", "in"), "conv_head": ("hidden", "last"), "classifier": ("", "hidden")},
}


def is_alone(layer: Layer) -> bool:
    """Whether its channels have other roles at each width, so that it shares no weights."""
    return isinstance(layer, BlockSpec) and (layer.groups > 1 or layer.pairing == "blocks")


def name_of(layer: Layer) -> str:
    """What the weights of a layer are called; as they were before a block could be joined otherwise."""
    return repr(layer).replace(", join='concat'", "").replace(".", "_")


def family_of(block: BlockSpec, position: Position) -> BlockSpec:
    """The largest of a position's candidates that share weights with this one."""
    own = [x for x in position if isinstance(x, BlockSpec) and kind_of(x) == kind_of(block)]
    return dataclasses.replace(
        block,
        kernel=max(x.kernel for x in own),
        ratio=block.ratio and max(x.ratio or 0 for x in own),
        width=block.width and max(x.width or 0 for x in own),
        after=any(x.after for x in own),
    )


@functools.cache
def kind_of(layer: Layer) -> Layer:
    """A candidate without its sizes: two of a position that are equal so share their weights."""
    if not isinstance(layer, BlockSpec) or layer.kind == "conv":
        return layer
    kernel = 3 if layer.kernel % 2 else 2  # the middle of an odd kernel is no even one
    width = layer.width and min(2, layer.width)
    return dataclasses.replace(layer, kernel=kernel, ratio=layer.ratio and 1.0, width=width, after=False)


def parts_of(block: BlockSpec, channels: int) -> dict[str, Parts]:
    """What lies side by side among a block's channels."""
    parts: dict[str, Parts] = {"in": (channels,), "out": (block.channels,)}
    added = block.join == "add"
    if block.kind == "ghost":
        half = -(-int(channels * (block.ratio or 1)) // 2)
        parts |= {"half": (half,), "inner": (half,) if added else (half, half)}
    elif block.kind == "inverted":
        parts["inner"] = (int(channels * (block.ratio or 1)),)
    elif block.kind == "ach":
        k = block.k or 0
        pairs = k * (k - 1) // 2
        parts["inner"] = (max(channels, pairs),) if added else (channels, pairs)
    elif block.kind == "products":
        k, width = block.k or 0, block.width or 0
        parts |= {"factors": (width,) * k, "inner": (width,) * (k * (k - 1) // 2)}
    elif block.kind == "poly":
        parts["inner"] = (channels // 2,) * 2
    return parts


def _rows(small: Parts, large: Parts) -> Tensor:
    """Numbers of the larger one's channels that the smaller one has."""
    starts = [sum(large[:n]) for n in range(len(large))]
    return torch.cat([torch.arange(start, start + width) for start, width in zip(starts, small, strict=True)])


class Cut:
    """Takes a layer's weights out of those of its family's largest.

    Args:
        kind: of block, or "head".
        small, large: what lies side by side among the channels of either.
    """

    def __init__(self, kind: str, small: dict[str, Parts], large: dict[str, Parts]) -> None:
        self.names = _CHANNELS[kind]
        self.rows = {name: _rows(parts, large[name]) for name, parts in small.items()}
        self.first = {name for name, parts in small.items() if len(parts) == 1}

    def __call__(self, name: str, weight: Tensor, like: torch.Size) -> Tensor:
        """The part of `weight` that has the shape `like`."""
        own = next((pair for prefix, pair in self.names.items() if name.startswith(prefix)), ("", ""))
        for dim, key in enumerate(own[: weight.dim()]):
            if weight.shape[dim] == like[dim]:
                continue
            if key in self.first:
                weight = weight.narrow(dim, 0, like[dim])
            else:
                if self.rows[key].device != weight.device:
                    self.rows[key] = self.rows[key].to(weight.device)
                weight = weight.index_select(dim, self.rows[key])
        if weight.dim() == 4 and weight.shape[-1] > like[-1]:
            edge, kernel = (weight.shape[-1] - like[-1]) // 2, like[-1]
            weight = weight[..., edge : edge + kernel, edge : edge + kernel]
        return weight
