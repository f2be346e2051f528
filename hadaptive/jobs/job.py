"""A job, what becomes of it, and what a person is told meanwhile."""

import contextlib
import importlib
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hadaptive.console import say
from hadaptive.errors import TrainingInterruptedError, UserError
from hadaptive.jobs.exchange import travels
from hadaptive.jobs.signals import taken


@dataclass(frozen=True)
class Job:
    """One of several independent calls, which leaves what it has done where it can go on.

    Attributes:
        name: what it does, for a person; no two have the same.
        call: takes `quiet`; a function of a module, or a partial of one, for processes find it by its name.
        modules: that another process imports first, as those that register a network.
    """

    name: str
    call: Callable[..., Any]
    modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What became of a job: its result, or what it raised."""

    job: Job
    value: Any = None
    error: Exception | None = None

    def result(self) -> Any:
        """Its result.

        Raises:
            Exception: what the job raised.
        """
        if self.error is not None:
            raise self.error
        return self.value


class JobDiedError(UserError):
    """A process was lost with its job."""


def attempt(call: Callable[..., Any], *, quiet: bool) -> tuple[Any, Exception | None]:
    """What a call returns and what it raises, one of which is None."""
    try:
        return call(quiet=quiet), None
    except Exception as error:
        return None, error


def attempt_elsewhere(job: Job, folder: str, threads: int) -> tuple[Any, Exception | None]:
    """As :func:`attempt`, in another process: silent, and what comes of it can be sent back.

    Args:
        job: what is done.
        folder: that the paths of the job are relative to.
        threads: of PyTorch.
    """

    def call(quiet: bool) -> Any:
        try:
            os.chdir(folder)
        except OSError as error:
            raise UserError(
                f"{job.name}: the machine that is to do it has no folder {folder} ({error.strerror}): all "
                "machines of a cluster must see the same files"
            ) from None
        for module in job.modules:
            importlib.import_module(module)
        if "torch" in sys.modules:  # else nothing of it is needed
            sys.modules["torch"].set_num_threads(threads)
        return job.call(quiet=quiet)

    value, error = attempt(call, quiet=True)
    if error is not None and not isinstance(error, (TrainingInterruptedError, UserError)):
        traceback.print_exception(error)  # which does not travel with it
    if not travels(error):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not travels(value):
        value, error = None, TypeError(f"{job.name}: its result cannot be sent from one process to another")
    return value, error


@contextlib.contextmanager
def listening() -> Iterator[list[int]]:
    """The signals to stop that come meanwhile, to be heeded between two looks; only the main thread gets any."""
    came: list[int] = []

    def handler(number: int, frame: Any) -> None:
        came.append(number)
        if len(came) == 1:
            os.write(2, b"\nstopping all of them, with a checkpoint each; once more stops at once\n")

    with taken(handler):
        yield came


class Teller:
    """Says what begins and what ends, where several do at once."""

    def __init__(self, number: int, quiet: bool) -> None:
        self.number, self.quiet, self.ended = number, quiet, 0
        self.began: dict[str, float] = {}

    def begin(self, job: Job) -> None:
        self.began[job.name] = time.monotonic()
        self.say(f"== {job.name}")

    def end(self, outcome: Outcome) -> Outcome:
        self.ended += 1
        seconds = time.monotonic() - self.began[outcome.job.name]
        how = "done" if outcome.error is None else "ended by an error"
        self.say(f"== {outcome.job.name}: {how} after {seconds:.0f} s ({self.ended} of {self.number})")
        return outcome

    def say(self, text: str) -> None:
        if not self.quiet:
            say(text)
