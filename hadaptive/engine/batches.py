"""From images to the batches of a training, a search or an evaluation."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from torch.utils.data import DataLoader

from hadaptive.data import (
    Augmentation,
    DataConfig,
    EpochSampler,
    ImageData,
    ImageDataset,
    LabelSets,
    Numbered,
    Preprocessing,
    Source,
    create_loader,
    eval_transform,
    hold_out,
    open_stream,
    train_transform,
    worker_count,
)
from hadaptive.data.streams import StreamDataset
from hadaptive.data.transforms import Decode
from hadaptive.engine.caching import Caching
from hadaptive.engine.config import Execution, Optimisation
from hadaptive.errors import UserError, first_line

EVALUATION_BATCH = 64


class Learning(Protocol):
    """What every configuration that learns from images is composed of."""

    @property
    def data(self) -> DataConfig: ...
    @property
    def preprocessing(self) -> Preprocessing: ...
    @property
    def augmentation(self) -> Augmentation: ...
    @property
    def optimisation(self) -> Optimisation: ...
    @property
    def execution(self) -> Execution: ...
    def flat(self) -> dict[str, Any]: ...


@dataclass
class Training:
    """Shuffled batches of one part, in an order that an epoch's number decides."""

    loader: DataLoader
    order: EpochSampler | StreamDataset
    images: int
    steps: int  # of a whole batch each, in an epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the loader follows."""
        self.order.set_epoch(epoch)
        # accelerate's loaders count the epochs of this process, from 0, and would set that number instead.
        if isinstance(self.loader, DataLoaderShard | DataLoaderDispatcher):
            self.loader.set_epoch(epoch)


@dataclass
class Batches:
    """The loaders of a run and what is known of its data.

    Attributes:
        train: of the weights.
        validation, test: in order; None where there is no such part, or it is not looked at.
        classes: names, in the order of a network's outputs.
        parts: the images of each part, for their names; empty for streams.
        alpha: of a search's architecture parameters.
        notes: sentences for the person.
        exact: whether a resumed run sees the same batches.
        fingerprint: of the images and their parts, "" for streams.
        in_memory: whether reading an image costs no file access.
        counts: int64 (classes,), training images of each class; None where they are not known beforehand.
        sets: which classes each target stands for, of images that may have several; else None.
    """

    train: Training
    validation: DataLoader
    test: DataLoader | None
    classes: list[str]
    parts: dict[str, Source] = field(default_factory=dict)
    alpha: Training | None = None
    notes: list[str] = field(default_factory=list)
    exact: bool = True
    fingerprint: str = ""
    in_memory: bool = False
    counts: np.ndarray | None = None
    sets: LabelSets | None = None

    @property
    def labels(self) -> int:
        """How many values targets have."""
        return len(self.classes if self.sets is None else self.sets.members)

    def label_name(self, target: int) -> str:
        """What a target stands for: a class, or all that an image has."""
        if self.sets is None:
            return self.classes[target]
        there = zip(self.classes, self.sets.members[target], strict=True)
        return ", ".join(name for name, has in there if has) or "none"

    def count(self, targets: np.ndarray) -> np.ndarray:
        """int64 (classes,), images of each class.

        Args:
            targets: int64 (N,).
        """
        of_labels = np.bincount(targets, minlength=self.labels)
        return of_labels if self.sets is None else of_labels @ self.sets.members

    def image_name(self, part: str, index: int) -> str:
        """What to call an image of a part in a message."""
        source = self.parts.get(part)
        return f"{part} #{index}" if source is None else source.name(index)


def why_unreadable(source: Source, index: int, how: Preprocessing) -> str | None:
    """Why an image cannot be read, in one line; None if it can."""
    try:
        Decode(how)(source.read(index)[0])
    except OSError as error:
        return " ".join((error.strerror or first_line(error)).split())
    return None


def create_batches(
    config: Learning,
    accelerator: Accelerator,
    data: ImageData | None,
    *,
    accumulate: int = 1,
    even: bool = False,
    alpha_fraction: float = 0.0,
    test: bool = True,
    numbered: bool = False,
    balanced: bool = False,
) -> Batches:
    """The loaders of a training or a search.

    Args:
        config: its settings.
        accelerator: whose processes share each batch.
        data: opened; None for a stream.
        accumulate: smaller batches that each step is divided into.
        even: mixup needs an even number of images in each of them.
        alpha_fraction: share of the training images set apart for a search's architecture parameters.
        test: look at the test part, where there is one.
        balanced: every class is drawn equally often in training.
        numbered: targets of training images tell which image they are of, as :class:`Numbered` has it.

    Raises:
        UserError: the batch size does not fit the data or the processes.
    """
    micro = _images_per_pass(config.optimisation.images_per_step, accumulate, accelerator.num_processes, even)
    if data is None:
        if alpha_fraction:
            raise UserError(f"{config.data.data} is a stream, which nothing can divide: unpack it into a folder")
        return _stream_batches(config, accelerator, micro, test)
    batch, part, alpha_part = config.optimisation.images_per_step, data.train, None
    if alpha_fraction:
        count = round(alpha_fraction * len(part))
        if min(count, len(part) - count) < batch:
            raise UserError(
                f"{len(part)} training images cannot be divided into one part for the weights and one for the "
                f"architecture (alpha_fraction {alpha_fraction:g}) of at least one batch of {batch} "
                "each: gather more images or lower batch_size"
            )
        part, alpha_part = hold_out(part, count, config.data.data_seed + 3)
    steps = len(part) // batch
    if steps == 0:
        raise UserError(f"there are only {len(part)} training images, fewer than batch_size {batch}: lower it")

    caching = None
    if config.execution.cache is not None:
        caching = Caching(data, config.preprocessing, config.execution, accelerator)

    def trained(source: Source, steps: int, seed: int) -> Training:
        order = EpochSampler(len(source), steps * batch, seed, part.targets if balanced else None)
        transform = train_transform(config.preprocessing, config.augmentation)
        read = source if caching is None else caching.training(source)
        read = Numbered(read, len(data.classes)) if numbered else read
        loader = _loader(read, transform, micro, config, accelerator, data.in_memory, order)
        return Training(loader, order, len(source), steps)

    def evaluated(source: Source, kept: Source | None = None) -> DataLoader:
        transform = eval_transform(config.preprocessing)
        if kept is not None:
            source, transform = kept, transform.after_steps()
        return _loader(source, transform, micro, config, accelerator, data.in_memory)

    seed = config.execution.seed
    if balanced and part.targets is None:
        raise UserError(
            f"the classes of {config.data.data} are not known before it is read: nothing can be balanced"
        )
    sets = data.label_sets()
    batches = Batches(
        train=trained(part, steps, seed),
        validation=evaluated(data.validation, None if caching is None else caching.validation()),
        test=evaluated(data.test) if test and data.test is not None else None,
        classes=data.classes if sets is None else sets.classes,
        parts={**data.parts, "train": part},
        notes=[*data.notes, *([] if caching is None else [caching.note])],
        fingerprint=data.manifest.fingerprint,
        in_memory=data.in_memory,
        sets=sets,
    )
    batches.counts = None if part.targets is None else batches.count(part.targets)
    if alpha_part is not None:
        # Never more architecture steps than weight steps: they alternate.
        batches.alpha = trained(alpha_part, min(steps, len(alpha_part) // batch), seed + 1)
        batches.parts["alpha"] = alpha_part
    return batches


def _images_per_pass(batch_size: int, accumulate: int, processes: int, even: bool) -> int:
    """Images of all processes in one forward pass."""
    micro, rest = divmod(batch_size, accumulate)
    if rest or micro % processes:
        raise UserError(
            f"batch_size {batch_size} must be divisible by accumulate x processes = {accumulate} x {processes}"
        )
    if micro // processes < 2:
        raise UserError("BatchNorm needs at least 2 images per process and step: raise batch_size")
    if even and micro // processes % 2:
        raise UserError(f"mixup needs an even number of images per process and step, not {micro // processes}")
    return micro


def _loader(
    source: Source,
    transform: Any,
    batch_size: int,
    config: Learning,
    accelerator: Accelerator,
    in_memory: bool,
    order: EpochSampler | None = None,
) -> DataLoader:
    dataset = ImageDataset(
        source,
        transform,
        seed=config.execution.seed,
        training=order is not None,
        strict=config.execution.strict,
        blank=config.preprocessing.input_size,
    )
    device = accelerator.device.type
    shape = (batch_size // accelerator.num_processes, *config.preprocessing.input_size)
    # One batch in order is read before a worker process has started.
    few = order is None and len(source) <= batch_size
    workers = 0 if few else worker_count(config.execution.workers, in_memory=in_memory, device=device, batch=shape)
    pin = device == "cuda"
    return accelerator.prepare(create_loader(dataset, batch_size, sampler=order, workers=workers, pin=pin))


def _stream_batches(config: Learning, accelerator: Accelerator, micro: int, test: bool) -> Batches:
    data, name = config.data, config.data.data
    if accelerator.num_processes > 1:
        raise UserError(f"{name} is a stream, and streams are read by one process only for now")
    if config.execution.strict:
        raise UserError(f"{name} is a stream, whose reader skips unreadable images: leave out strict")
    if data.val_split is None:
        raise UserError(f"{name} is a stream, from which nothing can be held out: name a val_split")
    train = _stream(config, data.train_split, micro, training=True)
    images = len(train)  # asked before there is a loader, whose workers change the reader's own count
    steps = images // config.optimisation.images_per_step
    if steps == 0:
        raise UserError(f"{name} has only {images} training images, fewer than one batch")
    # The reader's default "test" is only a guess: no test part unless it differs from the others.
    named = test and data.test_split not in (None, data.train_split, data.val_split)
    return Batches(
        train=Training(_prepared(config, train, micro, accelerator), train, images, steps),
        validation=stream_loader(config, data.val_split, micro, accelerator),
        test=stream_loader(config, str(data.test_split), micro, accelerator) if named else None,
        classes=stream_classes(data),
        exact=train.exact,
    )


def stream_classes(data: DataConfig) -> list[str]:
    """A stream's classes: numbers, since nothing names them.

    Raises:
        UserError: nobody said how many there are.
    """
    if data.num_classes is None:
        raise UserError(f"{data.data} is a stream, whose classes cannot be listed: pass num_classes")
    return [str(i) for i in range(data.num_classes)]


def _stream(config: Learning, split: str, batch_size: int, training: bool = False) -> StreamDataset:
    preprocessing = config.preprocessing
    return open_stream(
        config.data.data,
        config.data.data_dir,
        split,
        train_transform(preprocessing, config.augmentation) if training else eval_transform(preprocessing),
        training=training,
        batch_size=batch_size,
        num_samples=config.data.train_samples if training else None,
        seed=config.execution.seed,
        channels=preprocessing.in_chans,
        num_classes=len(stream_classes(config.data)),
    )


def _prepared(config: Learning, dataset: StreamDataset, batch_size: int, accelerator: Accelerator) -> DataLoader:
    how = config.execution
    return accelerator.prepare(create_loader(dataset, batch_size, workers=how.workers, seed=how.seed))


def stream_loader(config: Learning, split: str, batch_size: int, accelerator: Accelerator) -> DataLoader:
    """One split of a stream, in order."""
    return _prepared(config, _stream(config, split, batch_size), batch_size, accelerator)


def evaluation_batches(
    source: Source,
    preprocessing: Preprocessing,
    *,
    in_memory: bool = False,
    workers: int = -1,
    accelerator: Accelerator | None = None,
) -> DataLoader:
    """One part in order, as a trained network sees it; no setting of the training is needed for that.

    Args:
        source: images.
        preprocessing: of the network.
        in_memory: where they are.
        workers: loader processes; -1 chooses.
        accelerator: whose processes share the batches; None for plain CPU.
    """
    dataset = ImageDataset(source, eval_transform(preprocessing), blank=preprocessing.input_size)
    device = "cpu" if accelerator is None else accelerator.device.type
    shape = (EVALUATION_BATCH, *preprocessing.input_size)
    few = len(source) <= EVALUATION_BATCH
    count = 0 if few else worker_count(workers, in_memory=in_memory, device=device, batch=shape)
    loader = create_loader(dataset, EVALUATION_BATCH, workers=count)
    return loader if accelerator is None else accelerator.prepare(loader)
