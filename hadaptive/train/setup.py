"""From a TrainConfig to data, network and optimiser: all that happens before the first step."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderDispatcher, DataLoaderShard
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from hadaptive.data import (
    Augmentation,
    EpochSampler,
    ImageDataset,
    Preprocessing,
    create_loader,
    eval_transform,
    hold_out,
    is_stream,
    open_splits,
    open_stream,
    train_transform,
    worker_count,
)
from hadaptive.data.streams import StreamDataset
from hadaptive.errors import UserError, first_line
from hadaptive.models import create_model
from hadaptive.runs import ModelCard, RunFolder, card_for, open_weights
from hadaptive.train.config import TrainConfig


@dataclass
class DataParts:
    """The loaders of a run and what is known of its data."""

    train: DataLoader
    validation: DataLoader
    test: DataLoader | None
    order: EpochSampler | StreamDataset
    classes: list[str]
    train_images: int
    steps_per_epoch: int
    notes: list[str]
    names: dict[str, Any]
    alpha: DataLoader | None = None
    alpha_order: EpochSampler | None = None
    alpha_steps_per_epoch: int = 0

    def check_classes(self, classes: list[str], data: str) -> None:
        """Raise one clear UserError unless these data have the classes that a run was trained on."""
        if self.classes != classes:
            raise UserError(
                f"{data} has other classes than the run was trained on "
                f"({len(self.classes)} now, {len(classes)} then)"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order the training loaders follow."""
        for order, loader in ((self.order, self.train), (self.alpha_order, self.alpha)):
            if order is not None:
                order.set_epoch(epoch)
            # accelerate's loaders count the epochs of this process, from 0, and would set that number instead.
            if isinstance(loader, DataLoaderShard | DataLoaderDispatcher):
                loader.set_epoch(epoch)


def create_accelerator(config: TrainConfig, *, unused_parameters: bool = False) -> Accelerator:
    """Devices, processes and precision, as accelerate finds them.

    Args:
        unused_parameters: a step may leave some parameters without a gradient, as a supernet's does.

    Raises:
        UserError: the precision is not to be had on this device.
    """
    # accelerate keeps one state per process; a second run in it may want another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        return Accelerator(
            cpu=config.cpu,
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.accumulate,
            dynamo_backend="inductor" if config.compile else None,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused_parameters)],
        )
    except ValueError as error:
        raise UserError(f"mixed_precision {config.mixed_precision!r} does not work here: {error}") from None


def preprocessing_of(config: TrainConfig) -> Preprocessing:
    """What happens to every image before the network sees it."""
    return Preprocessing(
        image_size=config.image_size,
        in_chans=config.in_chans,
        fit=config.fit,
        pad=config.pad,
        crop_pct=config.crop_pct,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
    )


def augmentation_of(config: TrainConfig) -> Augmentation:
    """What happens to training images besides."""
    return Augmentation(
        hflip=config.hflip,
        vflip=config.vflip,
        shift=config.shift,
        scale=config.scale,
        auto_augment=config.auto_augment,
        color_jitter=config.color_jitter,
        erase=config.erase,
    )


def create_data(config: TrainConfig, accelerator: Accelerator, alpha_fraction: float = 0.0) -> DataParts:
    """Open the data, hold parts out, and make the loaders.

    Args:
        alpha_fraction: share of the training images set apart for a search's architecture parameters; with it,
            the test part is not even opened as a loader.

    Raises:
        UserError: the data cannot be opened, or the batch size does not fit them or the processes.
    """
    processes, preprocessing = accelerator.num_processes, preprocessing_of(config)
    micro, rest = divmod(config.batch_size, config.accumulate)
    if rest or micro % processes:
        raise UserError(
            f"batch_size {config.batch_size} must be divisible by accumulate x processes "
            f"= {config.accumulate} x {processes}"
        )
    if micro // processes < 2:
        raise UserError("BatchNorm needs at least 2 images per process and step: raise batch_size")
    if (config.mixup or config.cutmix) and micro // processes % 2:
        raise UserError(f"mixup needs an even number of images per process and step, not {micro // processes}")
    if is_stream(config.data):
        if alpha_fraction:
            raise UserError(f"{config.data} is a stream, which a search cannot divide: unpack it into a folder")
        return _create_streams(config, accelerator, preprocessing, micro)
    splits = open_splits(
        config.data,
        config.data_dir,
        val_fraction=config.val_fraction,
        test_fraction=config.test_fraction,
        train_size=config.train_size,
        split_names=(config.train_split, config.val_split, config.test_split),
        seed=config.data_seed,
    )
    part, alpha_part = splits.train, None
    if alpha_fraction:
        count = round(alpha_fraction * len(part))
        if min(count, len(part) - count) < config.batch_size:
            raise UserError(
                f"{len(part)} training images cannot be divided into one part for the weights and one for the "
                f"architecture (alpha_fraction {alpha_fraction:g}) of at least one batch of {config.batch_size} "
                "each: gather more images or lower batch_size"
            )
        part, alpha_part = hold_out(part, count, config.data_seed + 3)
    steps = len(part) // config.batch_size
    if steps == 0:
        raise UserError(
            f"there are only {len(part)} training images, fewer than batch_size {config.batch_size}: lower it"
        )
    workers = worker_count(
        config.workers,
        in_memory=splits.in_memory,
        device=accelerator.device.type,
        batch=(micro // processes, *preprocessing.input_size),
    )
    pin = accelerator.device.type == "cuda"
    order = EpochSampler(len(part), steps * config.batch_size, config.seed)

    def dataset(part: Any, transform: Any, training: bool = False) -> ImageDataset:
        return ImageDataset(
            part,
            transform,
            seed=config.seed,
            training=training,
            strict=config.strict,
            blank=preprocessing.input_size,
        )

    def evaluated(part: Any) -> DataLoader:
        loader = create_loader(dataset(part, eval_transform(preprocessing)), micro, workers=workers, pin=pin)
        return accelerator.prepare(loader)

    def trained(part: Any, order: EpochSampler) -> DataLoader:
        images = dataset(part, train_transform(preprocessing, augmentation_of(config)), training=True)
        return accelerator.prepare(create_loader(images, micro, sampler=order, workers=workers, pin=pin))

    parts = DataParts(
        train=trained(part, order),
        validation=evaluated(splits.validation),
        test=None if splits.test is None or alpha_fraction else evaluated(splits.test),
        order=order,
        classes=splits.classes,
        train_images=len(part),
        steps_per_epoch=steps,
        notes=splits.notes,
        names={"train": part, "alpha": alpha_part, "validation": splits.validation, "test": splits.test},
    )
    if alpha_part is not None:
        # Never more architecture steps than weight steps: they alternate.
        parts.alpha_steps_per_epoch = min(steps, len(alpha_part) // config.batch_size)
        alpha_images = parts.alpha_steps_per_epoch * config.batch_size
        parts.alpha_order = EpochSampler(len(alpha_part), alpha_images, config.seed + 1)
        parts.alpha = trained(alpha_part, parts.alpha_order)
    return parts


def _create_streams(
    config: TrainConfig, accelerator: Accelerator, preprocessing: Preprocessing, micro: int
) -> DataParts:
    if accelerator.num_processes > 1:
        raise UserError(f"{config.data} is a stream, and streams are read by one process only for now")
    if config.strict:
        raise UserError(f"{config.data} is a stream, whose reader skips unreadable images: leave out strict")
    if config.num_classes is None:
        raise UserError(f"{config.data} is a stream, whose classes cannot be listed: pass num_classes")
    if config.val_split is None:
        raise UserError(f"{config.data} is a stream, from which nothing can be held out: name a val_split")
    num_classes = config.num_classes

    def stream(split: str, training: bool) -> StreamDataset:
        transform = (
            train_transform(preprocessing, augmentation_of(config)) if training else eval_transform(preprocessing)
        )
        return open_stream(
            config.data,
            config.data_dir,
            split,
            transform,
            training=training,
            batch_size=micro,
            num_samples=config.train_samples if training else None,
            seed=config.seed,
            channels=config.in_chans,
            num_classes=num_classes,
        )

    def loader(dataset: Dataset) -> DataLoader:
        return accelerator.prepare(create_loader(dataset, micro, workers=config.workers, seed=config.seed))

    train = stream(config.train_split, True)
    images = len(train)  # asked before there is a loader, whose workers change the reader's own count
    steps = images // config.batch_size
    if steps == 0:
        raise UserError(f"{config.data} has only {images} training images, fewer than one batch")
    # The reader's default "test" is only a guess: no test part unless it differs from the others.
    named = config.test_split not in (None, config.train_split, config.val_split)
    return DataParts(
        train=loader(train),
        validation=loader(stream(config.val_split, False)),
        test=loader(stream(str(config.test_split), False)) if named else None,
        order=train,
        classes=[str(i) for i in range(config.num_classes)],
        train_images=images,
        steps_per_epoch=steps,
        notes=[],
        names={},
    )


def starting_network(config: TrainConfig, classes: list[str]) -> tuple[nn.Module, ModelCard]:
    """The network in training mode that a run starts from, new or from ``config.init``, and its card.

    Raises:
        UserError: there is no such network, or it does not fit the data.
    """
    preprocessing = preprocessing_of(config)
    if config.init is None:
        network = create_network(config, len(classes))
        card = card_for(config.model, network, classes, preprocessing)
        return network, replace(card, drop_rate=config.drop_rate, drop_path_rate=config.drop_path_rate)
    if config.init.is_dir():
        run = RunFolder.open(config.init)
        network, card = run.load_model(run.read_json(run.config).get("select", "best"))
    elif config.init.is_file():
        network, card = open_weights(config.init)
    else:
        raise UserError(f"there is no run folder or file {config.init} to start from")
    if card.classes != classes:
        raise UserError(
            f"{config.init} knows other classes than {config.data} has ({len(card.classes)} there, "
            f"{len(classes)} here)"
        )
    if card.preprocessing.in_chans != config.in_chans:
        raise UserError(f"{config.init} takes {card.preprocessing.in_chans} channels, not {config.in_chans}")
    torch.manual_seed(config.seed)
    _try(network, config)
    return _laid_out(network, config).train(), replace(card, preprocessing=preprocessing)


def begun_network(run: RunFolder, config: TrainConfig) -> tuple[nn.Module, ModelCard]:
    """The network in training mode of a run that has a checkpoint, without what it started from, and its card."""
    card = run.read_card()
    network = card.create_model()
    network.load_state_dict(run.load_checkpoint()["model"])
    torch.manual_seed(config.seed)
    return _laid_out(network, config).train(), card


def _laid_out(network: nn.Module, config: TrainConfig) -> nn.Module:
    return network.to(memory_format=torch.channels_last) if config.channels_last else network  # pyright: ignore


def _try(network: nn.Module, config: TrainConfig) -> None:
    """Run one blank image through a network.

    Raises:
        UserError: the images are too small for it.
    """
    size = config.image_size
    network.eval()
    try:
        with torch.no_grad():
            network(torch.zeros(1, config.in_chans, size, size))
    except (RuntimeError, AssertionError) as error:
        hint = " or stem_strides 1 1" if config.model.startswith("hadaptive_net") and config.init is None else ""
        raise UserError(
            f"{config.init or config.model} cannot take {size}x{size} images ({first_line(error)}): "
            f"try a larger image_size{hint}"
        ) from None


def create_network(config: TrainConfig, num_classes: int) -> nn.Module:
    """The untrained network, seeded, after a trial with one blank image of the run's size.

    Raises:
        UserError: the model is unknown, or the images are too small for it.
    """
    torch.manual_seed(config.seed)
    model = create_model(
        config.model,
        num_classes=num_classes,
        in_chans=config.in_chans,
        drop_rate=config.drop_rate,
        drop_path_rate=config.drop_path_rate,
        stem_strides=config.stem_strides,
    )
    _try(model, config)
    return _laid_out(model.train(), config)


def create_optimizer(module: nn.Module, config: TrainConfig, steps_per_epoch: int) -> tuple[Optimizer, Scheduler]:
    """timm's optimiser of a module's parameters, and its schedule by steps.

    Raises:
        UserError: timm has no such optimiser or schedule.
    """
    try:
        optimizer = create_optimizer_v2(module, opt=config.opt, lr=config.lr, weight_decay=config.weight_decay)
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=config.sched,
            num_epochs=config.epochs,
            warmup_epochs=config.warmup * config.epochs,  # pyright: ignore[reportArgumentType]
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
    except (ValueError, AssertionError, KeyError) as error:
        raise UserError(f"opt {config.opt!r} or sched {config.sched!r} is not one timm has: {error}") from None
    assert scheduler is not None
    return optimizer, scheduler
