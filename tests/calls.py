"""Calls for jobs of other processes, which find them by their names."""

import os
import signal
import threading
import time
from pathlib import Path

from hadaptive.errors import TrainingInterruptedError, UserError


class UnreadableError(Exception):
    """Can be pickled, but not read again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


class DivergedError(UserError):
    """As of a training."""


def square(number: int, *, quiet: bool) -> tuple[int, int, bool]:
    """The square, the process, and whether it is quiet."""
    return number**2, os.getpid(), quiet


def threads(*, quiet: bool) -> int:
    """Of PyTorch."""
    import torch

    return torch.get_num_threads()


def wait_for(mine: Path, other: Path, *, quiet: bool) -> bool:
    """Whether another call came while this one was there."""
    mine.touch()
    end = time.monotonic() + 60
    while not other.is_file() and time.monotonic() < end:
        time.sleep(0.05)
    return other.is_file()


def dies(path: Path, times: int, *, quiet: bool) -> str:
    """Lose the process so many times, and then return."""
    number = len(list(path.iterdir()))
    if number < times:
        (path / str(number)).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def diverges(*, quiet: bool) -> None:
    raise DivergedError("the loss is nan")


def unreadable(*, quiet: bool) -> None:
    raise UnreadableError("one", "two")


def trains(path: Path, *, quiet: bool) -> None:
    """As a training does: go on until a signal, leave a checkpoint, and say that it was interrupted."""
    came = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: came.set())
    signal.signal(signal.SIGTERM, lambda *_: came.set())
    (path / f"begun-{os.getpid()}").touch()
    end = time.monotonic() + 60
    while not came.is_set() and time.monotonic() < end:
        time.sleep(0.05)
    (path / f"checkpoint-{os.getpid()}").touch()
    raise TrainingInterruptedError(str(path))


def stops(path: Path, *, quiet: bool) -> str:
    """As a training that somebody else stops: the first time it is interrupted, and then goes on."""
    if (path / "stopped").is_file():
        return "went on"
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    came = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: came.set())
    (path / "stopped").touch()
    os.kill(os.getpid(), signal.SIGTERM)
    came.wait(60)
    raise TrainingInterruptedError(str(path))


def fails(*, quiet: bool) -> None:
    """End the process as a fault of Python itself does."""
    os._exit(3)


def here(*, quiet: bool) -> str:
    return os.getcwd()


def unsendable(*, quiet: bool) -> object:
    return lambda: None


def device(*, quiet: bool) -> str | None:
    """The GPUs that this process is to see."""
    return os.environ.get("CUDA_VISIBLE_DEVICES")
