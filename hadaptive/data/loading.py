"""Batches: seeded per image, so that they do not depend on workers, processes or interruptions."""

import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, get_worker_info

from hadaptive.data.hugging_face import require
from hadaptive.data.sources import Source
from hadaptive.errors import UserError

# What a stream needs: the module to try and what to install.
STREAMS = {
    "wds/": ("webdataset.pipeline", '"hadaptive[wds]"'),
    "hfids/": ("datasets.load", '"hadaptive[hfds]"'),
    "tfds/": ("tensorflow_datasets.core", "tensorflow tensorflow-datasets"),
}
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


class UnreadableImageError(UserError):
    """An image could not be read, and the run was asked to be strict about it."""


class ImageDataset(Dataset):
    """A source and a transform. Keys are ``index`` or ``(index, epoch)``; the epoch varies the augmentation.

    Items are (image float32 (C, H, W), target int, unreadable int). `unreadable` is -1, or the index of the image
    that was asked for and could not be read. In its place training gets the next readable one (batches keep their
    size) and evaluation gets a blank one with target -1, which no metric counts. An image is unreadable when the
    source or the transform raises OSError; other errors are mistakes in a program and pass through.

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

    `seed` is that of the worker processes. It leaves PyTorch's own generator out of this, and decides only how
    streams shuffle: images of an :class:`ImageDataset` are seeded one by one.
    """
    if isinstance(dataset, StreamDataset):
        workers = dataset.limit_workers(workers)
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


def is_stream(name: str) -> bool:
    """Whether timm reads this data set as a stream, without random access."""
    return name.lower().startswith(tuple(STREAMS))


class StreamDataset(IterableDataset):
    """A timm stream (webdataset, tfds) as items of :class:`ImageDataset`'s form.

    An image is augmented as (seed, epoch, worker, place in the worker's stream) say. timm's readers pass over
    unreadable images with a line in the log, so `unreadable` is always -1 here.
    """

    def __init__(self, dataset: Any, transform: Callable[[Any], Tensor], seed: int) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # worker processes live through all epochs

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch.fill_(epoch)
        self.dataset.set_epoch(epoch)

    def limit_workers(self, workers: int) -> int:
        """Tell the reader how many worker processes there are, which is at most one per shard; return it."""
        split = getattr(self.dataset.reader, "split_info", None)
        workers = min(workers, len(getattr(split, "filenames", ())) or workers)
        self.dataset.set_loader_cfg(num_workers=workers)
        return workers

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        worker = get_worker_info()
        stream = (self.seed, int(self.epoch), 0 if worker is None else worker.id)
        for place, (image, target) in enumerate(self.dataset):
            with isolated_randomness(derive_seed(*stream, place)):
                item = self.transform(image), int(target), -1
            yield item


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
    """Open one split of a stream: wds/ (`root` is the folder of shards), tfds/<name> or hfids/<name>.

    Raises:
        UserError: a package is missing, or the split cannot be opened.
    """
    from timm.data import create_dataset  # pyright: ignore[reportPrivateImportUsage]

    prefix = name.lower().split("/")[0] + "/"
    require(STREAMS[prefix][0], name, STREAMS[prefix][1])
    if prefix == "wds/":
        root = _shard_folder(name, root, split)
    try:
        dataset: Any = create_dataset(
            name,
            None if root is None else str(root),
            split=split,
            is_training=training,
            batch_size=batch_size,
            num_samples=num_samples,
            seed=seed,
            # tfds decodes to one of these; from the others the transform gets images as they are.
            input_img_mode="" if prefix != "tfds/" else "RGB" if channels == 3 else "L",
        )
    except (ImportError, AssertionError, RuntimeError, OSError, KeyError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0] or type(error).__name__
        raise UserError(f"the split {split!r} of {name} under {root} cannot be opened: {reason}") from None
    if prefix == "wds/":
        shards = dataset.reader.split_info.filenames
        missing = [shard for shard in shards if not os.path.exists(os.path.join(str(root), shard))]
        if missing:
            raise UserError(f"the shard {missing[0]} of the split {split!r} is not in {root}: check _info.json")
    return StreamDataset(dataset, transform, seed)


def _shard_folder(name: str, root: Path | None, split: str) -> Path:
    folder = Path(name.split("/", 1)[1] if root is None else root).expanduser()
    if not folder.is_dir():
        raise UserError(f"{name} needs --data-dir, the folder its shards are in; {folder} is not one")
    if ".tar" not in split and not any((folder / info).is_file() for info in ("_info.json", "info.json")):
        raise UserError(
            f"{folder} has no _info.json to say which shards the split {split!r} has: write one as timm does, or "
            f"name shards and their number of images instead of the split, as in 'data-{{0000..0009}}.tar|5000'"
        )
    return folder
