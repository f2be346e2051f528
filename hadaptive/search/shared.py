"""A supernet for large spaces: candidates of one kind share the weights of the largest of them.

A smaller kernel is the middle of the larger one, a narrower layer the first channels of the wider one, and a block
without a second convolution the same block with it. What is inside a block in several parts, as the blocks of
channels that are multiplied with each other, is narrowed part by part, so that every channel keeps its role.

Source: Once-for-All (arXiv 1908.09791) for kernels and widths that are parts of larger ones; FairNAS
(arXiv 1907.01845) for paths in which all candidates have their turn.
"""

import dataclasses
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import LayerScale2d
from torch import Tensor, nn
from torch.func import functional_call
from torch.types import Device

from hadaptive.models import HadaptiveNet, NetSpec
from hadaptive.models.blocks import build_layer
from hadaptive.models.layer_spec import BlockSpec, ConvSpec
from hadaptive.nn.state import rename_children
from hadaptive.search.cuts import Cut, Layer, Parts, family_of, is_alone, name_of, parts_of
from hadaptive.search.position import SKIP, Skip, layers_at, scaled
from hadaptive.search.space import Choice, SearchSpace
from hadaptive.search.whole import Whole


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
    cut: Cut

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
        space: the positions, their candidates, the widths and alternatives.
        num_classes: outputs.
        in_chans: image channels.
        drop_rate: dropout before the classifier.

    Shape:
        (B, in_chans, H, W) -> (B, num_classes).
    """

    def __init__(self, space: SearchSpace, num_classes: int, in_chans: int = 3, drop_rate: float = 0.3) -> None:
        super().__init__()
        self.space, self.num_classes, self.in_chans, self.drop_rate = space, num_classes, in_chans, drop_rate
        self._widths = [in_chans, *(layers_at(position)[0].channels for position in space.positions)]
        self._template = dataclasses.replace(space, widths=(1.0,), alternatives={}).build(
            (0,) * len(space.positions)
        )
        self._specs: dict[Any, NetSpec] = {}
        self._slices: dict[Any, _Slice] = {}
        self._shells: dict[Any, nn.Module] = {}
        self.banks = nn.ModuleList(nn.ModuleDict() for _ in space.positions)
        self.tails = nn.ModuleDict()
        first: dict[Any, Whole] = {}  # of those whose layers have banks of their own
        for whole in space.wholes:
            self._tail_bank(whole)
            first.setdefault((whole.width, self._spec(whole).reparam), whole)
        for whole in first.values():
            for number, position in enumerate(space.positions):
                for candidate in layers_at(position):
                    self._bank(number, candidate, whole)

    def _spec(self, whole: Whole) -> NetSpec:
        """Any network, of which what stands beside the layers is as `whole` says."""
        if whole.fields not in self._specs:
            self._specs[whole.fields] = dataclasses.replace(self._template, **dict(whole.fields))
        return self._specs[whole.fields]

    def _entering(self, number: int, whole: Whole) -> int:
        """Channels that enter a position, or, behind the last, the head."""
        channels = self._widths[number]
        return channels if number <= 1 + len(self.space.stage1) else round(channels * whole.width)

    # -- layers of the positions --------------------------------------------------------------------------------

    def _bank(self, number: int, candidate: Layer, whole: Whole) -> tuple[nn.Module, Layer, int]:
        """The layer that has a candidate's weights, what it is, and how many channels it reads."""
        alone, family = is_alone(candidate), scaled(candidate, whole.width)
        assert not isinstance(family, Skip)
        if isinstance(candidate, BlockSpec) and not alone:
            family = family_of(candidate, self.space.positions[number])
        channels = self._entering(number, whole) if alone else self._widths[number]
        spec, banks = self._spec(whole), self.banks[number]
        assert isinstance(banks, nn.ModuleDict)
        name = name_of(family) + " reparam" * spec.reparam
        if name not in banks:
            scales = self.space.alternatives.get("layer_scale", (spec.layer_scale,))
            scale = next((s for s in scales if s is not None), None)
            bank = build_layer(channels, family, dataclasses.replace(spec, layer_scale=scale))
            if scale is not None and isinstance(getattr(bank, "scale", None), nn.Identity):
                bank.scale = LayerScale2d(family.channels, scale)  # a narrower one may be residual
            banks[name] = _without_statistics(bank)
        return banks[name], family, channels

    def _part(self, number: int, candidate: Layer, whole: Whole) -> _Slice:
        """A candidate of a position in a network."""
        spec = self._spec(whole)
        key = (number, candidate, whole.width, spec.activation, spec.reparam, spec.layer_scale)
        if key not in self._slices:
            small, channels = scaled(candidate, whole.width), self._entering(number, whole)
            assert not isinstance(small, Skip)
            bank, family, before = self._bank(number, candidate, whole)
            if isinstance(family, ConvSpec) or isinstance(small, ConvSpec):
                kind, sizes = "conv", ({"in": (channels,), "out": (small.channels,)},) * 2
            else:
                kind, sizes = family.kind, (parts_of(small, channels), parts_of(family, before))
            shell = self._shell((channels, small, *key[3:]), lambda d: build_layer(channels, small, spec, d))
            self._slices[key] = _Slice(shell, bank, Cut(kind, *sizes))
        return self._slices[key]

    def _shell(self, key: Any, make: Callable[[Device], nn.Module]) -> nn.Module:
        if key not in self._shells:
            shell = _without_statistics(make("meta"))
            if any(True for _ in shell.buffers()):  # they are not weights: the layer needs its own
                with torch.random.fork_rng(devices=[]):  # it is made in the middle of a step
                    shell = _without_statistics(make(None))
            self._shells[key] = shell.train(self.training)
        return self._shells[key]

    # -- the head -----------------------------------------------------------------------------------------------

    def _tail_bank(self, whole: Whole) -> nn.Module:
        spec = self._spec(whole)
        name = f"{spec.last_channels} {spec.head_channels}"
        if name not in self.tails:
            self.tails[name] = _without_statistics(self._new_tail(dataclasses.replace(whole, width=1.0)))
        return self.tails[name]

    def _tail(self, whole: Whole) -> _Slice:
        """The last layers of a network."""
        if whole not in self._slices:
            shell = self._shell(whole, lambda device: self._new_tail(whole, device))
            sizes = (self._of_tail(whole, self._entering(-1, whole)), self._of_tail(whole, self._widths[-1]))
            self._slices[whole] = _Slice(shell, self._tail_bank(whole), Cut("head", *sizes))
        return self._slices[whole]

    def _new_tail(self, whole: Whole, device: Device = None) -> nn.Module:
        spec = self._spec(whole)
        if whole.width != 1:
            which = self.space.wholes.index(whole)
            spec = self.space.build((*(0,) * len(self.space.positions), which))
        return _tail(HadaptiveNet(spec, self.num_classes, self.in_chans, device=device), self.drop_rate)

    def _of_tail(self, whole: Whole, channels: int) -> dict[str, Parts]:
        spec = self._spec(whole)
        last = spec.last_channels or channels
        return {"in": (channels,), "last": (last,), "hidden": (spec.head_channels or last,)}

    # -- networks -----------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # There was one head, before there were alternatives of it.
        rename_children(self, state_dict, prefix, {"tail": f"tails.{next(iter(self.tails))}"})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def train(self, mode: bool = True) -> "SharedSupernet":
        for shell in self._shells.values():
            shell.train(mode)
        return super().train(mode)

    def _along(self, choice: Choice) -> Iterator[_Slice]:
        self.space.check_choice(choice)
        whole = self.space.whole_of(choice)
        for number, position in enumerate(self.space.positions):
            candidate = position[choice[number]]
            if not isinstance(candidate, Skip):
                yield self._part(number, candidate, whole)
        yield self._tail(whole)

    def forward(self, x: Tensor, choice: Choice) -> Tensor:
        """Run the network of one choice."""
        for part in self._along(choice):
            x = part(x)
        return x

    def smallest(self) -> tuple[Choice, int]:
        """The network of fewest parameters, and their number."""
        sizes: dict[Any, int] = {SKIP: 0}
        found = []
        for which, whole in enumerate(self.space.wholes):
            spec, choice = self._spec(whole), []
            total = _count(self._new_tail(whole, "meta"))
            for number, position in enumerate(self.space.positions):
                channels, own = self._entering(number, whole), []
                for candidate in position:
                    small = scaled(candidate, whole.width)
                    key = small if isinstance(small, Skip) else (channels, small, spec.reparam, spec.layer_scale)
                    if key not in sizes:
                        assert not isinstance(small, Skip)
                        sizes[key] = _count(build_layer(channels, small, spec, "meta"))
                    own.append(sizes[key])
                choice.append(own.index(min(own)))
                total += min(own)
            found.append((total, (*choice, *([which] if self.space.varies else []))))
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
