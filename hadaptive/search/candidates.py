"""What a latency table is made of: every different candidate of a space as a run of its own."""

import itertools
import math

import numpy as np
from torch import nn

from hadaptive.measure.deploy import layers_of
from hadaptive.measure.setting import LOWERED, Setting
from hadaptive.models import HadaptiveNet
from hadaptive.models.blocks import build_layer
from hadaptive.models.layer_spec import BlockSpec
from hadaptive.search.position import Candidate, Skip, is_dense
from hadaptive.search.space import SearchSpace

CALL = "a call that does nothing"
MAX_JOINED = 16  # combinations of candidates that are timed together

Size = tuple[int, int, int]
Parts = dict[str, tuple[nn.Sequential, Size]]


def _has_activation(layer: Candidate) -> bool:
    if isinstance(layer, BlockSpec) and layer.kind not in ("conv", "products", "poly"):
        return True  # around its depthwise convolution
    return not isinstance(layer, Skip) and layer.act


class Candidates:
    """The different candidates of a space, the head, and a call that does nothing.

    Export makes one convolution of two in a row without an activation between them, so the candidates of such
    positions are timed together, in every combination.

    Args:
        space: the positions and their candidates, of one whole.
        setting: the runtime, and all it depends on.
        parts: what is timed of other wholes, to which this adds what it has of its own.

    Attributes:
        parts: layers in a row by name, and the size of the map they read, (C, H, W).
        places: names of each position's candidates, "" for skip; of the positions after those that are joined.
        joined: names by the candidates' numbers, for the positions that are timed together.
        head: name of the last convolution and the head.
    """

    def __init__(self, space: SearchSpace, setting: Setting, parts: Parts | None = None) -> None:
        self.setting = setting
        self.parts: Parts = {} if parts is None else parts
        self.spec = space.build((0,) * len(space.positions))
        shapes = [(c, side, side) for c, side in space.input_shapes(setting.in_chans, setting.image_size)]
        count = joined_positions(space) if setting.runtime in LOWERED else 0
        self.joined = {
            choice: self._add(layers, shapes[0])
            for choice in itertools.product(*(range(len(position)) for position in space.positions[:count]))
            if (layers := [space.positions[p][c] for p, c in enumerate(choice)])
        }
        self.places = [
            ["" if isinstance(candidate, Skip) else self._add([candidate], shape) for candidate in position]
            for position, shape in list(zip(space.positions, shapes, strict=False))[count:]
        ]
        side = f"on {shapes[-1][0]}x{shapes[-1][1]}"
        self.head = f"head of {space.last_channels} and {space.head_channels}, {space.activation}, {side}"
        if self.head not in self.parts:
            network = HadaptiveNet(self.spec, setting.num_classes, setting.in_chans)
            layers = layers_of(network)
            start = next(i for i, layer in enumerate(layers) if layer is network.last)
            self.parts[self.head] = (nn.Sequential(*layers[start:]), shapes[-1])
        self.parts.setdefault(CALL, (nn.Sequential(nn.ReLU()), (shapes[-1][0], 1, 1)))

    def _add(self, layers: list[Candidate], size: Size) -> str:
        """The name of layers in a row, which are built where there is none of it yet."""
        name = f"{' then '.join(map(repr, layers))} on {size[0]}x{size[1]}{self._kind(layers)}"
        if name not in self.parts:
            channels, modules = size[0], []
            for layer in layers:
                assert not isinstance(layer, Skip)
                modules.append(build_layer(channels, layer, self.spec))
                channels = layer.channels
            self.parts[name] = (nn.Sequential(*modules), size)
        return name

    def _kind(self, layers: list[Candidate]) -> str:
        """What is not the same in all networks that have these layers."""
        said = [self.spec.activation] if any(map(_has_activation, layers)) else []
        if self.setting.runtime not in LOWERED:  # where scales are no part of a convolution, nor BatchNorms
            said += ["scaled"] if self.spec.layer_scale is not None else []
            said += ["with branches"] if self.spec.reparam else []
        return "".join(f", {word}" for word in said)

    def times(self, medians: dict[str, float]) -> tuple[tuple[tuple[float, ...], ...], float]:
        """Milliseconds of each candidate at each position (0 for skip), and of the head.

        In a whole network there is one call, and not one for each block; in eager PyTorch a call costs nothing.

        Args:
            medians: of each run, ms.
        """
        call = 0.0 if self.setting.runtime == "pytorch" else medians[CALL]
        own = {name: max(ms - call, 0.0) for name, ms in medians.items()} | {"": 0.0}
        first = shared({choice: own[name] for choice, name in self.joined.items()})
        return (*first, *(tuple(own[name] for name in names) for names in self.places)), own[self.head]


def joined_positions(space: SearchSpace) -> int:
    """How many positions at the start export may make one convolution of; 0 where there are not several."""
    convs = list(itertools.takewhile(lambda position: all(map(is_dense, position)), space.positions))
    count = 1
    while count < len(convs) and any(is_dense(c) and not c.act for c in convs[count - 1]):
        count += 1
    combinations = math.prod(len(position) for position in convs[:count])
    return count if count > 1 and combinations <= MAX_JOINED else 0


def shared(together: dict[tuple[int, ...], float]) -> tuple[tuple[float, ...], ...]:
    """Times of several positions' candidates whose sums come closest to those measured of all combinations.

    Args:
        together: ms by the candidates' numbers, of every combination; may be empty.
    """
    if not together:
        return ()
    counts = [max(numbers) + 1 for numbers in zip(*together, strict=True)]
    grid = np.array([together[choice] for choice in itertools.product(*map(range, counts))]).reshape(counts)
    axes = range(len(counts))
    effects = [grid.mean(tuple(other for other in axes if other != axis)) - grid.mean() for axis in axes]
    least = (grid.mean() + sum(effect.min() for effect in effects)) / len(counts)
    return tuple(tuple(float(least + ms - effect.min()) for ms in effect) for effect in effects)
