"""Images made for a question: whether a network sees which of two local patterns stand together.

Sixteen cells tile an image. The upper half of each holds one of four patterns A and the lower half one of four
patterns B, each bright or dark by chance. A class is a table of 4 x 4 signs: for A of kind i and B of kind j the
two are bright together, or one is the opposite of the other, as its entry says. In every class each pattern is as
often bright as dark, and as often there as any other, and each pixel has the same distribution: only a pixel of an
upper half and one of the lower, taken together, tell.
"""

from pathlib import Path

import numpy as np
import scipy.linalg

from hadaptive.data.sources import ArraySource, Listed, Opened

NAME = "cooccurrence"
CLASSES, KINDS, CELL, SIDE = 8, 4, 8, 32
SIZES = {"train": 20_000, "test": 4_000}
CONTRAST, NOISE = 30.0, 36.0  # grey levels: of a pattern, and the standard deviation of what hides it


def open_cooccurrence(root: Path | None = None) -> Opened:
    """The images, the same every time; `root` is without effect."""
    parts: dict[str, Listed] = {}
    for part, seed in (("train", 0), ("test", 1)):
        images, targets = cooccurrences(SIZES[part], seed)
        parts[part] = ArraySource(images, targets, f"{NAME} {part}")
    return Opened(parts, [f"table {number}" for number in range(CLASSES)], in_memory=True)


def cooccurrences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, 32, 32) and targets int64 (count,), of all classes equally often."""
    random = np.random.default_rng(seed)
    waves, empty = scipy.linalg.hadamard(CELL), np.zeros((KINDS, CELL // 2, CELL), np.int64)
    patterns = np.stack([np.outer(waves[kind, : CELL // 2], waves[1 + kind]) for kind in range(KINDS)])
    first, second = np.concatenate([patterns, empty], 1), np.concatenate([empty, patterns], 1)
    tables = scipy.linalg.hadamard(KINDS * KINDS)[1 : CLASSES + 1].reshape(CLASSES, KINDS, KINDS)
    targets = random.permutation(np.arange(count) % CLASSES)
    cells = (SIDE // CELL) ** 2
    i, j = random.integers(KINDS, size=(2, count, cells))
    sign = random.choice([-1, 1], size=(count, cells))
    other = sign * tables[targets[:, None], i, j]
    drawn = sign[..., None, None] * first[i] + other[..., None, None] * second[j]
    tiled = drawn.reshape(count, SIDE // CELL, SIDE // CELL, CELL, CELL).transpose(0, 1, 3, 2, 4)
    grey = 128 + CONTRAST * tiled.reshape(count, SIDE, SIDE)
    grey += NOISE * random.standard_normal(grey.shape, dtype=np.float32)
    return grey.clip(0, 255).round().astype(np.uint8), targets.astype(np.int64)
