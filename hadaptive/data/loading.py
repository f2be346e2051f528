"""Batches: seeded per image, so that they do not depend on workers, processes or interruptions."""

import errno
import math
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate, get_worker_info

from hadaptive.data.sources import Source
from hadaptive.errors import UserError
from hadaptive.jobs import machine

Item = tuple[Tensor, int, int]  # image float32 (C, H, W), target, unreadable
SHARED_MEMORY = "/dev/shm"  # where Linux keeps it; small in containers
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # the machine's fault, not the image's


def derive_seed(*numbers: int) -> int:
    """One 64-bit seed from several numbers, such as (run seed, epoch, image)."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def seed_generators(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's CPU generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (timm's transforms use the global generator)
    torch.default_generator.manual_seed(seed)


@contextmanager
def isolated_randomness() -> Iterator[None]:
    """Restore the state of Python's and PyTorch's CPU generators after the block.

    NumPy's is left as it is: saving and restoring it costs more than all else that is done to a small image.
    """
    generator = torch.default_generator
    saved = random.getstate(), generator.get_state()
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

    of_one_process = True

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
        transform: Callable[..., Tensor],
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

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> list[Item]:
        """The items of a batch; their images are stretches of one tensor where the transform can write into it.

        A transform that says that it is not ``random`` leaves the generators alone.
        """
        shape = getattr(self.transform, "shape", None)
        images = None if shape is None else _empty_batch(len(keys), shape)
        seeded = getattr(self.transform, "random", True)
        batch = Batch(images)
        with isolated_randomness() if seeded else nullcontext():
            for place, key in enumerate(keys):
                index, epoch = key if isinstance(key, tuple) else (key, 0)
                if seeded:
                    seed_generators(derive_seed(self.seed, epoch, index))
                batch.append(self._read(index, None if images is None else images[place]))
        return batch

    def _read(self, index: int, out: Tensor | None) -> Item:
        into = {} if out is None else {"out": out}
        for offset in range(len(self.source)):
            place = (index + offset) % len(self.source)
            try:
                image, target = self.source.read(place)
                return self.transform(image, **into), target, index if offset else -1
            except OSError as error:
                if error.errno in EXHAUSTED:
                    raise
                if self.strict:
                    raise UnreadableImageError(
                        f"cannot read {self.source.name(place)}: {error.strerror or error}; "
                        "leave out --strict to skip such images"
                    ) from None
                if not self.training:
                    return torch.zeros(self.blank) if out is None else out.zero_(), -1, index
            except LoadingError:
                raise
            except UserError as error:
                raise LoadingError(str(error)) from None
        raise UnreadableImageError("not one of the training images can be read")


class Batch(list):
    """Items, and the one tensor (N, C, H, W) that their images are stretches of, or None."""

    def __init__(self, images: Tensor | None) -> None:
        super().__init__()
        self.images = images


def _empty_batch(count: int, shape: tuple[int, ...]) -> Tensor:
    """float32 (count, *shape); in a worker process in memory shared with the main one, as in PyTorch's collate."""
    if get_worker_info() is None:
        return torch.empty(count, *shape)
    size = count * math.prod(shape)
    storage = torch.UntypedStorage._new_shared(size * 4, device="cpu")
    return torch.empty(0).set_(storage, 0, (count, *shape))  # pyright: ignore[reportCallIssue]


def collate(items: list[Item]) -> list[Tensor]:
    """Items as a batch (images, targets int64 (N,), unreadable int64 (N,)); a :class:`Batch` keeps its tensor."""
    images = items.images if isinstance(items, Batch) else None
    if images is None:
        return default_collate(items)
    return [images, *(torch.tensor(column) for column in list(zip(*items, strict=True))[1:])]


AGAIN = 2**32  # between the epochs in the keys of an image that is drawn again in the same epoch


class EpochSampler(Sampler):
    """Shuffled (index, epoch) keys, a function of (seed, epoch) only; `length` cuts the epoch to whole steps.

    Args:
        size: number of images.
        length: of an epoch.
        seed: of the order.
        classes: int64 (size,), to draw every class equally often, and its images as equally often as can be; an
            image that is drawn again has another epoch in its key, and so another augmentation. None draws each
            image once.

    Raises:
        UserError: `length` is not between 1 and `size`.
    """

    def __init__(self, size: int, length: int, seed: int, classes: np.ndarray | None = None) -> None:
        if not 0 < length <= size:
            raise UserError(f"an epoch over {size} images cannot be {length} images long")
        self.size = size
        self.length = length
        self.seed = seed
        self.epoch = 0
        self.members = None if classes is None else [np.flatnonzero(classes == c) for c in np.unique(classes)]

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[int, int]]:
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.members is None:
            order = generator.permutation(self.size)[: self.length]
            return iter([(int(i), self.epoch) for i in order])
        share, rest = divmod(self.length, len(self.members))
        more = set(generator.permutation(len(self.members))[:rest].tolist())
        keys: list[tuple[int, int]] = []
        for number, images in enumerate(self.members):
            rounds = -(-(share + 1) // len(images))
            drawn = [
                (int(i), self.epoch + AGAIN * r) for r in range(rounds) for i in generator.permutation(images)
            ]
            keys += drawn[: share + (number in more)]
        return iter([keys[i] for i in generator.permutation(len(keys))])


def worker_count(
    requested: int,
    *,
    in_memory: bool,
    device: str,
    batch: tuple[int, int, int, int],
    cores: int | None = None,
    shared: int | None = None,
) -> int:
    """Loader processes: as requested, or (-1) as many as pay here.

    - Files: one per usable core but one, 1 to 8. Reading waits, and decoding costs milliseconds.
    - Images in memory, the network on a GPU: the same, but none where there is one core only. An image costs 0.2
      to 1.5 ms of CPU time, and the other cores are idle.
    - Images in memory, the network on the CPU: that keeps all cores busy, and takes 6 (the smallest rivals) to 60
      times the time of making its images. So one process for 8 cores, up to 8; none for images of less than 128
      pixels, of which a batch takes no longer than a few milliseconds.
    - Never more than shared memory has room for: a process has up to 3 batches there.

    Args:
        requested: a number, or -1.
        in_memory: the images need no reading or decoding.
        device: the type of the network's, such as "cpu" or "cuda".
        batch: the shape (N, C, H, W) of one float32 batch.
        cores: usable ones; None asks the machine, for a job's share where several run at once.
        shared: bytes of shared memory that are free; None asks the machine likewise.
    """
    if requested >= 0:
        return requested
    if cores is None:
        cores = machine.cores()
    if not in_memory:
        workers = max(1, cores - 1)
    elif device != "cpu":
        workers = cores - 1
    else:
        workers = cores // 8 if batch[-1] >= 128 else 0
    if shared is None:
        free = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else sys.maxsize
        shared = free // machine.at_once()
    return min(8, workers, shared // (3 * 4 * math.prod(batch)))


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
        collate_fn=collate,
        worker_init_fn=_limit_threads if workers else None,
        generator=torch.Generator().manual_seed(seed),
    )
