"""What a person sees while training: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any

from hadaptive.console import console, say


class Progress:
    """Progress over all steps of a run.

    Args:
        total: steps of the whole run.
        done: steps done before, in a resumed run.
        enabled: False shows nothing (other processes, ``quiet``).
        every: seconds between plain lines.
    """

    def __init__(self, total: int, done: int, enabled: bool, every: float = 15.0) -> None:
        self.total, self.done, self.enabled, self.every = total, done, enabled, every
        self.started = self.said = time.monotonic()
        self.first = done
        self.bar: Any = None
        self.task: Any = None
        if enabled and sys.stdout.isatty():
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self.bar = Bar(
                TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f}%"),
                TimeRemainingColumn(), TextColumn("{task.fields[rate]}"), console=console(),
            )  # fmt: skip
            self.task = self.bar.add_task("training", total=total, completed=done, rate="")
            self.bar.start()

    def step(self, epoch: int, epochs: int, loss: float, images: int) -> None:
        """One step is done; `images` is how many images this run has seen since it (re)started."""
        self.done += 1
        if not self.enabled:
            return
        now = time.monotonic()
        rate = images / max(now - self.started, 1e-9)
        if self.bar is not None:
            self.bar.update(
                self.task,
                completed=self.done,
                description=f"epoch {epoch + 1}/{epochs}  loss {loss:.3f}",
                rate=f"{rate:.0f} images/s",
            )
        elif now - self.said >= self.every:
            self.said = now
            left = (self.total - self.done) * (now - self.started) / max(1, self.done - self.first)
            say(
                f"epoch {epoch + 1}/{epochs}  step {self.done}/{self.total}  loss {loss:.3f}  "
                f"{rate:.0f} images/s  {left / 60:.1f} min left",
            )

    def say(self, text: str) -> None:
        """A line above the bar."""
        if not self.enabled:
            return
        if self.bar is not None:
            self.bar.console.print(text)
        else:
            say(text)

    def close(self) -> None:
        """Take the bar down."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
