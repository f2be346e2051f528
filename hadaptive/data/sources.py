"""Sources: random access to labelled images, in memory, in files, or a part of another source.

Streams (webdataset, tfds) have their own path in :mod:`hadaptive.data.streams`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from hadaptive.data.images import decode
from hadaptive.errors import UserError


class Source(Protocol):
    """Random access to labelled images."""

    @property
    def targets(self) -> np.ndarray | None:
        """int64 (N,), or None where they are not known beforehand."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image, in whatever mode it has, and its class number; OSError when it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...


@dataclass
class ArraySource:
    """Images in memory. `images` is uint8 (N, H, W) or (N, H, W, 3); `targets` is int64 (N,)."""

    images: np.ndarray
    targets: np.ndarray | None
    label: str

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        assert self.targets is not None
        return Image.fromarray(self.images[index]), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.label} #{index}"


@dataclass
class FileSource:
    """Image files on disk, or stretches of one tar file.

    Nothing is kept open between reads, so worker processes share no file position and the source pickles.

    Attributes:
        paths: of each file; inside a tar file, its path there.
        targets: int64 (N,).
        container: the tar file, None for files of their own.
        spans: int64 (N, 2), offset and size in bytes within the container.
    """

    paths: list[str]
    targets: np.ndarray
    container: Path | None = None
    spans: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Image.Image, int]:
        if self.spans is None or self.container is None:
            with open(self.paths[index], "rb") as file:
                data = file.read()
        else:
            offset, size = (int(number) for number in self.spans[index])
            with open(self.container, "rb") as file:
                file.seek(offset)
                data = file.read(size)
        return decode(data), int(self.targets[index])

    def name(self, index: int) -> str:
        path = self.paths[index] if self.container is None else f"{self.container}/{self.paths[index]}"
        # File names may hold bytes that could not be written to a report.
        return os.fsencode(path).decode(errors="replace")


class Subset:
    """Some images of another source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.targets = None if source.targets is None else source.targets[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


@dataclass
class Opened:
    """A data set as it was found: those of the parts train, validation and test that it has, and its classes."""

    parts: dict[str, Source]
    classes: list[str]
    in_memory: bool = False
    notes: list[str] = field(default_factory=list)


def hold_out(source: Source, size: int, seed: int) -> tuple[Subset, Subset]:
    """Split `source` into (rest, held-out part of `size` images), seeded, stratified where targets are known.

    Each class gives its share to within one image, and none gives its last where another can give one instead.

    Raises:
        UserError: `size` leaves one of the parts empty.
    """
    n = len(source)
    if not 0 < size < n:
        raise UserError(f"cannot hold {size} images out of {n}: both parts need at least one")
    order = np.random.default_rng(seed).permutation(n)
    if source.targets is not None:
        order = order[np.argsort(source.targets[order], kind="stable")]
    # Evenly spaced places of the shuffled, class-sorted order: exact size, every class in proportion.
    held = np.zeros(n, dtype=bool)
    held[(2 * np.arange(size, dtype=np.int64) + 1) * n // (2 * size)] = True
    if source.targets is not None:
        _keep_one_each(held, source.targets[order])
    return Subset(source, np.sort(order[~held])), Subset(source, np.sort(order[held]))


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
