"""Streams: data sets that timm reads from one end to the other, without random access (wds, tfds, hfids)."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.data.readers.reader_wds import ReaderWds
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from hadaptive.data.config import STREAMS, DataConfig
from hadaptive.data.loading import LoadingError, derive_seed, isolated_randomness, seed_generators
from hadaptive.errors import UserError, first_line
from hadaptive.packages import require

WORKERS = 4  # where none are asked for; the same on every machine, since the order of a stream hangs on it


class StreamDataset(IterableDataset):
    """A timm stream as items of :class:`hadaptive.data.ImageDataset`'s form.

    The order of a webdataset's epoch is a function of (seed, epoch, worker, number of workers), and the
    augmentation of one of (seed, epoch, worker, place in the worker's stream). timm's readers pass over unreadable
    images with a line in the log, so `unreadable` is always -1 here.

    Args:
        dataset: timm's IterableImageDataset.
        transform: image -> float32 (C, H, W).
        seed: of order and augmentation.
        num_classes: labels are 0 to num_classes - 1.
        title: what to call the stream in a message.

    Attributes:
        exact: whether an epoch is the same each time it is read, so that a run that was cut can go on exactly,
            in the middle of one or after it. Known of webdataset only: other readers shuffle in ways of their own.

    Raises:
        LoadingError: while it is read, on a label that is no class, and when nothing in it can be read.
    """

    def __init__(
        self, dataset: Any, transform: Callable[[Any], Tensor], seed: int, num_classes: int, title: str
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.num_classes = num_classes
        self.title = title
        self.exact = isinstance(dataset.reader, ReaderWds)
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # worker processes live through all epochs

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the next iteration follows."""
        self.epoch.fill_(epoch)
        self.dataset.set_epoch(epoch)

    def limit_workers(self, workers: int) -> int:
        """Tell the reader how many worker processes there are, at most one per shard; -1 chooses. Return it."""
        split = getattr(self.dataset.reader, "split_info", None)
        workers = WORKERS if workers < 0 else workers
        workers = min(workers, len(getattr(split, "filenames", ())) or workers)
        self.dataset.set_loader_cfg(num_workers=workers)
        return workers

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[tuple[Tensor, int, int]]:
        worker = get_worker_info()
        stream = (self.seed, int(self.epoch), 0 if worker is None else worker.id)
        if isinstance(self.dataset.reader, ReaderWds):
            self._begin_epoch(self.dataset.reader, derive_seed(*stream))
        place = -1
        for place, (image, target) in enumerate(self.dataset):
            label = self._class_of(target, self.title)
            with isolated_randomness():
                seed_generators(derive_seed(*stream, place))
                item = self.transform(image), label, -1
            yield item
        if place < 0 and (worker is None or worker.num_workers == 1):
            raise LoadingError(f"{self.title} holds no image that can be read together with its label")

    def _begin_epoch(self, reader: ReaderWds, seed: int) -> None:
        """Give timm's reader a new pipeline, for in its old one the generator that shuffles has run on.

        The pipeline refuses labels that are no classes, which timm would partly log and pass over.
        """
        import webdataset

        reader._lazy_init()  # the first one in a worker process takes over that worker's number and seed
        reader.worker_seed = seed
        reader._lazy_init()
        if not reader.split_info.alt_label:
            reader.ds.pipeline.insert(-2, webdataset.filters.map(self._check_label))  # pyright: ignore

    def _check_label(self, sample: dict[str, Any]) -> dict[str, Any]:
        if "cls" in sample:
            shard = os.path.basename(sample.get("__url__", ""))
            self._class_of(sample["cls"], f"{self.title}, in the shard {shard}, image {sample['__key__']},")
        return sample

    def _class_of(self, label: Any, where: str) -> int:
        try:
            number = int(label)
        except (ValueError, TypeError):
            text = label.decode(errors="replace") if isinstance(label, bytes) else str(label)
            raise LoadingError(
                f"{where} has the label {text[:40]!r}, which is not the number of a class: "
                f"write 0 to {self.num_classes - 1} (--num-classes {self.num_classes})"
            ) from None
        if not 0 <= number < self.num_classes:
            raise LoadingError(
                f"{where} has the label {number}, but --num-classes {self.num_classes} "
                f"allows 0 to {self.num_classes - 1} only: change --num-classes or mend the label"
            )
        return number


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
    num_classes: int,
) -> StreamDataset:
    """Open one split of a stream: wds/ (`root` is the folder of shards), tfds/<name> or hfids/<name>.

    Raises:
        UserError: a package is missing, or the split cannot be opened.
    """
    from timm.data import create_dataset  # pyright: ignore[reportPrivateImportUsage]

    prefix = name.lower().split("/")[0] + "/"
    require((STREAMS[prefix][0],), f"data of {prefix}", STREAMS[prefix][1])
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
    title = f"the split {split!r} of {name}"
    return StreamDataset(dataset, transform, seed, num_classes, title)


def _shard_folder(name: str, root: Path | None, split: str) -> Path:
    folder = Path(name.split("/", 1)[1] if root is None else root).expanduser()
    if not folder.is_dir():
        raise UserError(f"{name} needs --data-dir, the folder its shards are in; {folder} is not one")
    if ".tar" not in split and not any((folder / info).is_file() for info in ("_info.json", "info.json")):
        raise UserError(
            f"{folder} has no _info.json to say which shards the split {split!r} has: write one as timm does, or "
            f"name shards and their number of images instead of the split, as in 'data-{{0000..0009}}.tar|5000'"
        )
    if ".tar" not in split and ".." not in split and split not in (found := _splits(folder)):
        named = f"_info.json names {', '.join(map(repr, found))} only" if found else "_info.json names no split"
        raise UserError(
            f"the split {split!r} of {name} under {folder} cannot be opened, for {named}: say which to take by "
            "--train-split, --val-split and --test-split, or --test-split None for no test part"
        )
    return folder


def _splits(folder: Path) -> list[str]:
    """The splits that a folder of shards says it has."""
    file = next(path for path in (folder / "_info.json", folder / "info.json") if path.is_file())
    try:
        return list(json.loads(file.read_text(encoding="utf-8"))["splits"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = f"{file} does not say which shards each split has"
        raise UserError(f"{fault} ({first_line(error)}): write it as timm does") from None


def located_stream(config: DataConfig) -> DataConfig:
    """The configuration that finds a stream's files from any folder."""
    if config.data_dir is not None:
        return replace(config, data_dir=config.data_dir.expanduser().resolve())
    folder = Path(config.data.split("/", 1)[1]).expanduser()
    return replace(config, data_dir=folder.resolve()) if config.data[:4].lower() == "wds/" else config
