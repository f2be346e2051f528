"""A supernet for large spaces: candidates of one kind share the weights of the largest of them.

A smaller kernel is the middle of the larger one, a narrower layer the first channels of the wider one, and a block
without a second convolution the same block with it. What is inside a block in several parts, as the blocks of
channels that are multiplied with each other, is narrowed part by part, so that every channel keeps its role.

Source: Once-for-All (arXiv 1908.09791) for kernels and widths that are parts of larger ones; FairNAS
(arXiv 1907.01845) for paths in which all candidates have their turn.
"""

import dataclasses
import functools
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.types import Device

from hadaptive.data import derive_seed
from hadaptive.models import HadaptiveNet, NetSpec
from hadaptive.models.blocks import build_block, conv_norm_act
from hadaptive.models.layer_spec import BlockSpec, ConvSpec
from hadaptive.search.position import Candidate, Position, Skip, layers_at, scaled
from hadaptive.search.space import Choice, SearchSpace

Layer = ConvSpec | BlockSpec
Parts = tuple[int, ...]  # widths of what lies side by side among the channels

# Of each kind of block, by the beginning of its parameters' names: what its channels out and in are.
_CHANNELS = {
    "ghost": {
        "expansion.primary": ("half", "in"),
        "expansion.cheap": ("half", ""),
        "depthwise": ("inner", ""),
        "project": ("out", "inner"),
    },
    "inverted": {"expansion": ("inner", "in"), "depthwise": ("inner", ""), "project": ("out", "inner")},
    "ach": {
        "expansion.mix": ("in", "in"),
        "expansion.bn": ("in", ""),
        "depthwise": ("inner", ""),
        "project": ("out", "inner"),
    },
    "products": {
        "depthwise": ("in", ""),
        "factors": ("factors", "in"),
        "norm": ("inner", ""),
        "project": ("out", "inner"),
        "after": ("out", ""),
    },
    "poly": {
        "mix": ("inner", "in"),
        "wide": ("inner", ""),
        "narrow": ("inner", ""),
        "project": ("out", "inner"),
    },
    "conv": {"": ("out", "in")},
    "head": {"last": ("last", "in"), "conv_head": ("hidden", "last"), "classifier": ("", "hidden")},
}


def _is_alone(layer: Layer) -> bool:
    """Whether its channels have other roles at each width, so that it shares no weights."""
    return isinstance(layer, BlockSpec) and (layer.groups > 1 or layer.pairing == "blocks")


def _family(block: BlockSpec, position: Position) -> BlockSpec:
    """The largest of a position's candidates that share weights with this one."""
    own = [x for x in position if isinstance(x, BlockSpec) and _kind(x) == _kind(block)]
    return dataclasses.replace(
        block,
        kernel=max(x.kernel for x in own),
        ratio=block.ratio and max(x.ratio or 0 for x in own),
        width=block.width and max(x.width or 0 for x in own),
        after=any(x.after for x in own),
    )


@functools.cache
def _kind(layer: Layer) -> Layer:
    """A candidate without its sizes: two of a position that are equal so share their weights."""
    if not isinstance(layer, BlockSpec) or layer.kind == "conv":
        return layer
    kernel = 3 if layer.kernel % 2 else 2  # the middle of an odd kernel is no even one
    width = layer.width and min(2, layer.width)
    return dataclasses.replace(layer, kernel=kernel, ratio=layer.ratio and 1.0, width=width, after=False)


def _parts(block: BlockSpec, channels: int) -> dict[str, Parts]:
    """What lies side by side among a block's channels."""
    parts: dict[str, Parts] = {"in": (channels,), "out": (block.channels,)}
    if block.kind == "ghost":
        half = -(-int(channels * (block.ratio or 1)) // 2)
        parts |= {"half": (half,), "inner": (half, half)}
    elif block.kind == "inverted":
        parts["inner"] = (int(channels * (block.ratio or 1)),)
    elif block.kind == "ach":
        k = block.k or 0
        parts["inner"] = (channels, k * (k - 1) // 2)
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


class _Cut:
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


def _without_statistics(layer: nn.Module) -> nn.Module:
    """A layer whose BatchNorm knows its batch alone: the statistics of one size say nothing about another."""
    for module in layer.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
    return layer


@dataclass(frozen=True)
class _Slice:
    """A layer of one size, and where its weights are.

    Attributes:
        shell: the layer; its own weights are never used.
        bank: the largest of its family, in the supernet.
        cut: how its weights are taken out of those.
    """

    shell: nn.Module
    bank: nn.Module
    cut: _Cut

    def weights(self) -> dict[str, Tensor]:
        """Its weights by their names, parts of the bank's."""
        bank = dict(self.bank.named_parameters())
        return {name: self.cut(name, bank[name], own.shape) for name, own in self.shell.named_parameters()}

    def __call__(self, x: Tensor) -> Tensor:
        if any(buffer.device != x.device for buffer in self.shell.buffers()):
            self.shell.to(x.device)
        return functional_call(self.shell, self.weights(), (x,))


def _count(layer: nn.Module) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def _tail(network: HadaptiveNet, drop_rate: float) -> nn.Sequential:
    """A network's last layers under the names they have there."""
    layers = OrderedDict(
        last=network.last,
        global_pool=network.global_pool,
        conv_head=network.conv_head,
        act_head=network.act_head,
        flatten=network.flatten,
        drop=nn.Dropout(drop_rate),
        classifier=network.classifier,
    )
    return nn.Sequential(layers)


class SharedSupernet(nn.Module):
    """All networks of a space in the weights of its largest candidates.

    BatchNorm normalises with its batch, in training and evaluation; a network that is taken out has running
    statistics, which are still to be estimated. Temperatures of selections stay where they begin.

    Args:
        space: the positions, their candidates, and the widths.
        num_classes: outputs.
        in_chans: image channels.
        drop_rate: dropout before the classifier.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(self, space: SearchSpace, num_classes: int, in_chans: int = 3, drop_rate: float = 0.3) -> None:
        super().__init__()
        self.space, self.num_classes, self.in_chans, self.drop_rate = space, num_classes, in_chans, drop_rate
        convs = 1 + len(space.stage1)
        widths = [in_chans, *(layers_at(position)[0].channels for position in space.positions)]
        self.banks = nn.ModuleList(nn.ModuleDict() for _ in space.positions)
        self.tail = _without_statistics(_tail(self._network(0, 1.0), drop_rate))
        self._slices: dict[tuple[int, float, Layer], _Slice] = {}
        self._tails: dict[float, _Slice] = {}
        self._shells: dict[tuple[int, Layer], nn.Module] = {}
        for which, factor in enumerate(space.widths):
            entering = [w if n <= convs else round(w * factor) for n, w in enumerate(widths)]
            for number, position in enumerate(space.positions):
                for candidate in layers_at(position):
                    own = self._slice(number, candidate, factor, entering[number], widths[number])
                    self._slices[number, factor, candidate] = own
            shell = _without_statistics(_tail(self._network(which, factor), drop_rate))
            cut = _Cut("head", self._of_tail(entering[-1]), self._of_tail(widths[-1]))
            self._tails[factor] = _Slice(shell, self.tail, cut)

    def _network(self, which: int, factor: float) -> HadaptiveNet:
        """Any network of a width, on no device."""
        space = self.space if factor != 1 else dataclasses.replace(self.space, widths=(1.0,))
        choice = (*(0,) * len(space.positions), *([which] if space.has_widths else []))
        return HadaptiveNet(space.build(choice), self.num_classes, self.in_chans)

    def _of_tail(self, channels: int) -> dict[str, Parts]:
        last = self.space.last_channels or channels
        return {"in": (channels,), "last": (last,), "hidden": (self.space.head_channels or last,)}

    def _slice(self, number: int, candidate: Layer, factor: float, channels: int, most: int) -> _Slice:
        """A candidate at a width, which reads `channels` of at most `most`."""
        small = scaled(candidate, factor)
        assert not isinstance(small, Skip)
        family: Layer = small
        if isinstance(candidate, BlockSpec) and not _is_alone(candidate):
            family = _family(candidate, self.space.positions[number])
        before = channels if _is_alone(candidate) else most
        if isinstance(family, ConvSpec) or isinstance(small, ConvSpec):
            kind, sizes = "conv", ({"in": (channels,), "out": (small.channels,)},) * 2
        else:
            kind, sizes = family.kind, (_parts(small, channels), _parts(family, before))
        name, banks = repr(family).replace(".", "_"), self.banks[number]
        assert isinstance(banks, nn.ModuleDict)
        if name not in banks:
            banks[name] = _without_statistics(self._layer(before, family))
        if (channels, small) not in self._shells:
            shell = _without_statistics(self._layer(channels, small, "meta"))
            if any(True for _ in shell.buffers()):  # they are not weights: the layer needs its own
                shell = _without_statistics(self._layer(channels, small))
            self._shells[channels, small] = shell
        return _Slice(self._shells[channels, small], banks[name], _Cut(kind, *sizes))

    def _layer(self, channels: int, layer: Layer, device: Device = None) -> nn.Module:
        if isinstance(layer, ConvSpec):
            return conv_norm_act(channels, layer, device, activation=self.space.activation)
        return build_block(channels, layer, self._template, 0.0, device=device)

    @functools.cached_property
    def _template(self) -> NetSpec:
        return dataclasses.replace(self.space, widths=(1.0,)).build((0,) * len(self.space.positions))

    def train(self, mode: bool = True) -> "SharedSupernet":
        for shell in (*self._shells.values(), *(part.shell for part in self._tails.values())):
            shell.train(mode)
        return super().train(mode)

    def _along(self, choice: Choice) -> Iterator[_Slice]:
        self.space.check_choice(choice)
        factor = self.space.width_of(choice)
        for number, position in enumerate(self.space.positions):
            candidate = position[choice[number]]
            if not isinstance(candidate, Skip):
                yield self._slices[number, factor, candidate]
        yield self._tails[factor]

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """Run the network of one choice."""
        for part in self._along(choice):
            x = part(x)
        return x

    def smallest(self) -> tuple[Choice, int]:
        """The network of fewest parameters, and their number."""
        found = []
        for which, factor in enumerate(self.space.widths):
            total, choice = _count(self._tails[factor].shell), []
            for number, position in enumerate(self.space.positions):
                own = [
                    0 if isinstance(c, Skip) else _count(self._slices[number, factor, c].shell) for c in position
                ]
                choice.append(own.index(min(own)))
                total += min(own)
            found.append((total, (*choice, *([which] if self.space.has_widths else []))))
        total, choice = min(found)
        return choice, total

    @torch.no_grad()
    def network(self, choice: Choice) -> HadaptiveNet:
        """The network of one choice with a copy of its weights, on their device; its statistics are initial."""
        network = HadaptiveNet(self.space.build(choice), self.num_classes, self.in_chans, drop_rate=self.drop_rate)
        *parts, tail = self._along(choice)
        blocks = [network.stem, *itertools.chain.from_iterable(network.stages)]  # pyright: ignore[reportArgumentType]
        for block, part in zip(blocks, parts, strict=True):
            block.load_state_dict({**part.weights(), **dict(part.shell.named_buffers())}, strict=False)
        network.load_state_dict(tail.weights(), strict=False)
        return network.to(next(self.parameters()).device)


def fair_choice(space: SearchSpace, seed: int, step: int) -> Choice:
    """The choice whose turn it is: over many steps, every kind of block and every size of it equally often.

    At each position the kinds take turns in an order drawn anew for each round, and in each round another of a
    kind's sizes, in an order drawn for as many rounds as there are. A position that may be skipped is skipped in a
    quarter of the turns, so that networks of few blocks are trained as well.
    """

    def turn(place: int, number: int, kinds: list[list[int]]) -> int:
        round_, at = divmod(number, len(kinds))
        kind = int(_order(len(kinds), seed, place, round_)[at])
        cycle, own = divmod(round_, len(kinds[kind]))
        return kinds[kind][int(_order(len(kinds[kind]), seed, place, kind, cycle)[own])]

    choice = [turn(place, step, _kinds(position)) for place, position in enumerate(space.positions)]
    if space.has_widths:
        choice.append(turn(len(choice), step, [[n] for n in range(len(space.widths))]))
    return tuple(choice)


def _order(count: int, *numbers: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(*numbers)))


def most_turns(space: SearchSpace) -> int:
    """After how many steps every candidate of a space has had a turn."""
    kinds = [_kinds(position) for position in space.positions]
    return max(len(own) * max(map(len, own)) for own in kinds)


def _kinds(position: Position) -> list[list[int]]:
    """Numbers of a position's candidates by what kind they are, in the turns of a round: a quarter are to skip."""
    kinds: dict[Candidate, list[int]] = {}
    skip: list[int] = []
    for number, candidate in enumerate(position):
        if isinstance(candidate, Skip):
            skip.append(number)
        else:
            kinds.setdefault(_kind(candidate), []).append(number)
    found = list(kinds.values())
    return [*found, *found, *found, *([skip] * len(found))] if skip else found
