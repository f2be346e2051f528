"""The process of one job, which :mod:`hadaptive.jobs.processes` starts."""

import os
import signal
import threading
from pathlib import Path

from hadaptive.jobs.exchange import give, take
from hadaptive.jobs.job import attempt_elsewhere


def _end_with_the_other() -> None:
    """Stop, as by a signal, when the process that started this one is gone: its end of the pipe closes."""
    while os.read(0, 4096):  # not by sys.stdin, whose lock the end of this process would wait for
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path, threads: int) -> None:
    """Do what the folder's file `job` says, and leave what became of it in `outcome`."""
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    give(attempt_elsewhere(take(folder / "job"), os.getcwd(), threads), folder / "outcome")
