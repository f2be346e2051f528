"""What may stand at one position of a network: its candidates, of which each can take the place of another."""

import dataclasses
from dataclasses import dataclass
from typing import TypeGuard

from hadaptive.errors import UserError
from hadaptive.models.layer_spec import BlockSpec, ConvSpec


@dataclass(frozen=True)
class Skip:
    """No block at a position: the map passes as it is."""


SKIP = Skip()
Candidate = ConvSpec | BlockSpec | Skip
Position = tuple[Candidate, ...]


def scaled(candidate: Candidate, factor: float) -> Candidate:
    """A block as wide as the factor says, for a map that is, too.

    Raises:
        UserError: the factor leaves parts of channels.
    """
    if factor == 1 or not isinstance(candidate, BlockSpec):
        return candidate
    channels = round(candidate.channels * factor)
    if abs(channels - candidate.channels * factor) > 1e-6 * channels or not channels:
        raise UserError(f"{factor:g} times {candidate.channels} channels is no whole number: choose other widths")
    width = candidate.width and max(1, round(candidate.width * factor))
    return dataclasses.replace(candidate, channels=channels, width=width)


def layers_at(position: Position) -> list[ConvSpec | BlockSpec]:
    """The candidates of a position that are something."""
    return [candidate for candidate in position if not isinstance(candidate, Skip)]


def is_dense(candidate: Candidate) -> TypeGuard[ConvSpec | BlockSpec]:
    """Whether it is a dense convolution, of the stem or of a stage."""
    return isinstance(candidate, ConvSpec) or (isinstance(candidate, BlockSpec) and candidate.kind == "conv")


def sides_after(layers: list[ConvSpec | BlockSpec], side: int) -> set[int]:
    """How many pixels wide these layers leave a map of `side` pixels."""
    return {(side + 2 * x.rim - x.kernel) // x.stride + 1 for x in layers}


def check_agree(where: str, position: Position) -> None:
    """The candidates of one position can stand in for each other, and none stands there twice."""
    if not position:
        raise UserError(f"{where} has no candidates")
    if len(set(position)) < len(position):
        raise UserError(f"{where} has the same candidate twice")
    layers = layers_at(position)
    if not layers:
        raise UserError(f"{where} has no candidate but skip: leave the position out")
    shapes = sorted({(layer.stride, layer.channels) for layer in layers})
    if len(shapes) > 1:
        found = " and ".join(f"stride {stride} to {channels} channels" for stride, channels in shapes)
        raise UserError(f"{where}: candidates must have one stride and width, got {found}")


def align(blocks: tuple[BlockSpec, ...], positions: tuple[Position, ...]) -> tuple[int, ...] | None:
    """Candidates that leave exactly these blocks when skips are dropped; the earliest fit."""
    if len(blocks) > len(positions):
        return None
    if not positions:
        return ()
    position = positions[0]
    if blocks and blocks[0] in position:
        rest = align(blocks[1:], positions[1:])
        if rest is not None:
            return (position.index(blocks[0]), *rest)
    if SKIP in position:
        rest = align(blocks, positions[1:])
        if rest is not None:
            return (position.index(SKIP), *rest)
    return None
