"""Batches: seeded per image, so that they do not depend on workers, processes or interruptions."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from hadaptive.data.sources import Source
from hadaptive.errors import UserError

EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the machine's fault, not the image's


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


class LoadingError(UserError):
    """A mistake in images or labels that shows when a batch is made, be it in a worker process.

    PyTorch raises a worker's exception again in the main process, as its class called with the text of the
    worker's whole traceback. This class takes its own sentence out of that text.
    """

    def __init__(self, message: str = "") -> None:
        own = f"\n{type(self).__module__}.{type(self).__qualname__}: "
        super().__init__(message.rpartition(own)[2].strip() if message.startswith("Caught ") else message)


class UnreadableImageError(LoadingError):
    """An image could not be read, and the run was asked to be strict about it."""


class ImageDataset(Dataset):
    """A source and a transform. Keys are ``index`` or ``(index, epoch)``; the epoch varies the augmentation.

    Items are (image float32 (C, H, W), target int, unreadable int). `unreadable` is -1, or the index of the image
    that was asked for and could not be read. In its place training gets the next readable one (batches keep their
    size) and evaluation gets a blank one with target -1, which no metric counts. An image is unreadable when the
    source or the transform raises OSError; other errors are mistakes in a program and pass through.

    Raises:
        UnreadableImageError: with ``strict``, on the first unreadable image; without, when there is no other.
        LoadingError: a UserError of the source's or the transform's, as one that comes whole out of a worker.
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
        with isolated_randomness(derive_seed(self.seed, epoch, index)):
            for offset in range(len(self.source)):
                place = (index + offset) % len(self.source)
                try:
                    image, target = self.source.read(place)
                    return self.transform(image), target, index if offset else -1
                except OSError as error:
                    if error.errno in EXHAUSTED:
                        raise
                    if self.strict:
                        raise UnreadableImageError(
                            f"cannot read {self.source.name(place)}: {error.strerror or error}; "
                            "leave out --strict to skip such images"
                        ) from None
                    if not self.training:
                        return torch.zeros(self.blank), -1, index
                except LoadingError:
                    raise
                except UserError as error:
                    raise LoadingError(str(error)) from None
        raise UnreadableImageError("not one of the training images can be read")


class EpochSampler(Sampler):
    """Shuffled (index, epoch) keys, a function of (seed, epoch) only; `length` cuts the epoch to whole steps.

    Raises:
        UserError: `length` is not between 1 and `size`.
    """

    def __init__(self, size: int, length: int, seed: int) -> None:
        if not 0 < length <= size:
            raise UserError(f"an epoch over {size} images cannot be {length} images long")
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
    if in_memory:
        return 0
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(1, usable - 1))


def _limit_threads(worker: int) -> None:
    torch.set_num_threads(1)


def create_loader(
    dataset: Dataset,
    batch_size: int,
    *,
    sampler: Sampler | None = None,
    workers: int = 0,
    pin: bool = False,
    seed: int = 0,
) -> DataLoader:
    """A loader over `dataset` in order, or in the sampler's order.

    `seed` is that of the worker processes, so that PyTorch's own generator stays out of this; it decides nothing
    else, for images are seeded one by one. A stream chooses its own number of workers when it is to (-1).
    """
    limit_workers = getattr(dataset, "limit_workers", None)
    if limit_workers is not None:
        workers = limit_workers(workers)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin,
        persistent_workers=workers > 0,
        worker_init_fn=_limit_threads if workers else None,
        generator=torch.Generator().manual_seed(seed),
    )
