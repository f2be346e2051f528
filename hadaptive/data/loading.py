"""Batches: seeded per image, so that they do not depend on workers, processes or interruptions."""

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from hadaptive.data.sources import STREAMS, Source

UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError)


def derive_seed(*numbers: int) -> int:
    """One 64-bit seed from several numbers, such as (run seed, epoch, image)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated_randomness(seed: int) -> Iterator[None]:
    """Seed Python's, NumPy's and PyTorch's CPU generators inside the block; restore the first and last after it.

    NumPy's is left seeded: saving and restoring it costs more than all else that is done to a small image.
    """
    generator = torch.default_generator
    saved = random.getstate(), generator.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm's transforms use the global generator)
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(saved[0])
        generator.set_state(saved[1])


class UnreadableImageError(ValueError):
    """An image could not be read, and the run was asked to be strict about it."""


class ImageDataset(Dataset):
    """A source and a transform. Keys are ``index`` or ``(index, epoch)``; the epoch varies the augmentation.

    Items are (image float32 (C, H, W), target int, unreadable int). `unreadable` is -1, or the index of an image
    that could not be read. In its place training gets the next readable one (batches keep their size) and
    evaluation gets a blank one with target -1, which no metric counts.

    Raises:
        UnreadableImageError: with ``strict``, on the first unreadable image; without, when there is no other.
    """

    def __init__(
        self,
        source: Source,
        transform: Callable[[Any], Tensor],
        *,
        seed: int = 0,
        training: bool = False,
        strict: bool = False,
        blank: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        self.source = source
        self.transform = transform
        self.seed = seed
        self.training = training
        self.strict = strict
        self.blank = blank

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int, int]:
        index, epoch = key if isinstance(key, tuple) else (key, 0)
        unreadable = -1
        with isolated_randomness(derive_seed(self.seed, epoch, index)):
            for offset in range(len(self.source)):
                place = (index + offset) % len(self.source)
                try:
                    image, target = self.source.read(place)
                    return self.transform(image), target, unreadable
                except UNREADABLE as error:
                    if self.strict:
                        raise UnreadableImageError(
                            f"cannot read {self.source.name(place)}: {error}; leave out --strict to skip such images"
                        ) from None
                    unreadable = place
                    if not self.training:
                        return torch.zeros(self.blank), -1, unreadable
        raise UnreadableImageError("not one of the training images can be read")


class EpochSampler(Sampler):
    """Shuffled (index, epoch) keys, a function of (seed, epoch) only; `length` cuts the epoch to whole steps."""

    def __init__(self, size: int, length: int, seed: int) -> None:
        self.size = size
        self.length = length
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)[: self.length]
        return iter([(int(i), self.epoch) for i in order])


def worker_count(requested: int, in_memory: bool) -> int:
    """Loader processes: as requested, or (-1) none for data in memory and up to 8 for files."""
    if requested >= 0:
        return requested
    return 0 if in_memory else min(8, max(1, (os.cpu_count() or 1) - 1))


def _limit_threads(worker: int) -> None:
    torch.set_num_threads(1)


def create_loader(
    dataset: Dataset, batch_size: int, *, sampler: Sampler | None = None, workers: int = 0, pin: bool = False
) -> DataLoader:
    """A loader over `dataset` in order, or in the sampler's order."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=_limit_threads if workers else None,
    )


def is_stream(name: str) -> bool:
    """Whether timm reads this data set as a stream, without random access."""
    return name.startswith(STREAMS)


class StreamDataset(IterableDataset):
    """A timm stream (webdataset, tfds) as items of :class:`ImageDataset`'s form."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        for image, target in self.dataset:
            yield image, target, -1


def open_stream(
    name: str,
    root: Path | None,
    split: str,
    transform: Callable[[Any], Tensor],
    *,
    training: bool,
    batch_size: int,
    num_samples: int | None,
    seed: int,
    channels: int,
) -> StreamDataset:
    """Open one split of a stream.

    Raises:
        ValueError: a package is missing, or the split cannot be opened.
    """
    from timm.data import create_dataset

    try:
        dataset = create_dataset(
            name,
            None if root is None else str(root),
            split=split,
            is_training=training,
            batch_size=batch_size,
            num_samples=num_samples,
            seed=seed,
            input_img_mode="RGB" if channels == 3 else "L",
        )
    except (ImportError, AssertionError) as error:
        raise ValueError(f"{name} needs a package that is not installed: {error}") from None
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{name}: the split {split!r} under {root} cannot be opened: {error}") from None
    dataset.transform = transform
    return StreamDataset(dataset)
