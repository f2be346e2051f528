"""The process of one job: python -m hadaptive.jobs.worker FOLDER, by :mod:`hadaptive.jobs.processes` alone."""

import os
import signal
import sys
import threading
from pathlib import Path

from hadaptive.jobs.exchange import give, take
from hadaptive.jobs.job import attempt_elsewhere


def _end_with_the_other() -> None:
    """Stop, as by a signal, when the process that started this one is gone: its end of the pipe closes."""
    sys.stdin.buffer.read()
    os.kill(os.getpid(), signal.SIGTERM)


def main(folder: Path) -> None:
    """Do what the folder's file `job` says, and leave what became of it in `outcome`."""
    threading.Thread(target=_end_with_the_other, daemon=True).start()
    give(attempt_elsewhere(take(folder / "job")), folder / "outcome")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
