"""A run goes on to more epochs than it was begun for, and what it was when it was finished is kept."""

import os
import shutil
import tempfile
from pathlib import Path

from hadaptive.errors import UserError, resuming
from hadaptive.files import write_json
from hadaptive.runs import RunFolder
from hadaptive.train.trainer import Trainer


def check_extension(run: RunFolder, epochs: int) -> None:
    """Raise one clear UserError unless a run, finished or not, can go on to so many epochs in all."""
    finished = run.summary.is_file()
    if finished and not run.checkpoint.is_file():
        raise UserError(
            f"{run.path} was finished without a checkpoint to go on from: begin another "
            f"run with its weights, by --init {run.path}"
        )
    if not run.checkpoint.is_file():  # a run of version 1 that has not finished an epoch
        return
    state = run.load_checkpoint()
    done, begun = state["epoch"], state["epoch"] + (state["step"] > 0)
    if epochs < begun or (finished and epochs == done):
        raise UserError(
            f"{run.path} has learned for {done} epochs already{' and begun another' if begun > done else ''}: "
            f"--epochs says how many there are to be in all, at least {done + 1}"
        )


def extend(run: RunFolder, trainer: Trainer, epochs: int) -> str:
    """Note in the folder of a run that there are to be so many epochs in all; what is said of it.

    What a finished run was is first copied into a folder of its own in it, which is a run, too. A kill at any
    moment leaves the run as it was before, or as it is to be.

    Args:
        run: checked by :func:`check_extension`.
        trainer: of the run, with its checkpoint loaded and so many epochs among its settings.
        epochs: in all.

    Raises:
        UserError: something cannot be written.
    """
    stored = run.read_json(run.config)
    optimisation = stored["optimisation"] if "version" in stored else stored
    before, finished = optimisation["epochs"], run.summary.is_file()
    kept = ""
    if finished:
        place = run.path / f"finished-{trainer.epoch}"
        if not place.exists():
            _copy(run, place, epochs)
        kept = f"; what it was is kept in {place}"
        run.summary.unlink()
        run.calibration.unlink(missing_ok=True)
    if finished or epochs != before:
        record = {"epoch": trainer.epoch, "step": trainer.step, "epochs": before, "finished": finished}
        trainer.extended += [record] if record not in trainer.extended else []
        run.save_checkpoint(trainer.state())
    optimisation["epochs"] = epochs
    write_json(run.config, stored)
    return (
        f"goes on after {trainer.epoch} epochs to {epochs} in all{kept}; from here on the learning rate is that "
        f"of a training of {epochs} epochs"
    )


def _copy(run: RunFolder, place: Path, epochs: int) -> None:
    """Copy what belongs to a finished run, in one step."""
    names = (run.config, run.card, run.manifest, run.metrics, run.selection, run.checkpoint, run.calibration)
    names += (run.summary, run.curves, run.skipped, run.weights("best"), run.weights("last"))
    judged = ("evaluation-*.json", "per-class-*.csv", "predictions-*.csv", "confusion-*.png", "reliability-*.png")
    names += tuple(path for pattern in (*judged, "report.html") for path in run.path.glob(pattern))
    staged = None
    try:
        staged = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=run.path))
        shutil.copymode(run.path, staged)
        for path in filter(Path.is_file, names):
            shutil.copy2(path, staged / path.name)
        if run.for_timm.is_symlink():
            (staged / run.for_timm.name).symlink_to(os.readlink(run.for_timm))
        elif run.for_timm.is_file():  # a copy, where there are no links
            shutil.copy2(run.for_timm, staged / run.for_timm.name)
        os.replace(staged, place)
    except OSError as error:
        raise UserError(
            f"{place} cannot be written: {error.strerror}; make room, then go on with: "
            f"{resuming('train', run.path)} --epochs {epochs}"
        ) from None
    finally:
        if staged is not None and staged.exists():
            shutil.rmtree(staged)
