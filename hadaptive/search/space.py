"""A search space is data: the positions of a network, and the candidates for each.

A space has the shape of a :class:`NetSpec` with a tuple of candidates wherever the spec has one layer. The
candidates of a position agree on stride and channels, so that any of them fits between its neighbours; `skip`
stands for no block. A choice is one candidate's number for each position, in order, and then, where a space has
several widths or alternatives, the number of one of their combinations; it builds a NetSpec.

    >>> space = SearchSpace.load("my_space.json")
    >>> spec = space.build(space.random(torch.Generator().manual_seed(0)))

The ones that ship are in :mod:`hadaptive.search.spaces`.
"""

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from hadaptive.errors import UserError
from hadaptive.files import json_text, write_json
from hadaptive.models.documents import as_fields, as_list, contents, without_later
from hadaptive.models.layer_spec import BlockSpec, ConvSpec
from hadaptive.models.spec import NetSpec, check_block
from hadaptive.search.position import (
    SKIP,
    Candidate,
    Position,
    Skip,
    align,
    check_agree,
    layers_at,
    scaled,
    sides_after,
)
from hadaptive.search.whole import OF_THE_NETWORK, Alternatives, Whole, as_alternatives, check_widths, wholes_of

FORMAT = "hadaptive-space"
VERSION = 1

Choice = tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """Positions and their candidates.

    Attributes:
        name: for people; no effect.
        stem: candidates for the first convolution.
        stage1: a tuple of candidates for each convolution of stage 1.
        stages: for each stage a tuple of positions; a position is a tuple of blocks, with a `Skip` where the block
            may be left out (stride 1 and unchanged width only).
        last_channels, head_channels, order, surrogate, selection, noise, temperature, score_kernel, mix,
            activation, reparam, layer_scale: as in :class:`NetSpec`.
        widths: factors of all widths in the stages, each above 0 and at most 1; candidates are written for 1.
            Numbers of single channels (k of ACH and of products of width 1) stay.
        alternatives: values of some of these fields, by name, of which each network takes one of each: of
            `activation`, `last_channels`, `head_channels`, `reparam` and `layer_scale`. The field itself is the
            first of them then.

    Raises:
        UserError: candidates do not fit each other or their position, or a factor leaves parts of channels.
    """

    name: str
    stem: tuple[ConvSpec, ...]
    stage1: tuple[tuple[ConvSpec, ...], ...]
    stages: tuple[tuple[tuple[BlockSpec | Skip, ...], ...], ...]
    last_channels: int | None = 960
    head_channels: int | None = 1280
    order: str = "rank"
    surrogate: str = "softmax"
    selection: str = "sample"
    noise: float = 1.0
    temperature: float | None = None
    score_kernel: int = 5
    mix: bool = True
    activation: str = "hardswish"
    reparam: bool = False
    layer_scale: float | None = None
    widths: tuple[float, ...] = (1.0,)
    alternatives: Alternatives = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_widths(self.widths)
        object.__setattr__(self, "alternatives", as_alternatives(self.alternatives))
        for name, values in self.alternatives.items():  # the field itself is of no network then
            object.__setattr__(self, name, values[0])
        if self.surrogate == "sfess":
            raise UserError("a search does not know the losses that surrogate 'sfess' learns from: choose another")
        for number, position in enumerate(self.positions, start=1):
            check_agree(f"position {number}", position)
        if not self.stages or not all(self.stages):
            raise UserError("a space needs at least one stage, and each stage at least one position")
        number = 2 + len(self.stage1)
        for stage in self.stages:
            # NetSpec wants a block in every stage, so not every position of one may be skipped.
            if all(SKIP in position for position in stage):
                raise UserError(f"every position of a stage may be skipped: position {number} must not be")
            number += len(stage)
        for width in self.widths:
            self._check_blocks(width)
        for number in range(len(self.wholes)):  # what is left to check is NetSpec's
            self.build((*(0,) * len(self.positions), *([number] if self.varies else [])))

    def _check_blocks(self, width: float) -> None:
        """Every block fits what comes before it, in networks of this width."""
        channels = (self.stage1[-1] if self.stage1 else self.stem)[0].channels
        at = f" at {width:g} of the width" if len(self.widths) > 1 else ""
        for number, position in enumerate(itertools.chain.from_iterable(self.stages), 2 + len(self.stage1)):
            try:
                blocks = [b for b in (scaled(c, width) for c in position) if isinstance(b, BlockSpec)]
                for block in blocks:
                    check_block(block, channels)
            except UserError as error:
                raise UserError(f"position {number}{at}: {error}") from None
            if len(set(blocks)) < len(blocks):
                raise UserError(f"position {number}{at} has the same candidate twice")
            if SKIP in position and (blocks[0].stride > 1 or blocks[0].channels != channels):
                raise UserError(f"position {number} changes the map's shape and cannot be skipped")
            channels = blocks[0].channels

    @cached_property
    def wholes(self) -> tuple[Whole, ...]:
        """What the last number of a choice says of a whole network."""
        return wholes_of(self.widths, self.alternatives)

    @property
    def varies(self) -> bool:
        """Whether a choice has that number: the space has several widths, or alternatives."""
        return len(self.wholes) > 1

    @property
    def counts(self) -> tuple[int, ...]:
        """How many numbers there are at each place of a choice."""
        return (*map(len, self.positions), *([len(self.wholes)] if self.varies else []))

    def whole_of(self, choice: Choice) -> Whole:
        """How wide a choice's network is, and which alternatives it takes."""
        return self.wholes[choice[-1] if self.varies else 0]

    def taken(self, choice: Choice) -> list[Candidate]:
        """The candidates that a choice takes, as wide as it says."""
        self.check_choice(choice)
        width, convs = self.whole_of(choice).width, 1 + len(self.stage1)
        found = [position[number] for position, number in zip(self.positions, choice, strict=False)]
        return [*found[:convs], *(scaled(candidate, width) for candidate in found[convs:])]

    def of_whole(self, number: int) -> "SearchSpace":
        """The space of one of its widths and of one of each of its alternatives alone."""
        whole = self.wholes[number]
        stages = tuple(
            tuple(tuple(scaled(candidate, whole.width) for candidate in position) for position in stage)
            for stage in self.stages
        )
        fields: dict[str, Any] = dict(whole.fields)
        return dataclasses.replace(self, stages=stages, widths=(1.0,), alternatives={}, **fields)

    @property
    def positions(self) -> tuple[Position, ...]:
        """The candidates of every position: stem, stage 1, then the stages."""
        return (self.stem, *self.stage1, *itertools.chain.from_iterable(self.stages))

    @property
    def size(self) -> int:
        """How many choices there are. Several may build one network, where skipped positions look alike."""
        return math.prod(self.counts)

    def input_shapes(self, in_chans: int, image_size: int) -> list[tuple[int, int]]:
        """Channels and side in pixels of the map that enters each position, then of what leaves the last.

        Raises:
            UserError: candidates of a position disagree on the size they leave, or nothing is left of the image.
        """
        shapes, channels, side = [(in_chans, image_size)], in_chans, image_size
        for number, position in enumerate(self.positions, start=1):
            layers = layers_at(position)
            sides = sides_after(layers, side)
            if min(sides) < 1:
                raise UserError(
                    f"{image_size}x{image_size} images are too small: nothing is left at position {number}"
                )
            if len(sides) > 1:
                kernels = " and ".join(map(str, sorted({x.kernel for x in layers})))
                good = self._even_size(image_size)
                raise UserError(
                    f"at position {number} of {self.name} the map is {side} pixels wide, of which kernels "
                    f"{kernels} leave different sizes: choose an image size that halves evenly"
                    + (f", such as {good}" if good else "")
                )
            channels, side = layers[0].channels, sides.pop()
            shapes.append((channels, side))
        return shapes

    def _even_size(self, image_size: int) -> int | None:
        """The image size closest to this one on which all candidates agree, if there is one nearby."""
        for size in sorted(range(max(8, image_size // 2), 2 * image_size), key=lambda s: abs(s - image_size)):
            side, even = size, True
            for position in self.positions:
                sides = sides_after(layers_at(position), side)
                side = min(sides)
                even = even and len(sides) == 1 and side > 0
            if even:
                return size
        return None

    @property
    def fingerprint(self) -> str:
        """Twelve characters that two spaces share only if they are the same but for their names."""
        data = json_text({**self.to_dict(), "name": ""}, sort_keys=True)
        return hashlib.sha256(data.encode()).hexdigest()[:12]

    def with_stem_strides(self, *strides: int) -> "SearchSpace":
        """The same space with other strides in its first convolutions, as :meth:`NetSpec.with_stem_strides`.

        Candidates that become equal are kept once.

        Raises:
            UserError: a stride is not 1 or 2, or there are more strides than strided convolutions.
        """
        convs = list(self.positions[: 1 + len(self.stage1)])
        changed: list[list[ConvSpec]] = [[] for _ in convs]
        most = max(len(candidates) for candidates in convs)
        blocks = (0,) * (len(self.counts) - len(convs))
        for turn in range(most):
            choice = tuple(min(turn, len(candidates) - 1) for candidates in convs)
            spec = self.build((*choice, *blocks)).with_stem_strides(*strides)
            for candidates, conv in zip(changed, spec.convs, strict=True):
                if conv not in candidates:
                    candidates.append(conv)
        stem, *stage1 = (tuple(candidates) for candidates in changed)
        return dataclasses.replace(self, stem=stem, stage1=tuple(stage1))

    def check_choice(self, choice: Choice) -> None:
        """Raise one clear UserError unless `choice` is a candidate's number for each position."""
        counts = self.counts
        if len(choice) != len(counts):
            raise UserError(f"a choice needs {len(counts)} numbers, got {len(choice)}")
        for number, (chosen, count) in enumerate(zip(choice, counts, strict=True), start=1):
            if not 0 <= chosen < count:
                what = f"position {number} has candidates"
                if number > len(self.positions):
                    what = "there are widths and alternatives"
                raise UserError(f"{what} 0 to {count - 1}, got {chosen}")

    def build(self, choice: Choice, name: str | None = None) -> NetSpec:
        """The network that takes these candidates.

        Raises:
            UserError: `choice` does not fit the space.
        """
        stem, *rest = self.taken(choice)
        stage1, blocks = rest[: len(self.stage1)], iter(rest[len(self.stage1) :])
        stages = []
        for stage in self.stages:
            own = itertools.islice(blocks, len(stage))
            stages.append(tuple(block for block in own if isinstance(block, BlockSpec)))
        assert isinstance(stem, ConvSpec)
        return NetSpec(
            name or f"{self.name}-{'-'.join(map(str, choice))}",
            stem,
            tuple(conv for conv in stage1 if isinstance(conv, ConvSpec)),
            tuple(stages),
            **{**self._of_the_network(), **dict(self.whole_of(choice).fields)},
        )

    def _of_the_network(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in OF_THE_NETWORK}

    def random(self, generator: torch.Generator) -> Choice:
        """A choice drawn evenly, position by position."""
        return tuple(int(torch.randint(count, (), generator=generator)) for count in self.counts)

    def neighbours(self, choice: Choice) -> Iterator[Choice]:
        """The choices that differ from this one in one number."""
        self.check_choice(choice)
        for place, count in enumerate(self.counts):
            for other in range(count):
                if other != choice[place]:
                    yield (*choice[:place], other, *choice[place + 1 :])

    def find(self, spec: NetSpec) -> Choice | None:
        """A choice that builds `spec`, whatever its name, or None if the space does not hold it."""
        if len(spec.stage1) != len(self.stage1) or len(spec.stages) != len(self.stages):
            return None
        for number, whole in enumerate(self.wholes):
            fields = {**self._of_the_network(), **dict(whole.fields)}
            if any(value != getattr(spec, name) for name, value in fields.items()):
                continue
            choice = self._find_at(whole.width, spec)
            if choice is not None:
                return (*choice, number) if self.varies else choice
        return None

    def _find_at(self, width: float, spec: NetSpec) -> Choice | None:
        choice: list[int] = []
        for conv, candidates in zip(spec.convs, (self.stem, *self.stage1), strict=True):
            if conv not in candidates:
                return None
            choice.append(candidates.index(conv))
        for blocks, stage in zip(spec.stages, self.stages, strict=True):
            found = align(blocks, tuple(tuple(scaled(c, width) for c in position) for position in stage))
            if found is None:
                return None
            choice.extend(found)
        return tuple(choice)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""

        def plain(candidate: Candidate) -> dict[str, Any]:
            if isinstance(candidate, Skip):
                return {"kind": "skip"}
            data = without_later(type(candidate), dataclasses.asdict(candidate))
            return {key: value for key, value in data.items() if value is not None}

        def all_plain(positions: tuple[Position, ...]) -> list[list[dict[str, Any]]]:
            return [[plain(candidate) for candidate in position] for position in positions]

        rest = without_later(NetSpec, self._of_the_network())
        return {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "stem": all_plain((self.stem,))[0],
            "stage1": all_plain(self.stage1),
            "stages": [all_plain(stage) for stage in self.stages],
            **rest,
            **({} if self.widths == (1.0,) else {"widths": list(self.widths)}),
            **({"alternatives": {k: list(v) for k, v in self.alternatives.items()}} if self.alternatives else {}),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "SearchSpace":
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: not a search space, a newer version of one, or something in it does not fit.
        """
        rest = contents(cls, "search space", data, FORMAT, VERSION)

        def conv(item: Any) -> ConvSpec:
            return ConvSpec(**as_fields(ConvSpec, "a convolution", item))

        def block(item: Any) -> BlockSpec | Skip:
            if item == {"kind": "skip"}:
                return SKIP
            return BlockSpec(**as_fields(BlockSpec, "a block", item))

        rest["stem"] = tuple(conv(item) for item in as_list("stem", rest["stem"]))
        rest["stage1"] = tuple(
            tuple(conv(item) for item in as_list("a stage-1 position", position))
            for position in as_list("stage1", rest["stage1"])
        )
        rest["stages"] = tuple(
            tuple(
                tuple(block(item) for item in as_list("a position", position))
                for position in as_list("a stage", stage)
            )
            for stage in as_list("stages", rest["stages"])
        )
        if "widths" in rest:
            rest["widths"] = tuple(as_list("widths", rest["widths"]))
        return cls(**rest)

    def save(self, path: str | Path) -> None:
        """Write the space as JSON."""
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> "SearchSpace":
        """Read a space from JSON.

        Raises:
            UserError: the file cannot be read, is not JSON, or is not a search space.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise UserError(f"{path}: {error}") from None
