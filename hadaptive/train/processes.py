"""What one process of several does for all: make a folder, measure, decide."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hadaptive.errors import UserError

T = TypeVar("T")


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Run `action` in the main process only; its result, or its ValueError, is every process's.

    Raises:
        UserError: `action` did.
    """
    shared: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            shared[0] = action()
        except ValueError as error:
            shared[1] = str(error)
    if accelerator.num_processes > 1:
        broadcast_object_list(shared)
    if shared[1] is not None:
        raise UserError(shared[1])
    return shared[0]
