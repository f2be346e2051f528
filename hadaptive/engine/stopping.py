"""Ctrl-C and SIGTERM as a request to stop after the current step."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator

from hadaptive.jobs.signals import taken


class StopRequest:
    """Whether this run was asked to stop; a second signal interrupts at once."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.requested = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals inside the block (in the main thread; elsewhere nothing happens)."""

        def handler(number: int, frame: Any) -> None:
            if self.requested:
                raise KeyboardInterrupt
            self.requested = True
            if self.accelerator.is_main_process:  # at once, and past what may be half printed
                os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once\n")

        with taken(handler):
            yield

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all processes agree."""
        if self.accelerator.num_processes == 1:
            return self.requested
        if self.requested:
            self.accelerator.set_trigger()
        return self.accelerator.check_trigger()
