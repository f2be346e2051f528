"""What a training would be, before it is begun: its images, network, steps, memory and time."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hadaptive.console import console, say
from hadaptive.data import Preprocessing
from hadaptive.engine.batches import Batches
from hadaptive.engine.caching import check_cache
from hadaptive.engine.memory import free_memory, memory_of_children, memory_text, peak_memory
from hadaptive.engine.processes import on_main
from hadaptive.engine.rehearsal import seconds_of_evaluation, seconds_per_step
from hadaptive.files import check_new_picture
from hadaptive.info import inspect_network
from hadaptive.pictures import contact_sheet
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, Trainer
from hadaptive.train.launch import accelerator_of, new_trainer

MOST_CLASSES = 30  # that are listed one by one


@dataclass(frozen=True)
class DryRun:
    """What was found out.

    Attributes:
        counts: images of each class, by part; without streams, whose classes nobody has counted.
        images: of the training part.
        steps: in all epochs.
        parameters, macs: of the network; the latter for one image.
        peak: bytes of memory that this process had at once.
        loaders, loader_bytes: processes that read images, and the memory that only they use.
        free: bytes of memory that were still free then.
        step_s: seconds of a step, over `timed` of them.
        total_s: estimate for all epochs, with evaluation.
    """

    counts: dict[str, list[int]]
    images: int
    steps: int
    parameters: int
    macs: int
    peak: int
    loaders: int
    loader_bytes: int
    free: int
    step_s: float
    timed: int
    total_s: float


def dry_run(
    config: TrainConfig, *, given: Iterable[str] = (), first_batch: Path | None = None, quiet: bool = False
) -> DryRun:
    """Do all that a training does before its first epoch, and some steps of it; write nothing but `first_batch`.

    Args:
        config: of the training; nothing is written to ``config.output``, but it must not exist.
        given: settings that are refused where these images leave them without an effect; a person gave them.
        first_batch: new PNG of the first batch, as the network would see it.
        quiet: print nothing.

    Raises:
        UserError: as of :func:`hadaptive.train.train`; `first_batch` exists.
    """
    if first_batch is not None:
        check_new_picture(first_batch, "--first-batch")
    if config.output is not None:
        RunFolder.check_new(config.output)
    cached, config = config.execution.cache, config.changed(cache=None)  # where pixels would be kept
    accelerator = accelerator_of(config)
    trainer, _ = new_trainer(config, accelerator, given=given, quiet=quiet)
    config = trainer.config
    if cached is not None:
        check_cache(cached, config.data.data, trainer.batches.in_memory)
    on_main(accelerator, trainer.refuse_unreadable)
    if first_batch is not None:
        on_main(accelerator, lambda: draw_batch(trainer, first_batch))
    batches, asking = trainer.batches, trainer.rehearse()
    step_s, timed = seconds_per_step(trainer)
    evaluation_s = seconds_of_evaluation(trainer)
    loaders, loader_bytes = memory_of_children()
    network = inspect_network(trainer.network, config.preprocessing.input_size)
    found = DryRun(
        counts={} if batches.counts is None else _counts(batches),
        images=batches.train.images,
        steps=trainer.epochs * trainer.steps_per_epoch,
        parameters=network.parameters,
        macs=network.macs,
        peak=peak_memory(accelerator.device),
        loaders=loaders,
        loader_bytes=loader_bytes,
        free=free_memory(accelerator.device),
        step_s=step_s,
        timed=timed,
        total_s=asking + trainer.epochs * (trainer.steps_per_epoch * step_s + evaluation_s),
    )
    if trainer.show:
        _print(found, trainer, first_batch)
    return found


def _counts(batches: Batches) -> dict[str, list[int]]:
    found = {}
    for part, source in batches.parts.items():
        if part != "test" or batches.test is not None:
            targets = source.targets if source.targets is not None else np.empty(0, np.int64)
            found[part] = batches.count(targets).tolist()
    return found


def draw_batch(trainer: Trainer, path: Path) -> None:
    """Draw the first batch of a training, augmented as it is, with the names of its classes."""
    batches = trainer.batches
    batches.train.set_epoch(0)
    images, targets, _ = next(iter(batches.train.loader))
    numbered = trainer.lessons is not None and trainer.config.teaching.teacher_sees == "image"
    if numbered:
        targets = targets % batches.labels
    how = trainer.config.preprocessing
    tiles: list[tuple[Image.Image, str, bool | None]] = [
        (to_image(image, how), batches.label_name(int(target)), None)
        for image, target in zip(images.cpu(), targets.tolist(), strict=True)
    ]
    mixed = ", before they are mixed" if trainer.criterion.mixup is not None else ""
    contact_sheet(tiles, path, f"the first {len(tiles)} images to learn from{mixed}")


def to_image(image: torch.Tensor, how: Preprocessing) -> Image.Image:
    """What a network sees, float32 (C, H, W), as an 8-bit image."""
    mean, std = (torch.tensor(values[: how.in_chans]).view(-1, 1, 1) for values in (how.mean, how.std))
    pixels = (255 * (image * std + mean)).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., 0] if how.in_chans == 1 else pixels)


def time_text(seconds: float) -> str:
    """A duration as a person reads it."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _print(found: DryRun, trainer: Trainer, first_batch: Path | None) -> None:
    config, batches = trainer.config, trainer.batches
    how, size = config.optimisation, "x".join(map(str, config.preprocessing.input_size))
    for note in batches.notes:
        say(note)
    if found.counts:
        images = {part: len(source) for part, source in batches.parts.items()}
        _print_counts(found.counts, batches.classes, images)
    lines = {
        "images": f"{found.images:,} to learn from, {len(batches.classes):,} classes",
        "network": f"{trainer.card.model}: {found.parameters:,} parameters, {found.macs / 1e6:,.1f} M MACs "
        f"for one {size} image",
        "steps": f"{how.epochs:,} epochs of {trainer.steps_per_epoch:,} steps of {how.images_per_step:,} images: "
        f"{found.steps:,} steps",
        "memory": f"{memory_text(found.peak)} at most in this process"
        + (" on the GPU" if trainer.accelerator.device.type == "cuda" else "")
        + (f", {memory_text(found.loader_bytes)} in processes that read images" if found.loaders else "")
        + f"; {memory_text(found.free)} are still free",
        "time": f"{found.step_s:.3g} s a step ({how.images_per_step / found.step_s:,.0f} images/s, over "
        f"{found.timed} steps): about {time_text(found.total_s)} for all epochs, with validation",
    }
    for name, text in lines.items():
        say(f"{name:12} {text}")
    if first_batch is not None:
        say(f"{'first batch':12} {first_batch}")
    say("nothing was trained" + ("" if first_batch is not None else " and nothing written"))


def _print_counts(counts: dict[str, list[int]], classes: list[str], images: dict[str, int]) -> None:
    from rich.table import Table

    train = counts["train"]
    order: Any = range(len(classes))
    if len(classes) > MOST_CLASSES:
        order = np.argsort(train, kind="stable").tolist()
        order = [*order[: MOST_CLASSES // 2], *order[-MOST_CLASSES // 2 :]]
        say(f"of {len(classes):,} classes those with the fewest and the most images to learn from:")
    table = Table()
    table.add_column("class")
    for part in counts:
        table.add_column(part, justify="right")
    for number in order:
        table.add_row(classes[number], *(f"{counts[part][number]:,}" for part in counts))
    table.add_section()
    table.add_row("images", *(f"{images[part]:,}" for part in counts))
    console().print(table)
