"""Jobs on a Ray cluster: Ray starts their processes, and begins a job again whose process or machine is lost."""

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from typing import Any

from hadaptive.errors import TrainingInterruptedError, UserError, first_line
from hadaptive.jobs.job import Job, JobDiedError, Outcome, Teller, attempt_elsewhere, listening
from hadaptive.jobs.machine import AT_ONCE, cores

RETRIES = 3  # of a job whose process or machine is lost
LOOK = 0.5  # seconds between two looks at the signals


def on_ray(jobs: Sequence[Job], number: int, threads: int, quiet: bool, *, cpu: bool = False) -> Iterator[Outcome]:
    """Run at most so many jobs at once; as :func:`hadaptive.jobs.run.run_jobs`.

    Raises:
        UserError: it cannot be reached, or no machine of it has as many cores as a job needs.
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
    teller, waiting = Teller(len(jobs), quiet), list(jobs)
    running: dict[Any, Job] = {}
    with listening() as signals:
        try:
            most = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
            if threads > most:
                raise UserError(
                    f"no machine of the Ray cluster has {threads} cores for --threads, the most is {most:g}"
                )
            gpus = 1 if not cpu and ray.cluster_resources().get("GPU") else 0
            remote = ray.remote(max_retries=RETRIES, num_cpus=threads, num_gpus=gpus)(_attempt)
            while (waiting or running) and not signals:
                while waiting and len(running) < number:
                    job = waiting.pop(0)
                    teller.begin(job)
                    running[remote.remote(job, os.getcwd(), threads)] = job
                for done in ray.wait(list(running), timeout=LOOK)[0]:
                    yield teller.end(_outcome(running.pop(done), done))
            if signals:
                raise TrainingInterruptedError("", "")
        finally:
            before_end, asked = len(signals), False
            while running:
                at_once = len(signals) > max(1, before_end)
                if not asked or at_once:
                    for own in running:
                        ray.cancel(own, force=at_once)  # else as by Ctrl-C
                    asked = True
                for done in ray.wait(list(running), timeout=LOOK)[0]:
                    del running[done]
            if not joined:
                ray.shutdown()


def _attempt(job: Job, folder: str, threads: int) -> tuple[Any, Exception | None]:
    os.environ[AT_ONCE] = str(max(1, cores() // threads))
    return attempt_elsewhere(job, folder, threads)


def _outcome(job: Job, done: Any) -> Outcome:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        outcome = Outcome(job, *ray.get(done))
    except RayTaskError as error:
        why = first_line(error.cause) if isinstance(error.cause, Exception) else first_line(error)
        hint = "every machine of the cluster needs this version of hadaptive"
        return Outcome(job, error=JobDiedError(f"{job.name}: {why}: {hint}"))
    except RayError as error:
        return Outcome(job, error=JobDiedError(f"{job.name}: {first_line(error)}"))
    if isinstance(outcome.error, TrainingInterruptedError):
        return Outcome(
            job, error=JobDiedError(f"{job.name}: somebody else has stopped it; the same command goes on")
        )
    return outcome
