"""A batch size that fits: found before a training begins, and written into its settings."""

from collections.abc import Callable

import torch
from accelerate import Accelerator

from hadaptive.engine.fitting import largest_allowed, largest_batch
from hadaptive.errors import UserError
from hadaptive.train.config import TrainConfig
from hadaptive.train.trainer import Trainer


def fitted(
    config: TrainConfig, accelerator: Accelerator, create: Callable[[TrainConfig], Trainer]
) -> tuple[TrainConfig, str]:
    """The settings with a batch size that memory has room for, and what is said of it.

    Args:
        config: whose batch size is "auto".
        accelerator: devices and processes.
        create: a training that has not begun, which is thrown away.

    Raises:
        UserError: there are several processes, each with a memory of its own; `create`'s.
    """
    if accelerator.num_processes > 1:
        raise UserError("a batch size is found in one process only: pass --batch-size a number")
    least = 2 * config.accumulate
    found, enough = _found(create(config.changed(batch_size=least, cache=None)))
    accelerator.free_memory()
    why = "of more an epoch would have few steps" if enough else "for which memory has room"
    rate = f"the learning rate {config.optimisation.lr:g} is as it was given"
    return config.changed(batch_size=found), f"batch size {found}, {why}; {rate}"


def _found(trainer: Trainer) -> tuple[int, bool]:
    """The batch size, and whether it is all that is wanted, whatever the memory."""
    config, device = trainer.config, trainer.accelerator.device
    trainer.rehearse()
    trainer.model.train()
    trainer.begin_epoch()
    shape = config.preprocessing.input_size
    generator = torch.Generator().manual_seed(0)

    def step(images: int) -> None:
        for number in range(config.accumulate):
            made = torch.randn(images, *shape, generator=generator)
            targets = torch.arange(images) % trainer.batches.labels
            trainer.micro_step(*trainer.ready(made, targets), number)

    most = largest_allowed(trainer.batches.train.images, config.accumulate)
    found = largest_batch(step, device, most)
    return config.accumulate * found, found >= most
