"""Independent jobs, several at once: in processes of this machine, or on the machines of a Ray cluster."""

import os
from collections.abc import Iterator, Sequence

import torch

from hadaptive.console import say
from hadaptive.errors import TrainingInterruptedError
from hadaptive.jobs.cluster import on_ray
from hadaptive.jobs.config import Sharing
from hadaptive.jobs.job import Job, Outcome, attempt
from hadaptive.jobs.processes import in_processes
from hadaptive.packages import EXTRAS, require


def run_jobs(
    jobs: Sequence[Job], how: Sharing, *, threads: int | None = None, quiet: bool = False
) -> Iterator[Outcome]:
    """Run all of them, and yield what becomes of each as it ends.

    Whoever asks for no more ends what is still running, which can go on another time. What a job raises is in its
    outcome; one whose process dies is begun once more. Where one runs at a time it does so in this process, and
    says itself what it does.

    Args:
        jobs: in the order in which they begin.
        how: where, and how many at once.
        threads: of PyTorch for each; default one where several run at once, else as PyTorch chooses.
        quiet: say nothing.

    Raises:
        UserError: Ray cannot be reached.
        TrainingInterruptedError: stopped by a signal.
    """
    number = min(how.jobs or places(), len(jobs))
    if how.executor == "ray" and jobs:
        yield from on_ray(jobs, how.jobs or len(jobs), threads or 1, quiet)
    elif number > 1:
        yield from in_processes(jobs, number, threads or 1, quiet)
    else:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            for job in jobs:
                if not quiet:
                    say(f"== {job.name}")
                value, error = attempt(job.call, quiet=quiet)
                if isinstance(error, TrainingInterruptedError):
                    raise error
                yield Outcome(job, value, error)
        finally:
            torch.set_num_threads(before)


def check(how: Sharing) -> None:
    """Raise one clear UserError unless jobs can be shared out so; before any long work."""
    if how.executor == "ray":
        require(EXTRAS["ray"], "--executor ray", '"hadaptive[ray]"')


def places() -> int:
    """How many jobs fit at once: one for each GPU, else one for each core that this process may use."""
    if torch.accelerator.is_available():
        return torch.accelerator.device_count()
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
