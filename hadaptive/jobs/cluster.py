"""Jobs on a Ray cluster: Ray starts their processes, and begins a job again whose process or machine is lost."""

import logging
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from hadaptive.errors import TrainingInterruptedError, UserError, first_line
from hadaptive.jobs.job import Job, JobDiedError, Outcome, Teller, attempt_elsewhere, listening

RETRIES = 3  # of a job whose process or machine is lost
LOOK = 0.5  # seconds between two looks at the signals
END = 60  # seconds that what is stopped has for its checkpoint


def on_ray(jobs: Sequence[Job], number: int, threads: int, quiet: bool) -> Iterator[Outcome]:
    """Run at most so many jobs at once; as :func:`hadaptive.jobs.run.run_jobs`.

    Raises:
        UserError: it cannot be reached.
    """
    import ray

    joined = ray.is_initialized()
    if not joined:
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except Exception as error:  # no cluster at RAY_ADDRESS, among others
            raise UserError(f"no Ray cluster can be reached or begun: {first_line(error)}") from None
        if signal.getsignal(signal.SIGTERM) is not before:  # Ray has put its own there
            signal.signal(signal.SIGTERM, before)
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    # OpenMP, and so PyTorch, has as many threads as a job has cores.
    remote = ray.remote(max_retries=RETRIES, num_cpus=threads, num_gpus=gpus)(attempt_elsewhere)
    teller, waiting = Teller(len(jobs), quiet), list(jobs)
    running: dict[Any, Job] = {}
    with listening() as signals:
        try:
            while (waiting or running) and not signals:
                while waiting and len(running) < number:
                    job = waiting.pop(0)
                    teller.begin(job)
                    running[remote.remote(job)] = job
                for done in ray.wait(list(running), timeout=LOOK)[0]:
                    yield teller.end(_outcome(running.pop(done), done))
            if signals:
                raise TrainingInterruptedError("", "")
        finally:
            if running:
                for own in running:
                    ray.cancel(own)  # as by Ctrl-C
                ray.wait(list(running), num_returns=len(running), timeout=END)
            if not joined:
                ray.shutdown()


def _outcome(job: Job, done: Any) -> Outcome:
    import ray
    from ray.exceptions import RayError

    try:
        return Outcome(job, *ray.get(done))
    except RayError as error:
        return Outcome(job, error=JobDiedError(f"{job.name}: {first_line(error)}"))
