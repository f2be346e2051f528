"""From architecture parameters to a network: the most confident one within the target."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from hadaptive.errors import UserError
from hadaptive.search.space import Choice, SearchSpace
from hadaptive.search.table import LatencyTable

STEPS = 2000  # of latency, when the best network within a target is looked for
SPEND = 0.9  # of the target that the network found takes at least


class _Knapsack:
    """What each position may spend of a target, in whole steps beyond its fastest candidate.

    Latencies are rounded up, so what fits here fits the target.
    """

    def __init__(self, table: LatencyTable, target: float) -> None:
        fastest = [min(times) for times in table.times]
        floor = table.rest + sum(fastest)
        budget = (target - table.offset) / table.slope - floor
        if budget < -1e-9:
            raise UserError(f"no network of this space is within {target:.3g} ms")
        unit = max(budget, 1e-9) / STEPS
        self.costs = [
            [math.ceil((ms - least) / unit - 1e-6) for ms in times]
            for times, least in zip(table.times, fastest, strict=True)
        ]
        least_spent = ((SPEND * target - table.offset) / table.slope - floor) / unit
        self.start = min(STEPS, max(0, math.ceil(least_spent)))

    def tables(self, scores: list[list[float]], join: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Before and after each position the joined score of all ways to have spent exactly so much: (STEPS + 1,).

        Scores add along a way; `join` takes (ways, STEPS + 1) to (STEPS + 1,).
        """
        spent = torch.full((STEPS + 1,), -math.inf, dtype=torch.float64)
        spent[0] = 0.0
        tables = [spent]
        for own, costs in zip(scores, self.costs, strict=True):
            tables.append(join(torch.stack(self.ways(tables[-1], own, costs))))
        return tables

    def ways(self, before: Tensor, scores: list[float], costs: list[int]) -> list[Tensor]:
        """For each candidate of a position, the score of taking it and having spent exactly so much after it."""
        ways = []
        for score, cost in zip(scores, costs, strict=True):
            way = torch.full_like(before, -math.inf)
            if cost <= STEPS:
                way[cost:] = before[: STEPS + 1 - cost] + score
            ways.append(way)
        return ways

    def trace(self, tables: list[Tensor], scores: list[list[float]], pick: Callable[[Tensor], int]) -> Choice:
        """One way through the tables, from its end: `pick` takes an index of a vector of scores."""
        end = tables[-1][self.start :]
        offset = self.start if bool(torch.isfinite(end).any()) else 0
        place, choice = offset + pick(tables[-1][offset:]), []
        for before, own, costs in zip(reversed(tables[:-1]), reversed(scores), reversed(self.costs), strict=True):
            ways = torch.stack([way[place] for way in self.ways(before, own, costs)])
            choice.append(pick(ways))
            place -= costs[choice[-1]]
        return tuple(reversed(choice))


def most_confident(
    confidence: list[Tensor], table: LatencyTable | None = None, target: float | None = None
) -> Choice:
    """The choice of largest probability among those predicted to take the target's time, or a little less.

    A multiple-choice knapsack, solved by dynamic programming over rounded-up latencies. Probabilities that are
    still spread have a faster most probable network than their mean: so it must use 0.9 of the target, where any
    network does.

    Args:
        confidence: softmax(alpha) of each position, (candidates,).
        table, target: without them the most confident candidate of each position.

    Raises:
        UserError: no network is within the target.
    """
    if table is None or target is None:
        return tuple(int(p.argmax()) for p in confidence)
    knapsack = _Knapsack(table, target)
    scores = [p.double().clamp(min=1e-300).log().tolist() for p in confidence]
    tables = knapsack.tables(scores, lambda ways: ways.max(0).values)
    return knapsack.trace(tables, scores, lambda values: int(values.argmax()))


def random_within(
    space: SearchSpace,
    table: LatencyTable,
    target: float,
    generator: torch.Generator,
    odds: Tensor | None = None,
) -> Choice:
    """A choice drawn evenly from all those predicted to take 0.9 of the target's time to all of it.

    The same band that :func:`most_confident` chooses from, and so what a search must beat.

    Args:
        space, table, target: of the search.
        generator: of the draw.
        odds: of :func:`odds_within`, to draw often.

    Raises:
        UserError: no network is within the target.
    """
    if table.others:
        odds = odds_within(space, table, target) if odds is None else odds
        number = int(torch.multinomial(odds, 1, generator=generator))
        inside = random_within(space.of_whole(number), table.of_whole(number), target, generator)
        return (*inside, number)
    knapsack = _Knapsack(table, target)
    scores = [[0.0] * len(position) for position in space.positions]
    tables = knapsack.tables(scores, lambda ways: ways.logsumexp(0))

    def draw(values: Tensor) -> int:
        return int(torch.multinomial(torch.softmax(values, 0), 1, generator=generator))

    return knapsack.trace(tables, scores, draw)


def odds_within(space: SearchSpace, table: LatencyTable, target: float) -> Tensor:
    """Of each whole the share of all networks in the band that are its own, or of those within where none is.

    Raises:
        UserError: no network is within the target.
    """
    band, within = [], []
    for number in range(len(space.wholes)):
        own = table.of_whole(number)
        if own.range()[0] > target:
            band.append(-math.inf)
            within.append(-math.inf)
            continue
        knapsack = _Knapsack(own, target)
        end = knapsack.tables([[0.0] * len(p) for p in space.positions], lambda ways: ways.logsumexp(0))[-1]
        band.append(float(end[knapsack.start :].logsumexp(0)))
        within.append(float(end.logsumexp(0)))
    logits = torch.tensor(band if max(band) > -math.inf else within, dtype=torch.float64)
    if not bool(torch.isfinite(logits).any()):
        raise UserError(f"no network of this space is within {target:.3g} ms")
    return torch.softmax(logits, 0)


def relative_entropy(confidence: list[Tensor]) -> float:
    """Mean entropy of the positions that have a choice, relative to an even one's: 1 undecided, 0 decided."""
    shares = [float(torch.special.entr(p).sum()) / math.log(len(p)) for p in confidence if len(p) > 1]
    return sum(shares) / len(shares) if shares else 0.0
