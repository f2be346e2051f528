"""Jobs in processes of this machine."""

import os
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
from hadaptive.jobs.machine import AT_ONCE

TRIES = 2  # of a job whose process is lost
POLL = 0.1  # seconds between two looks at the processes

# What can be imported here can be there, in the same order, installed or not.
START = (
    "import sys; threads, folder, *sys.path[:] = sys.argv[1:]; from pathlib import Path; "
    "from hadaptive.jobs.worker import main; main(Path(folder), int(threads))"
)


class _Process:
    """A job in a process of its own.

    Args:
        job: what it does.
        folder: to be made, for the job and its outcome.
        threads: of PyTorch.
        environment: variables to set.
    """

    def __init__(self, job: Job, folder: Path, threads: int, environment: dict[str, str]) -> None:
        self.job, self.folder, self.threads = job, folder, threads
        folder.mkdir(mode=0o700)
        give(job, folder / "job")
        self.environment = {**environment, "OMP_NUM_THREADS": str(threads)}
        self.tries = 0
        self.start()

    def start(self) -> None:
        self.tries += 1
        self.asked = False
        path = [str(Path(__file__).parents[2]), *sys.path]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(self.threads), str(self.folder), *path],
            stdin=subprocess.PIPE,  # which tells it when we are gone
            env={**os.environ, **self.environment},
            start_new_session=True,  # a terminal's Ctrl-C reaches it by us alone
        )

    def end(self, *, at_once: bool) -> None:
        """Ask it once to end, or end it."""
        if self.process.poll() is None:
            if at_once:
                self.process.kill()
            elif not self.asked:
                self.process.terminate()
            self.asked = True

    def close(self) -> None:
        """When it has ended."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def outcome(self) -> Outcome | None:
        """None while it runs."""
        status = self.process.poll()
        if status is None:
            return None
        self.close()
        found = self.folder / "outcome"
        if found.is_file():
            outcome = Outcome(self.job, *take(found))
            if not isinstance(outcome.error, TrainingInterruptedError) or self.asked:
                return outcome
            found.unlink()  # a signal that was not ours: it can go on
        if status > 0:
            why = f"ended with status {status}, as the lines above say"
        elif status == -9:
            why = "was killed, for lack of memory perhaps: fewer --jobs need less"
        else:
            why = "was ended by somebody else"
        return Outcome(self.job, error=JobDiedError(f"{self.job.name}: its process {why}"))


def in_processes(
    jobs: Sequence[Job], number: int, threads: int, quiet: bool, *, cpu: bool = False
) -> Iterator[Outcome]:
    """Run jobs in so many processes at once; as :func:`hadaptive.jobs.run.run_jobs`."""
    teller = Teller(len(jobs), quiet)
    waiting, devices = list(enumerate(jobs)), [] if cpu else _devices()
    running: dict[int, _Process] = {}  # by place
    with tempfile.TemporaryDirectory(prefix="hadaptive-jobs-") as folder, listening() as signals:
        try:
            while (waiting and not signals) or running:
                for place in set(range(number)) - set(running) if not signals else ():
                    if waiting:
                        own, job = waiting.pop(0)
                        teller.begin(job)
                        environment = {AT_ONCE: str(min(number, len(jobs)))}
                        if devices:
                            environment["CUDA_VISIBLE_DEVICES"] = devices[place % len(devices)]
                        running[place] = _Process(job, Path(folder) / str(own), threads, environment)
                for place, process in list(running.items()):
                    if signals:
                        process.end(at_once=len(signals) > 1)
                    outcome = process.outcome()
                    if outcome is None:
                        continue
                    died = isinstance(outcome.error, JobDiedError)
                    lost = died and process.process.returncode <= 0
                    if lost and not signals and process.tries < TRIES:
                        teller.say(f"{outcome.error}; it is begun once more")
                        process.start()
                        continue
                    del running[place]
                    if not (signals and (died or isinstance(outcome.error, TrainingInterruptedError))):
                        yield teller.end(outcome)
                time.sleep(POLL)
            if signals:
                raise TrainingInterruptedError("", "")
        finally:
            before = len(signals)
            while running:
                for place, process in list(running.items()):
                    process.end(at_once=len(signals) > before)
                    if process.process.poll() is not None:
                        process.close()
                        del running[place]
                time.sleep(POLL)


def _devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES has for each GPU that this process may use; [] where there is none."""
    if not torch.cuda.is_available():
        return []
    allowed = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return allowed or [str(number) for number in range(torch.cuda.device_count())]
