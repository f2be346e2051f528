"""Draw the parts of a data set that nothing divides yet: seeded, stratified, no class left out where it can be."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hadaptive.data.sources import Source, Subset
from hadaptive.errors import UserError


class Divided(NamedTuple):
    """A data set in parts.

    Attributes:
        parts: int64 (n,), the images of each part, in their order.
        notes: what is to be said of them.
        drawn: those of val_fraction and test_fraction that decided about images.
    """

    parts: dict[str, np.ndarray]
    notes: list[str]
    drawn: set[str]


def hold_out(source: Source, size: int, seed: int) -> tuple[Subset, Subset]:
    """Split `source` into (rest, held-out part of `size` images), seeded, stratified where targets are known.

    Each class gives its share to within one image, and none gives its last where another can give one instead.

    Raises:
        UserError: `size` leaves one of the parts empty.
    """
    n = len(source)
    if not 0 < size < n:
        raise UserError(f"cannot hold {size} images out of {n}: both parts need at least one")
    held = choose(np.zeros(n, np.int64) if source.targets is None else source.targets, size, seed)
    return Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))


def choose(targets: np.ndarray, size: int, seed: int) -> np.ndarray:
    """Which images :func:`hold_out` holds out.

    Args:
        targets: int64 (N,).
        size: how many; none of them where it is 0.
        seed: of the choice.

    Returns:
        bool (N,).
    """
    n = len(targets)
    held = np.zeros(n, dtype=bool)
    if size == 0:
        return held
    order = np.random.default_rng(seed).permutation(n)
    order = order[np.argsort(targets[order], kind="stable")]
    # Evenly spaced places of the shuffled, class-sorted order: exact size, every class in proportion.
    held[(2 * np.arange(size, dtype=np.int64) + 1) * n // (2 * size)] = True
    _keep_one_each(held, targets[order])
    chosen = np.zeros(n, dtype=bool)
    chosen[order[held]] = True
    return chosen


def choose_each(targets: np.ndarray, size: int, seed: int, covered: Sequence[int] = ()) -> np.ndarray:
    """As :func:`choose`, but with at least one image of every class that has two or more.

    A class that gave none gives one in the place of a class that gave more than its share, or beside the others
    where no class did and can spare one.

    Args:
        targets: int64 (N,).
        size: how many, unless more are needed for every class to give one.
        seed: of the choice.
        covered: classes that the held-out part has images of already, which need not give any.
    """
    held = choose(targets, size, seed)
    labels, place, counts = np.unique(targets, return_inverse=True, return_counts=True)
    given = np.bincount(place[held], minlength=len(labels))
    missed = np.flatnonzero((given == 0) & (counts > 1) & ~np.isin(labels, list(covered)))
    if not len(missed):
        return held
    order = np.random.default_rng(seed).permutation(len(targets))
    share = counts * (size / len(targets))
    for label in missed:
        held[order[place[order] == label][0]] = True
        given[label] += 1
        over = np.where(given > 1, given - share, -np.inf)
        giver = int(over.argmax())
        if over[giver] > 0:
            held[order[(place[order] == giver) & held[order]][-1]] = False
            given[giver] -= 1
    return held


def choose_apart(
    targets: np.ndarray, digests: list[str], size_of: "Sizing", seed: int, covered: Sequence[int] = ()
) -> np.ndarray:
    """As :func:`choose_each`, with all exact copies of an image on the same side.

    Args:
        targets: int64 (N,).
        digests: of the images' contents; where it is empty, nobody knows, and the image is taken for the only one.
        size_of: how many to hold out of so many different images, which there are so many files of.
        seed: of the choice.
        covered: as in :func:`choose_each`.
    """
    first: dict[str, int] = {}
    group = np.array([first.setdefault(digest or f"#{i}", i) for i, digest in enumerate(digests)], np.int64)
    unique, place = np.unique(group, return_inverse=True)
    if not len(unique):
        return np.zeros(0, dtype=bool)
    return choose_each(targets[unique], size_of(len(unique), len(targets)), seed, covered)[place]


class Sizing:
    """How many images a fraction of some images is: of so many different ones, which there are so many files of.

    Args:
        fraction: as the person gave it.
        label: what the person calls it; with a label, a fraction that leaves a side empty is a mistake.

    Raises:
        UserError: calling it, where a side would be empty.
    """

    def __init__(self, fraction: float, label: str | None = None) -> None:
        self.fraction = fraction
        self.label = label

    def __call__(self, count: int, files: int | None = None) -> int:
        size = round(count * self.fraction)
        if self.label is None:
            return min(size, count - 1)
        if not 0 < size < count:
            images = "1 image" if count == 1 else f"{count} images"
            copies = f"{files} images are exact copies of {count}, and " if files and files > count else ""
            raise UserError(
                f"{copies}{self.label} {self.fraction:g} of {images} would leave a part without any: "
                "change it, or gather more images"
            )
        return size


def _keep_one_each(held: np.ndarray, targets: np.ndarray) -> None:
    """Give classes held out entirely one image back, and take one instead where the share falls short most.

    Args:
        held: bool (N,), changed in place.
        targets: int64 (N,), sorted.
    """
    _, starts, counts = np.unique(targets, return_index=True, return_counts=True)
    out = np.add.reduceat(held.astype(np.int64), starts)
    share = counts * (int(held.sum()) / len(held))
    for empty in np.flatnonzero(out == counts):
        short = np.where(out + 1 < counts, share - out, -np.inf)
        giver = int(short.argmax())
        if short[giver] <= 0:
            return
        place = starts[giver] + int(np.argmin(held[starts[giver] : starts[giver] + counts[giver]]))
        held[place], held[starts[empty]] = True, False
        out[giver] += 1
        out[empty] -= 1
