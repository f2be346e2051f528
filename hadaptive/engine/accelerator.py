"""Devices, processes and precision, as accelerate finds them."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DataLoaderConfiguration, DistributedDataParallelKwargs, InitProcessGroupKwargs

from hadaptive.engine.config import Execution
from hadaptive.errors import UserError, first_line

# For what one process does alone, such as reading all images or asking a teacher; NCCL gives up after ten minutes.
WAIT = timedelta(hours=12)


def create_accelerator(
    execution: Execution, *, accumulate: int = 1, compile: bool = False, unused_parameters: bool = False
) -> Accelerator:
    """Where work is done: on the device at hand, in this process or in all that torchrun started.

    Args:
        execution: device and precision.
        accumulate: batches in one optimiser step.
        compile: run networks through torch.compile.
        unused_parameters: a step may leave some parameters without a gradient, as a supernet's does.

    Raises:
        UserError: the precision is not to be had on this device.
    """
    _check_launch()
    # accelerate keeps one state per process; a second run in it may want another device or precision.
    AcceleratorState._reset_state(reset_partial_state=True)
    # Unless told, accelerate takes every process of a machine without a GPU for the only one.
    cpu = execution.cpu or not torch.accelerator.is_available()
    try:
        return Accelerator(
            cpu=cpu,
            mixed_precision=execution.mixed_precision,
            gradient_accumulation_steps=accumulate,
            dynamo_backend="inductor" if compile else None,
            dataloader_config=DataLoaderConfiguration(split_batches=True),
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=unused_parameters),
                InitProcessGroupKwargs(timeout=WAIT),
            ],
        )
    except ValueError as error:
        raise UserError(
            f"mixed_precision {execution.mixed_precision!r} does not work here ({first_line(error)}): "
            "use --mixed-precision bf16 or no"
        ) from None


def _check_launch() -> None:
    """Raise one clear UserError if only a part of what torchrun says of its processes is there."""
    of_several = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    missing = [name for name in of_several if name not in os.environ]
    if "LOCAL_RANK" in os.environ and missing:
        raise UserError(
            f"LOCAL_RANK is set in the environment, but not {', '.join(missing)}: start with torchrun, which sets "
            "them all, or unset LOCAL_RANK to run in one process"
        )
