"""Whose turn it is to be trained: of a space's candidates each as often as the others.

Source: FairNAS (arXiv 1907.01845).
"""

import torch
from torch import Tensor

from hadaptive.data import derive_seed
from hadaptive.search.cuts import kind_of
from hadaptive.search.position import Candidate, Position, Skip
from hadaptive.search.space import Choice, SearchSpace


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
    if space.varies:
        choice.append(turn(len(choice), step, [[n] for n in range(len(space.wholes))]))
    return tuple(choice)


def _order(count: int, *numbers: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(derive_seed(*numbers)))


def most_turns(space: SearchSpace) -> int:
    """After how many steps every candidate of a space has had a turn."""
    kinds = [_kinds(position) for position in space.positions]
    turns = max(len(own) * max(map(len, own)) for own in kinds)
    # With branches and without, layers have weights of their own.
    return max(len(space.wholes), turns * len(space.alternatives.get("reparam", (False,))))


def _kinds(position: Position) -> list[list[int]]:
    """Numbers of a position's candidates by what kind they are, in the turns of a round: a quarter are to skip."""
    kinds: dict[Candidate, list[int]] = {}
    skip: list[int] = []
    for number, candidate in enumerate(position):
        if isinstance(candidate, Skip):
            skip.append(number)
        else:
            kinds.setdefault(kind_of(candidate), []).append(number)
    found = list(kinds.values())
    return [*found, *found, *found, *([skip] * len(found))] if skip else found
