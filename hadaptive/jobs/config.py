"""How independent jobs are shared out; also flags."""

from dataclasses import dataclass
from typing import Literal

from hadaptive.errors import UserError


@dataclass(frozen=True)
class Sharing:
    """Where independent trainings run, and how many at once.

    Attributes:
        executor: local starts processes on this machine; ray shares trainings out over a Ray cluster, the one of
            RAY_ADDRESS, else one that runs here, else a new one of this machine alone; the machines of a cluster
            see the same files.
        jobs: trainings at once; default one per GPU, or else per core, with one thread each.
    """

    executor: Literal["local", "ray"] = "local"
    jobs: int | None = None

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise UserError(f"jobs must be at least 1, got {self.jobs}")
