"""``hadaptive train --find-lr``: a curve of the loss over the learning rate, and a suggestion."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib.figure import Figure

from hadaptive.console import say
from hadaptive.engine.rate_finder import BELOW, RangeTest, range_test
from hadaptive.errors import UserError
from hadaptive.files import check_new_picture, refuse_existing, write_atomically, write_csv
from hadaptive.pictures import save_png
from hadaptive.train.config import TrainConfig
from hadaptive.train.launch import accelerator_of, new_trainer


def find_rate(
    config: TrainConfig, path: Path, *, given: Iterable[str] = (), quiet: bool = False
) -> tuple[float, RangeTest]:
    """Find a peak learning rate for a training, by its training images; write a curve and its figures.

    Neither validation nor test images are looked at, and nothing is trained that is kept.

    Args:
        config: of the training.
        path: new PNG; the CSV has the same name but for its end.
        given: settings that are refused where these images leave them without an effect; a person gave them.
        quiet: print nothing.

    Raises:
        UserError: as of :func:`hadaptive.train.train`; a file exists; the loss did not fall.
    """
    table = path.with_suffix(".csv")
    check_new_picture(path, "--find-lr")
    refuse_existing(table, "--find-lr")
    accelerator = accelerator_of(config)
    if accelerator.num_processes > 1:  # of which one may end before the others
        raise UserError("--find-lr takes its steps in one process: start it without torchrun")
    trainer, _ = new_trainer(config, accelerator, given=given, quiet=quiet, test=False)
    trainer.refuse_unreadable()
    batches = trainer.batches
    if trainer.lessons is not None and config.teaching.teacher_sees == "image":
        raise UserError("a teacher that sees each image once is asked in a run: pass --teacher-sees batch")
    trainer.rehearse()
    if trainer.show:
        for note in batches.notes:
            say(note)
    found = range_test(trainer)

    names = ["lr", "loss", "smoothed"]
    columns = zip(found.rates, found.losses, found.smoothed, strict=True)
    rows = [dict(zip(names, row, strict=True)) for row in columns]
    write_atomically(table, lambda p: write_csv(p, rows, names))
    _draw(found, path)
    if trainer.show:
        say(f"{len(found.rates)} steps, their losses in {table} and {path}")
    rate = found.suggestion
    if trainer.show:
        say(f"the loss was lowest at {found.rates[found.lowest]:.2g}; a tenth of that is suggested: --lr {rate:g}")
    return rate, found


def _draw(found: RangeTest, path: Path) -> None:
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, color="lightgray", linewidth=1, label="of each step's batch")
    axes.plot(found.rates, found.smoothed, label="smoothed")
    axes.axvline(found.rates[found.lowest], color="gray", linestyle=":", label="lowest")
    axes.axvline(found.rates[found.lowest] / BELOW, color="green", linestyle="--", label="suggested")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, nats", title="learning rate range test")
    low, high = min(found.smoothed), max(found.smoothed[: max(1, found.lowest)])
    axes.set_ylim(low - 0.3 * (high - low) - 1e-3, high + 0.6 * (high - low) + 1e-3)
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, path)
