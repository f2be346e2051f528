"""What speaks against trusting a search: each a sentence for the person, or nothing."""

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from hadaptive.metrics import Evaluation
from hadaptive.search.front import Judged
from hadaptive.search.outcome import relative_entropy
from hadaptive.search.position import SKIP
from hadaptive.search.space import Choice, SearchSpace

FEW_TURNS = 20  # of a candidate in training, below which its weights say little
FAR = 0.25  # of the target, by which the expected latency may differ from it


def standard_error(accuracy: float, images: int) -> float:
    """Of an accuracy on so many images; never that of certainty."""
    return math.sqrt(max(accuracy * (1 - accuracy), 1e-4) / max(1, images))


def collapsed(space: SearchSpace, choice: Choice) -> Iterator[str]:
    """Blocks skipped almost everywhere."""
    own = zip(space.positions, choice, strict=False)
    skips = [position[number] == SKIP for position, number in own if SKIP in position]
    if len(skips) > 1 and sum(skips) >= 0.8 * len(skips):
        yield (
            f"the search collapsed: {sum(skips)} of {len(skips)} blocks that may be skipped are; raise the "
            "latency target or train the weights longer (--epochs)"
        )


def undecided(choice: Choice, confidence: Sequence[Tensor]) -> Iterator[str]:
    """Scores that say little, or another thing than what was chosen."""
    entropy = relative_entropy(list(confidence))
    if entropy > 0.9:
        yield (
            f"the search never decided (relative entropy {entropy:.2f}): what it found is close to a random "
            "choice; search longer or raise --alpha-lr"
        )
    own = [(float(p[number]), 1 / len(p)) for p, number in zip(confidence, choice, strict=True) if len(p) > 1]
    below = sum(mine < 0.99 * even for mine, even in own)
    if 3 * below > len(own):
        yield (
            f"at {below} of {len(own)} positions the target chose a candidate that is less likely than an even "
            "choice: raise the latency target, or --latency-weight"
        )


def no_better_than_chance(of: str, validation: Evaluation | Judged, images: int, classes: int) -> Iterator[str]:
    """An accuracy that guessing reaches too."""
    if validation.accuracy <= 1 / classes + 2 * standard_error(1 / classes, images):
        yield (
            f"with the supernet's weights {of} is no better than chance ({validation.accuracy:.1%} of {images} "
            "images): train longer (--epochs), or look at the labels"
        )


def few_turns(places: int, epochs: int, steps: int) -> Iterator[str]:
    """Weights that were hardly trained.

    Args:
        places: after how many steps every candidate has had a turn.
        epochs, steps: of each epoch.
    """
    turns = epochs * steps / places
    if turns < FEW_TURNS:
        yield (
            f"a candidate was trained in about {turns:.0f} steps, which says little of it: raise --epochs to "
            f"{math.ceil(FEW_TURNS * places / steps)} or search a smaller space"
        )


def far_from_target(expected: float, target: float) -> Iterator[str]:
    """Scores whose mean network is not what the target asks for."""
    if abs(expected / target - 1) > FAR:
        yield (
            f"the latency that the scores expect, {expected:.3g} ms, is far from the target of {target:.3g} ms: "
            "the network within it is not what they prefer; raise --latency-weight, or search longer"
        )


def misses(found_ms: float | None, target: float | None) -> Iterator[str]:
    """A network that is slower than it was to be, when it is measured."""
    if found_ms is not None and target is not None and found_ms > target:
        yield (
            f"the network found is not within the target when it is measured: {found_ms:.3g} ms for {target:.3g} "
            f"ms, and no other that was tried is: give --latency-target {target * target / found_ms:.3g}ms"
        )


def no_better_than_random(found: Judged, drawn: Sequence[Judged], images: int) -> Iterator[str]:
    """An evolution that found nothing better than it began with."""
    error = standard_error(found.accuracy, images)
    best = max((one.accuracy for one in drawn), default=-math.inf)
    if found.accuracy <= best + error:
        yield (
            f"what was found is no better on the supernet than the best of {len(drawn)} networks drawn at random "
            f"({found.accuracy:.1%} and {best:.1%}, standard error {error:.1%}): compare with --baseline random"
        )
