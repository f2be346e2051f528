"""Independent jobs, several at once: in processes of this machine, or on the machines of a Ray cluster."""

from collections.abc import Iterator, Sequence

import torch

from hadaptive.console import say
from hadaptive.errors import TrainingInterruptedError
from hadaptive.jobs.cluster import on_ray
from hadaptive.jobs.config import Sharing
from hadaptive.jobs.job import Job, Outcome, attempt
from hadaptive.jobs.machine import cores
from hadaptive.jobs.processes import in_processes
from hadaptive.packages import EXTRAS, require


def run_jobs(
    jobs: Sequence[Job], how: Sharing, *, threads: int | None = None, quiet: bool = False, cpu: bool = False
) -> Iterator[Outcome]:
    """Run all of them, and yield what becomes of each as it ends.

    Whoever asks for no more ends what is still running, which can go on another time. What a job raises is in its
    outcome; one whose process is lost is begun once more. Where they take turns each runs in this process, and
    says itself what it does.

    Args:
        jobs: in the order in which they begin.
        how: where, and how many at once.
        threads: of PyTorch for each; default one where several may run at once, else as PyTorch chooses.
        quiet: say nothing.
        cpu: they use no GPU.

    Raises:
        UserError: Ray cannot be reached, or has no machine for them.
        TrainingInterruptedError: stopped by a signal.
    """
    assert len({job.name for job in jobs}) == len(jobs), "two jobs of one name"
    number = how.jobs or places(cpu)
    if how.executor == "ray" and jobs:
        yield from on_ray(jobs, how.jobs or len(jobs), threads or 1, quiet, cpu=cpu)
    elif number > 1:  # even a single one, for what is left of several is done as they were
        yield from in_processes(jobs, number, threads or 1, quiet, cpu=cpu)
    else:
        before = torch.get_num_threads()
        torch.set_num_threads(threads or before)
        try:
            for job in jobs:
                if not quiet:
                    say(f"== {job.name}")
                value, error = attempt(job.call, quiet=quiet)
                if isinstance(error, TrainingInterruptedError):
                    raise TrainingInterruptedError("", "")
                yield Outcome(job, value, error)
        finally:
            torch.set_num_threads(before)


def check(how: Sharing) -> None:
    """Raise one clear UserError unless jobs can be shared out so; before any long work."""
    if how.executor == "ray":
        require(EXTRAS["ray"], "--executor ray", '"hadaptive[ray]"')


def places(cpu: bool = False) -> int:
    """How many jobs fit at once: one for each GPU, else one for each core that this process may use."""
    if torch.accelerator.is_available() and not cpu:
        return torch.accelerator.device_count()
    return cores()
