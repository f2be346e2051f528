"""From architecture parameters to a network: the most confident one within the target, and whether to trust it."""

import math

import torch
from torch import Tensor

from hadaptive.search.latency import LatencyTable
from hadaptive.search.space import SKIP, Choice, SearchSpace

STEPS = 2000  # of latency, when the best network within a target is looked for


def most_confident(
    confidence: list[Tensor], table: LatencyTable | None = None, target: float | None = None
) -> Choice:
    """The choice of largest probability among those predicted to be no slower than `target`.

    A multiple-choice knapsack, solved by dynamic programming over rounded-up latencies.

    Args:
        confidence: softmax(alpha) of each position, (candidates,).
        table, target: without them the most confident candidate of each position.

    Raises:
        ValueError: no network is within the target.
    """
    if table is None or target is None:
        return tuple(int(p.argmax()) for p in confidence)
    # Of the target, what the positions may spend beyond the fastest candidates.
    floor = [min(times) for times in table.times]
    budget = (target - table.offset) / table.slope - table.rest - sum(floor)
    if budget < -1e-9:
        raise ValueError(f"no network of this space is within {target:.3g} ms")
    unit = max(budget, 1e-9) / STEPS
    best = torch.zeros(STEPS + 1, dtype=torch.float64)
    taken: list[Tensor] = []
    for p, times, fastest in zip(confidence, table.times, floor, strict=True):
        scores = []
        for logp, ms in zip(p.double().clamp(min=1e-300).log().tolist(), times, strict=True):
            cost = math.ceil((ms - fastest) / unit - 1e-6)
            shifted = torch.full_like(best, -math.inf)
            if cost <= STEPS:
                shifted[cost:] = best[: STEPS + 1 - cost] + logp
            scores.append(shifted)
        stacked = torch.stack(scores)
        best = stacked.max(0).values
        taken.append(stacked.argmax(0))
    place, choice = STEPS, []
    for row, times, fastest in zip(reversed(taken), reversed(table.times), reversed(floor), strict=True):
        chosen = int(row[place])
        choice.append(chosen)
        place -= math.ceil((times[chosen] - fastest) / unit - 1e-6)
    return tuple(reversed(choice))


def relative_entropy(confidence: list[Tensor]) -> float:
    """Mean entropy of the positions that have a choice, relative to an even one's: 1 undecided, 0 decided."""
    shares = [float(torch.special.entr(p).sum()) / math.log(len(p)) for p in confidence if len(p) > 1]
    return sum(shares) / len(shares) if shares else 0.0


def warnings_of(space: SearchSpace, choice: Choice, confidence: list[Tensor]) -> list[str]:
    """Sentences on a search that collapsed: blocks skipped almost everywhere, or nothing decided."""
    said = []
    skippable = [space.positions[i][c] == SKIP for i, c in enumerate(choice) if SKIP in space.positions[i]]
    if len(skippable) > 1 and sum(skippable) >= 0.8 * len(skippable):
        said.append(
            f"the search collapsed: {sum(skippable)} of {len(skippable)} blocks that may be skipped are; "
            "raise the latency target or train the weights longer (--weights-first, --epochs)"
        )
    entropy = relative_entropy(confidence)
    if entropy > 0.9:
        said.append(
            f"the search never decided (relative entropy {entropy:.2f}): what it found is close to a random "
            "choice; search longer or raise --alpha-lr"
        )
    return said
