"""Jobs in processes of this machine."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from hadaptive.errors import TrainingInterruptedError
from hadaptive.jobs.exchange import give, take
from hadaptive.jobs.job import Job, JobDiedError, Outcome, Teller, listening

TRIES = 2  # of a job whose process dies
POLL = 0.1  # seconds between two looks at the processes


class _Process:
    """A job in a process of its own.

    Args:
        job: what it does.
        folder: to be made, for the job and its outcome.
        threads: of PyTorch.
        device: number of its GPU; None where there is none.
    """

    def __init__(self, job: Job, folder: Path, threads: int, device: int | None) -> None:
        self.job, self.folder = job, folder
        folder.mkdir(mode=0o700)
        give(job, folder / "job")
        # What can be imported here can be there, installed or not.
        path = [str(Path(__file__).parents[2]), *filter(None, sys.path)]
        # PyTorch has as many threads as OpenMP.
        self.environment = {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": str(threads)}
        if device is not None:
            self.environment["CUDA_VISIBLE_DEVICES"] = str(device)
        self.tries, self.asked = 0, 0
        self.start()

    def start(self) -> None:
        self.tries += 1
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hadaptive.jobs.worker", str(self.folder)],
            stdin=subprocess.PIPE,  # which tells it when we are gone
            env={**os.environ, **self.environment},
            start_new_session=True,  # a terminal's Ctrl-C reaches it by us alone
        )

    def end(self, number: int) -> None:
        """Send it a signal, unless it had that one."""
        if self.asked != number and self.process.poll() is None:
            self.asked = number
            self.process.send_signal(number)

    def wait(self) -> None:
        """Until it has ended."""
        self.process.wait()
        assert self.process.stdin is not None
        self.process.stdin.close()

    def outcome(self) -> Outcome | None:
        """None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        self.wait()
        found = self.folder / "outcome"
        if found.is_file():
            return Outcome(self.job, *take(found))
        how = f"by signal {-status}" if status < 0 else f"with status {status}"
        why = f"{self.job.name}: its process ended {how}, for lack of memory perhaps: fewer --jobs need less"
        return Outcome(self.job, error=JobDiedError(why))


def in_processes(jobs: Sequence[Job], number: int, threads: int, quiet: bool) -> Iterator[Outcome]:
    """Run jobs in so many processes at once; as :func:`hadaptive.jobs.run.run_jobs`."""
    teller = Teller(len(jobs), quiet)
    waiting = list(enumerate(jobs))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    running: dict[int, _Process] = {}  # by place
    with tempfile.TemporaryDirectory(prefix="hadaptive-jobs-") as folder, listening() as signals:
        try:
            while (waiting and not signals) or running:
                for place in set(range(number)) - set(running) if not signals else ():
                    if waiting:
                        own, job = waiting.pop(0)
                        teller.begin(job)
                        device = place % gpus if gpus else None
                        running[place] = _Process(job, Path(folder) / str(own), threads, device)
                for place, process in list(running.items()):
                    if signals:
                        process.end(signal.SIGTERM if len(signals) == 1 else signal.SIGKILL)
                    outcome = process.outcome()
                    if outcome is None:
                        continue
                    died = isinstance(outcome.error, JobDiedError)
                    if died and not signals and process.tries < TRIES:
                        teller.say(f"{outcome.error}; it is begun once more")
                        process.start()
                        continue
                    del running[place]
                    if not (died and signals) and not isinstance(outcome.error, TrainingInterruptedError):
                        yield teller.end(outcome)
                time.sleep(POLL)
            if signals:
                raise TrainingInterruptedError("", "")
        finally:
            for process in running.values():
                process.end(signal.SIGTERM)
            for process in running.values():
                process.wait()
