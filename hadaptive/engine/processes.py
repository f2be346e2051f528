"""What one process of several does for all: make a folder, measure, decide, write."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from hadaptive.errors import MainProcessError, first_line

T = TypeVar("T")


def on_main(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """Run `action` in the main process only; its result, or its failure, is every process's.

    Whatever `action` raises goes on in the main process; the others, which would wait for it forever, raise too.

    Raises:
        MainProcessError: in the other processes, where `action` raised anything.
    """
    if accelerator.num_processes == 1:
        return action()
    shared: list[Any] = [None, None]
    failure: BaseException | None = None
    if accelerator.is_main_process:
        try:
            shared[0] = action()
        except BaseException as error:  # an interruption must reach the others as well
            failure, shared[1] = error, first_line(error)
    broadcast_object_list(shared)
    if failure is not None:
        raise failure
    if shared[1] is not None:
        raise MainProcessError(shared[1])
    return shared[0]
