"""Experiment trackers beside the rows of the run folder: accelerate's, for whichever are installed."""

import hashlib
import math
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from hadaptive.console import say
from hadaptive.errors import first_line
from hadaptive.packages import quiet, require

# What each imports, and what to give pip.
TRACKERS = {
    "tensorboard": (("tensorboard",), '"hadaptive[track]"'),
    "wandb": (("wandb",), "wandb"),
    "mlflow": (("mlflow",), "mlflow"),
}


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise one clear UserError unless all of these can be used here."""
    for name in names:
        require(TRACKERS[name][0], f"--track {name}", TRACKERS[name][1])


class Tracking:
    """Hands the rows of a run's epochs to trackers, in the main process.

    A tracker is no reason to lose a training: one that fails is said once and then left alone, for the run
    folder has every row.

    Args:
        names: of trackers; see TRACKERS.
        folder: of the run. TensorBoard's files lie in its folder `tensorboard`; other trackers know it by its name
            and, where they can continue a run, by a digest of its settings.
        settings: of the run, by their names.
        epoch: epochs finished before.
    """

    def __init__(self, names: tuple[str, ...], folder: Path, settings: dict[str, Any], epoch: int) -> None:
        self.trackers: dict[str, GeneralTracker] = {}
        settings = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
        for name in names:
            self._attempt(name, lambda name=name: self._start(name, folder, settings, epoch))

    def _start(self, name: str, folder: Path, settings: dict[str, Any], epoch: int) -> None:
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        known = hashlib.sha256(repr(sorted(settings.items())).encode("utf-8", "surrogateescape")).hexdigest()[:16]
        if name == "tensorboard":
            tracker = kind("tensorboard", folder, purge_step=epoch)
        elif name == "wandb":
            tracker = kind("hadaptive", name=folder.name, id=known, resume="allow", dir=str(folder))
        else:
            tracker = kind("hadaptive", run_name=folder.name, tags={"settings": known})
        if hasattr(tracker, "start"):
            tracker.start()
        self.trackers[name] = tracker
        if not epoch:
            tracker.store_init_configuration(settings)

    def log(self, row: dict[str, Any], epoch: int) -> None:
        """One row of figures after an epoch (0, 1, ... as in the rows); what is no finite number is left out."""
        figures = {
            name: float(value)
            for name, value in row.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        for name, tracker in [*self.trackers.items()]:
            self._attempt(name, lambda tracker=tracker: tracker.log(figures, step=epoch))

    def finish(self) -> None:
        """Close them all."""
        for name, tracker in [*self.trackers.items()]:
            self._attempt(name, tracker.finish)
        self.trackers.clear()

    def _attempt(self, name: str, work: Any) -> None:
        try:
            with quiet():
                work()
        except Exception as error:  # each tracker has its own
            self.trackers.pop(name, None)
            say(
                f"--track {name} stopped: {type(error).__name__}: {first_line(error)}; the run goes on", error=True
            )
