"""The loop that trainings and searches share: the same weights whether a run is interrupted or not.

Nothing random depends on what happened before: images are seeded by (seed, epoch, image), steps by (seed, epoch,
step, process). So a checkpoint holds no generator states, and one taken in the middle of an epoch is exact.
"""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import Optimizer

from hadaptive.console import say
from hadaptive.data import Manifest
from hadaptive.engine.batches import Batches, Learning, why_unreadable
from hadaptive.engine.optimiser import Schedule
from hadaptive.engine.processes import on_main
from hadaptive.engine.progress import Progress
from hadaptive.engine.stopping import StopRequest
from hadaptive.engine.tracking import Tracking, check_trackers
from hadaptive.errors import MainProcessError, TrainingInterruptedError, UserError, first_line, resuming
from hadaptive.files import write_atomically, write_json
from hadaptive.provenance import provenance
from hadaptive.runs import Folder, RunFolder

DRAW_EVERY = 30.0  # seconds: drawing takes longer than an epoch of few small images

Rows = dict[Path, list[dict[str, Any]]]
T = TypeVar("T")


class Engine(ABC):
    """One training or search in progress: its epochs, checkpoints, rows, and where in the schedule it stands.

    A subclass makes network and optimiser in its constructor (``model``, ``optimizer``, ``scheduler``), and adds
    what a step does, what more there is to save, and what an epoch and the end leave behind.

    Args:
        config: the settings.
        accelerator: devices and processes.
        batches: of the images.
        accumulate: batches in one optimiser step.
        quiet: print nothing.
    """

    command: ClassVar[str]  # of the command line, that resumes it
    model: Any
    optimizer: Optimizer
    scheduler: Schedule

    def __init__(
        self,
        config: Learning,
        accelerator: Accelerator,
        batches: Batches,
        *,
        accumulate: int = 1,
        quiet: bool = False,
    ) -> None:
        check_trackers(config.execution.track)
        self.accelerator = accelerator
        self.batches = batches
        self.learning = config
        self.accumulate = accumulate
        self.show = accelerator.is_main_process and not quiet
        self.num_classes = len(batches.classes)
        self.epochs = config.optimisation.epochs
        self.steps_per_epoch = batches.train.steps
        self.epoch = 0  # epochs finished
        self.step = 0  # steps finished in the current epoch
        self.loss_sum = 0.0
        self.seconds = 0.0
        self.drawn = time.monotonic()  # when the pictures were
        self.unreadable: dict[str, str] = {}  # names, and why
        self.stopping = StopRequest(accelerator)

    # -- what a subclass adds ---------------------------------------------------------------------------------

    @abstractmethod
    def micro_step(self, images: Tensor, targets: Tensor, number: int) -> float:
        """Learn from one batch, the `number`-th of the epoch, and return its loss."""

    @abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What a resumed run needs besides, as tensors and plain data."""

    @abstractmethod
    def load_own_state(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`own_state`."""

    @abstractmethod
    def summarise_epoch(self, folder: Any) -> tuple[Rows, str]:
        """Evaluate after an epoch: rows for the folder's files, and a line for the person."""

    @abstractmethod
    def draw(self, folder: Any) -> None:
        """Draw the pictures of the epochs so far, at least one, in the main process."""

    @abstractmethod
    def conclude(self, folder: Any) -> dict[str, Any]:
        """What the summary says besides; all epochs are done."""

    @abstractmethod
    def greet(self, folder: Any) -> str:
        """The line that a run starts with."""

    @abstractmethod
    def report(self, folder: Any, summary: dict[str, Any]) -> None:
        """Tell the person how it ended."""

    def save_epoch(self, folder: Any) -> None:  # noqa: B027
        """Write what is kept of an epoch besides, in the main process, after its rows."""

    def begin_epoch(self) -> None:  # noqa: B027
        """Before the first step of an epoch, or of what is left of it."""

    def enough(self) -> str:
        """Why no more epochs are needed, after one; "" where they are."""
        return ""

    def between_steps(self) -> None:  # noqa: B027
        """After the weights' step, before it is counted."""

    def after_step(self) -> None:  # noqa: B027
        """After a step was counted."""

    # -- state ------------------------------------------------------------------------------------------------

    @property
    def updates(self) -> int:
        """Optimiser steps taken so far."""
        return self.epoch * self.steps_per_epoch + self.step

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain data."""
        scaler = self.accelerator.scaler
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "schedule": self.scheduler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "unreadable": self.unreadable,
            **self.own_state(),
        }

    def load(self, folder: RunFolder) -> None:
        """Continue from the folder's checkpoint.

        Raises:
            UserError: the checkpoint is damaged or does not fit the run's config.
        """
        state = folder.load_checkpoint()
        try:
            self.load_own_state(state)
            self.optimizer.load_state_dict(state["optimizer"])
            if self.accelerator.scaler is not None and state.get("scaler") is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.scheduler.load_state_dict(state.get("schedule", {}))
            self.epoch, self.step = state["epoch"], state["step"]
            # A search's checkpoint of version 1 has another name for the first, and not the last.
            self.loss_sum = state["loss_sum"] if "loss_sum" in state else state["weight_loss"]
            # Older checkpoints have names without reasons.
            self.seconds, found = state["seconds"], state.get("unreadable", {})
            self.unreadable = found if isinstance(found, dict) else dict.fromkeys(found, "")
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{folder.checkpoint} does not fit {folder.config}: {first_line(error)}") from None
        self.scheduler.after_step(self.updates)

    def checkpoint(self, folder: RunFolder) -> None:
        """Write the resumable state (main process)."""
        state = self.state()
        on_main(self.accelerator, lambda: folder.save_checkpoint(state))

    # -- the run ----------------------------------------------------------------------------------------------

    def fit(self, folder: Any) -> dict[str, Any]:
        """Go through the epochs that are left, conclude, and return the summary that is then in the folder too.

        Raises:
            TrainingInterruptedError: stopped by a signal, after a checkpoint was written.
        """
        try:
            return self._fit(folder)
        except KeyboardInterrupt:  # the second, or one while the run is concluded: there is a checkpoint
            if self.accelerator.is_main_process:
                say(f"go on from its last checkpoint with: {resuming(self.command, folder.path)}", error=True)
            raise
        except MainProcessError:
            raise
        except UserError as error:
            if isinstance(error.__cause__, OSError):  # what cannot be written today may be tomorrow
                raise UserError(f"{error}; then go on with: {resuming(self.command, folder.path)}") from error
            raise

    def _fit(self, folder: Any) -> dict[str, Any]:
        on_main(self.accelerator, lambda: folder.truncate_rows(self.epoch))
        on_main(self.accelerator, self.refuse_unreadable)
        self.progress = Progress(self.epochs * self.steps_per_epoch, self.updates, self.show)
        for line in (self.greet(folder), *self.batches.notes):
            self.progress.say(line)
        if not self.batches.exact and self.updates:
            self.progress.say(
                f"{self.learning.data.data} is a stream that is shuffled anew: the rest of this run is not "
                "the same as without the interruption"
            )
        names = self.learning.execution.track if self.accelerator.is_main_process else ()
        self.tracking = Tracking(names, folder.path, self.learning.flat(), self.epoch)
        try:
            with self.stopping.listening():
                while self.epoch < self.epochs and not (why := self.enough()):
                    self._run_epoch(folder)
                if self.epoch < self.epochs:
                    self.progress.say(why)
            return self._finish(folder)
        except TrainingInterruptedError:
            if self.epoch:
                on_main(self.accelerator, lambda: self.draw(folder))
            raise
        finally:
            self.progress.close()
            self.tracking.finish()

    def _run_epoch(self, folder: Any) -> None:
        started, stop = time.monotonic(), False
        self.batches.train.set_epoch(self.epoch)
        loader = self.rest_of(self.batches.train.loader, self.step * self.accumulate)
        self.model.train()
        self.begin_epoch()
        micro = self.step * self.accumulate
        for images, targets, unreadable in loader:
            if micro >= self.steps_per_epoch * self.accumulate:
                break
            loss = self.micro_step(*self.ready(images, targets), micro)
            self.loss_sum += loss
            self.note_unreadable("train", unreadable[unreadable >= 0].tolist())
            micro += 1
            if micro % self.accumulate:
                continue
            self.between_steps()
            self.step += 1
            self.scheduler.after_step(self.updates)
            self.after_step()
            seen = (self.updates - self.progress.first) * self.learning.optimisation.images_per_step
            self.progress.step(self.epoch, self.epochs, loss, seen)
            stop, every = self.stopping.agreed(), self.learning.execution.checkpoint_every
            if (stop or (every and self.step % every == 0)) and self.step < self.steps_per_epoch:
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self.checkpoint(folder)
                if stop:
                    raise TrainingInterruptedError(str(folder.path), self.command)
        self.seconds += time.monotonic() - started
        self._end_epoch(folder, stop)

    def rest_of(self, loader: Any, done: int) -> Any:
        """A loader without its first batches."""
        return self.accelerator.skip_first_batches(loader, done) if done else loader

    def ready(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch where and as the network takes it."""
        images, targets = images.to(self.accelerator.device), targets.to(self.accelerator.device)
        channels_last = self.learning.execution.channels_last
        return images.to(memory_format=torch.channels_last) if channels_last else images, targets

    def timed(self, work: Callable[[], T]) -> T:
        """The result of some work, whose time counts as the run's."""
        started = time.monotonic()
        result = work()
        self.seconds += time.monotonic() - started
        return result

    def note_unreadable(self, part: str, indices: Iterable[int]) -> None:
        """Remember images that could not be read, and why."""
        for index in indices:
            name, source = self.batches.image_name(part, index), self.batches.parts.get(part)
            if source is not None and not self.unreadable.get(name):
                reason = why_unreadable(source, index, self.learning.preprocessing)
                self.unreadable[name] = reason or "it could not be read at first, but later"

    def refuse_unreadable(self) -> None:
        """Raise one clear UserError if a part has no image that can be read; mostly it is the first that can."""
        for part, source in self.batches.parts.items():
            if part == "test" and self.batches.test is None:
                continue
            reasons = (why_unreadable(source, index, self.learning.preprocessing) for index in range(len(source)))
            first = next(reasons, None)
            if first is not None and all(reason is not None for reason in reasons):
                raise UserError(
                    f"not one of the {len(source):,} {part} images can be read, {source.name(0)} for this reason: "
                    f"{first}; mend them, then give the command again"
                )

    def require_images(self, evaluation: T, part: str, folder: Any) -> T:
        """Give an evaluation back, or save and raise one clear UserError where it has no image."""
        if not evaluation.total:  # pyright: ignore
            self.checkpoint(folder)
            reason = next((f": {name}: {why}" for name, why in self.unreadable.items()), "")
            raise UserError(
                f"not one of the {part} images can be read any more{reason}; mend them, then go on with: "
                f"{resuming(self.command, folder.path)}"
            )
        return evaluation

    def skipped_line(self, folder: Any) -> str:
        """What is said of the images that could not be read."""
        reasons = Counter(self.unreadable.values()).most_common()
        counts = "; ".join(f"{number:,}: {reason or 'unknown'}" for reason, number in reasons[:3])
        more = f"; {len(reasons) - 3} more reasons" if len(reasons) > 3 else ""
        images = "1 image" if len(self.unreadable) == 1 else f"{len(self.unreadable):,} images"
        return f"{images} could not be read and were skipped ({counts}{more}); listed in {folder.skipped}"

    def _end_epoch(self, folder: Any, stop: bool) -> None:
        rows, line = self.summarise_epoch(folder)
        self.progress.say(line)
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        (figures,) = rows[folder.metrics]
        self.tracking.log(figures, self.epoch - 1)

        def write() -> None:
            for path, new in rows.items():
                folder.append_rows(path, new)
            self.save_epoch(folder)
            if self.epoch < self.epochs and time.monotonic() - self.drawn > DRAW_EVERY:
                self.draw(folder)
                self.drawn = time.monotonic()

        on_main(self.accelerator, write)
        # Last, so that a kill before it repeats the epoch and one after it does not.
        self.checkpoint(folder)
        if (stop or self.stopping.agreed()) and self.epoch < self.epochs:
            raise TrainingInterruptedError(str(folder.path), self.command)

    def _finish(self, folder: Any) -> dict[str, Any]:
        self.progress.close()
        summary = {
            "run": str(folder.path),
            **self.conclude(folder),
            "skipped_images": len(self.unreadable),
            "processes": self.accelerator.num_processes,
            **provenance(str(self.accelerator.device)),
        }

        def write() -> None:
            self.draw(folder)
            if self.unreadable:
                lines = [f"{name}\t{reason}\n" for name, reason in sorted(self.unreadable.items())]
                write_atomically(folder.skipped, lambda p: p.write_text("".join(lines), encoding="utf-8"))
            write_json(folder.summary, summary)
            if not folder.goes_on:
                folder.checkpoint.unlink(missing_ok=True)

        on_main(self.accelerator, write)
        of_test = {f"test_{name}": value for name, value in (summary.get("test") or {}).items()}
        self.tracking.log(of_test, self.epoch - 1)
        if self.show:
            if self.unreadable:
                say(self.skipped_line(folder))
            self.report(folder, summary)
        return summary


def begin(
    engine: Engine, kind: type[Folder], output: Path, documents: dict[str, Any], manifest: Manifest | None
) -> Folder:
    """Make the folder of a new run, with all that resuming it takes, in one step; open in every process.

    Args:
        engine: not begun yet.
        kind: of folder.
        output: where.
        documents: JSON by the names of their files.
        manifest: division of its images.

    Raises:
        UserError: something is there already.
    """
    on_main(engine.accelerator, lambda: kind.check_new(output))
    on_main(engine.accelerator, engine.refuse_unreadable)
    state = engine.state()
    on_main(
        engine.accelerator, lambda: kind.create(output, documents, manifest=manifest, checkpoint=state) and None
    )
    return kind(output)
