"""Images made for a question: whether a network sees which of two local patterns stand together.

Sixteen cells tile an image. The upper half of each holds one of eight patterns A and the lower half one of eight
patterns B, each bright or dark by chance. A class is a table of 8 x 8 signs, half of them each: for A of kind i
and B of kind j the two are bright together, or one is the opposite of the other, as its entry says. In every class
each pattern is as often bright as dark, and as often there as any other, and each pixel has the same distribution:
only a pixel of an upper half and one of the lower, taken together, tell. The classes are linear in the 64 products
of patterns.
"""

from pathlib import Path

import numpy as np
import scipy.linalg

from hadaptive.data.sources import ArraySource, Listed, Opened

NAME = "cooccurrence"
CLASSES, KINDS, CELL, SIDE = 8, 8, 8, 32
SIZES = {"train": 20_000, "test": 4_000}
CONTRAST, NOISE = 30.0, 32.0  # grey levels: of a pattern, and the standard deviation of what hides it


def open_cooccurrence(root: Path | None = None) -> Opened:
    """The images, the same every time; `root` is without effect."""
    parts: dict[str, Listed] = {}
    for part, seed in (("train", 0), ("test", 1)):
        images, targets = cooccurrences(SIZES[part], seed)
        parts[part] = ArraySource(images, targets, f"{NAME} {part}")
    return Opened(parts, [f"table {number}" for number in range(CLASSES)], in_memory=True)


def patterns() -> tuple[np.ndarray, np.ndarray]:
    """Patterns A and B in their halves of a cell, each (KINDS, CELL, CELL) of -1, 0 and 1."""
    waves = scipy.linalg.hadamard(CELL**2 // 2)[1 : KINDS + 1].reshape(KINDS, CELL // 2, CELL)
    empty = np.zeros_like(waves)
    return np.concatenate([waves, empty], 1), np.concatenate([empty, waves], 1)


def _tables() -> np.ndarray:
    """The sign of each pair of patterns in each class, (CLASSES, KINDS, KINDS); the same for all parts."""
    signs = np.repeat([-1, 1], KINDS * KINDS // 2)
    random = np.random.default_rng(0)
    return np.stack([random.permutation(signs).reshape(KINDS, KINDS) for _ in range(CLASSES)])


def cooccurrences(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (count, 32, 32) and targets int64 (count,), of all classes equally often."""
    random = np.random.default_rng(seed)
    first, second = patterns()
    tables = _tables()
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
