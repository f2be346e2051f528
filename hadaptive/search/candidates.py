"""What a latency table is made of: every different candidate of a space as a run of its own."""

import itertools
import math
from typing import Any

import numpy as np
from torch import nn

from hadaptive.measure.deploy import layers_of
from hadaptive.measure.setting import LOWERED, Setting
from hadaptive.models import HadaptiveNet
from hadaptive.search.position import Skip, is_dense
from hadaptive.search.space import SearchSpace
from hadaptive.search.supernet import Supernet

CALL = "a call that does nothing"
MAX_JOINED = 16  # combinations of candidates that are timed together

Size = tuple[int, int, int]


class Candidates:
    """The different candidates of a space, the head, and a call that does nothing.

    Export makes one convolution of two in a row without an activation between them, so the candidates of such
    positions are timed together, in every combination.

    Args:
        space: the positions and their candidates.
        setting: the runtime, and all it depends on.

    Attributes:
        parts: layers in a row by name, and the size of the map they read, (C, H, W).
        places: names of each position's candidates, "" for skip; of the positions after those that are joined.
        joined: names by the candidates' numbers, for the positions that are timed together.
        head: name of the last convolution and the head.
    """

    def __init__(self, space: SearchSpace, setting: Setting) -> None:
        self.setting = setting
        # What is not the same in all networks of a space; deployed, a scale is part of a convolution.
        self.kind = f", {space.activation}"
        if setting.runtime not in LOWERED and space.layer_scale is not None:
            self.kind += ", scaled"
        self.parts: dict[str, tuple[nn.Sequential, Size]] = {}
        shapes = [(c, side, side) for c, side in space.input_shapes(setting.in_chans, setting.image_size)]
        modules: Any = Supernet(space, setting.num_classes, setting.in_chans).positions
        count = joined_positions(space) if setting.runtime in LOWERED else 0
        self.joined = {
            choice: self._add(
                " then ".join(repr(space.positions[p][c]) for p, c in enumerate(choice)),
                [modules[p][c] for p, c in enumerate(choice)],
                shapes[0],
            )
            for choice in itertools.product(*(range(len(position)) for position in space.positions[:count]))
            if choice
        }
        self.places = [
            [
                "" if isinstance(candidate, Skip) else self._add(repr(candidate), [module], shape)
                for candidate, module in zip(candidates, row, strict=True)
            ]
            for candidates, row, shape in list(zip(space.positions, modules, shapes, strict=False))[count:]
        ]
        network = HadaptiveNet(space.build((0,) * len(space.positions)), setting.num_classes, setting.in_chans)
        layers = layers_of(network)
        start = next(i for i, layer in enumerate(layers) if layer is network.last)
        self.head = self._add(
            f"head of {space.last_channels} and {space.head_channels}", layers[start:], shapes[-1]
        )
        self._add(CALL, [nn.ReLU()], (shapes[-1][0], 1, 1))

    def _add(self, key: str, layers: list[nn.Module], size: Size) -> str:
        name = f"{key} on {size[0]}x{size[1]}{self.kind}" if key != CALL else CALL
        self.parts.setdefault(name, (nn.Sequential(*layers), size))
        return name

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
