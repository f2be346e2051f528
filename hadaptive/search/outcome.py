"""From architecture parameters to a network: the most confident one within the target, and whether to trust it."""

import math

import torch
from torch import Tensor

from hadaptive.search.latency import LatencyTable
from hadaptive.search.space import SKIP, Choice, SearchSpace

STEPS = 2000  # of latency, when the best network within a target is looked for
SPEND = 0.9  # of the target that the network found takes at least


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
        ValueError: no network is within the target.
    """
    if table is None or target is None:
        return tuple(int(p.argmax()) for p in confidence)
    fastest = [min(times) for times in table.times]
    floor = table.rest + sum(fastest)
    budget = (target - table.offset) / table.slope - floor  # what positions may spend beyond their fastest
    if budget < -1e-9:
        raise ValueError(f"no network of this space is within {target:.3g} ms")
    unit = max(budget, 1e-9) / STEPS
    costs = [
        [math.ceil((ms - least) / unit - 1e-6) for ms in times]
        for times, least in zip(table.times, fastest, strict=True)
    ]
    best = torch.full((STEPS + 1,), -math.inf, dtype=torch.float64)  # by what was spent
    best[0] = 0.0
    taken: list[Tensor] = []
    for p, own in zip(confidence, costs, strict=True):
        scores = torch.full((len(own), STEPS + 1), -math.inf, dtype=torch.float64)
        for i, (logp, cost) in enumerate(zip(p.double().clamp(min=1e-300).log().tolist(), own, strict=True)):
            if cost <= STEPS:
                scores[i, cost:] = best[: STEPS + 1 - cost] + logp
        best, chosen = scores.max(0)
        taken.append(chosen)
    least_spent = ((SPEND * target - table.offset) / table.slope - floor) / unit
    start = min(STEPS, max(0, math.ceil(least_spent)))
    if not bool(torch.isfinite(best[start:]).any()):
        start = 0
    place, choice = start + int(best[start:].argmax()), []
    for chosen, own in zip(reversed(taken), reversed(costs), strict=True):
        choice.append(int(chosen[place]))
        place -= own[choice[-1]]
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
