"""A training from its settings to its folder, in one process or several; and resuming one."""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hadaptive.cards import ModelCard
from hadaptive.data import ImageData, Manifest, is_stream, located_stream, open_data
from hadaptive.engine.accelerator import create_accelerator
from hadaptive.engine.batches import Batches, create_batches
from hadaptive.engine.loop import begin
from hadaptive.engine.processes import on_main
from hadaptive.errors import UserError
from hadaptive.runs import RunFolder, division_of
from hadaptive.train.config import Teaching, TrainConfig
from hadaptive.train.extend import check_extension, extend
from hadaptive.train.fitting import fitted
from hadaptive.train.network import as_done, begun_network, identity_of, starting_network
from hadaptive.train.teacher import open_teacher
from hadaptive.train.trainer import Trainer
from hadaptive.train.weights import absolute, located_init


def default_output(config: TrainConfig) -> Path:
    """A new folder's name under runs/, from the time, the model and the data."""
    model = Path(config.model_name.replace(":", "-")).stem  # a variant's colon is no part of a name everywhere
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{model}-{Path(config.data.data).name}"


def train(
    config: TrainConfig,
    *,
    given: Iterable[str] = (),
    quiet: bool = False,
    test: bool = True,
    kind: type[Trainer] = Trainer,
) -> dict[str, Any]:
    """Train a network and leave a run folder.

    Args:
        config: every setting; ``config.output`` is the folder to make.
        given: settings that are refused where these images leave them without an effect; a person gave them.
        quiet: print nothing.
        test: measure on the test part at the end, where there is one.
        kind: of training, such as one that also looks at what it trains.

    Returns:
        The summary that is also in the folder, with its path under "run".

    Raises:
        UserError: a setting, the data or the model do not fit; the folder exists; the loss became non-finite.
        TrainingInterruptedError: stopped by a signal, after a checkpoint was written.
    """
    accelerator = accelerator_of(config)
    output = config.output or on_main(accelerator, lambda: default_output(config))  # by the clock of one process
    RunFolder.check_new(output)
    # Every mistake in the settings shows here, before there is a folder.
    trainer, manifest = new_trainer(config, accelerator, given=given, quiet=quiet, test=test, kind=kind)
    documents = {
        "config.json": {**trainer.config.changed(output=output).to_dict(), **_for_timm(trainer.card)},
        "model.json": trainer.card.to_dict(),
    }
    return trainer.fit(begin(trainer, RunFolder, output, documents, manifest))


def _for_timm(card: ModelCard) -> dict[str, Any]:
    try:
        return card.timm_config
    except UserError:  # timm cannot build everything
        return {}


def accelerator_of(config: TrainConfig) -> Accelerator:
    """The devices and processes that a training is to use."""
    return create_accelerator(
        config.execution,
        accumulate=config.accumulate,
        compile=config.compile,
        unused_parameters=config.freeze_backbone > 0,
    )


def _batches(config: TrainConfig, accelerator: Accelerator, data: ImageData | None, test: bool) -> Batches:
    even = bool(config.mixup or config.cutmix)
    numbered = config.teaching.teacher is not None and config.teaching.teacher_sees == "image"
    return create_batches(
        config,
        accelerator,
        data,
        accumulate=config.accumulate,
        even=even,
        test=test,
        numbered=numbered,
        balanced=config.balanced,
    )


def new_trainer(
    config: TrainConfig,
    accelerator: Accelerator,
    *,
    given: Iterable[str] = (),
    quiet: bool = False,
    test: bool = True,
    kind: type[Trainer] = Trainer,
) -> tuple[Trainer, Manifest | None]:
    """A training that has not begun, with its settings as they turned out, and the division of its images.

    Args:
        config: its settings.
        accelerator: devices and processes.
        given, quiet, test, kind: as in :func:`train`.

    Raises:
        UserError: a setting, the data or the model do not fit.
    """
    data, notes = None, []
    config = replace(config, network=replace(config.network, init=located_init(config.network.init)))
    if is_stream(config.data.data):
        config = replace(config, data=located_stream(config.data))
    else:
        known, notes = division_of(config.network.init, config.data)
        data = open_data(config.data, known=known)
        data.refuse_ignored(given)
        config = replace(config, data=data.location)

    def create(config: TrainConfig) -> Trainer:
        batches = _batches(config, accelerator, data, test)
        network, card, more = starting_network(config, batches.classes)
        card = replace(card, multi_label=config.data.multi_label, thresholds=None)
        teacher = None if config.teaching.teacher is None else open_teacher(config, batches.classes)
        batches.notes += notes + more + ([] if teacher is None else teacher.notes)
        config = replace(config, network=as_done(config.network, card), teaching=taught(config.teaching))
        return kind(config, accelerator, batches, network, card, teacher=teacher, quiet=quiet)

    if config.optimisation.batch_size == "auto":
        config, said = fitted(config, accelerator, create)
        notes.append(said)
    return create(config), None if data is None else data.manifest


def resume(
    path: str | Path,
    *,
    epochs: int | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    quiet: bool = False,
    test: bool = True,
    kind: type[Trainer] = Trainer,
) -> dict[str, Any]:
    """Continue an interrupted run exactly where its last checkpoint left it, with the very same images.

    Args:
        path: of the run folder.
        epochs: that there are to be in all, in place of those that the run was begun for; it may be finished then,
            and what it was is kept in a folder in it. The learning rate is from there on that of a training of so
            many epochs, and patience begins to count anew.
        data, data_dir: where the images lie now, if they have moved since.
        quiet, test, kind: as in :func:`train`.

    Raises:
        UserError: `path` is no run, is damaged, is finished or has more epochs already; its images are not what
            they were.
    """
    run = RunFolder.open(path)
    if epochs is not None:
        check_extension(run, epochs)
    elif run.summary.is_file():
        raise UserError(f"{path} is finished: there is nothing to resume, unless --epochs asks for more of them")
    config = replace(read_config(run), data=run.data_config(data, data_dir))
    if epochs is not None:
        config = config.changed(epochs=epochs)
    accelerator = accelerator_of(config)
    opened = None if is_stream(config.data.data) else run.open_data(data, data_dir, exact=True)
    batches = _batches(config, accelerator, opened, test)
    if opened is not None and not run.manifest.is_file():  # an older version kept none; from now on it holds
        on_main(accelerator, lambda: opened.manifest.save(run.manifest))
    begun = run.checkpoint.is_file() or run.version > 1  # which begins with one
    network, card = begun_network(run, config) if begun else starting_network(config, batches.classes)[:2]
    if card.classes != batches.classes:
        raise UserError(
            f"{config.data.data} has other classes than the run was trained on "
            f"({len(batches.classes)} now, {len(card.classes)} then)"
        )
    asks = config.teaching.teacher is not None and not run.answers.is_file()
    teacher = open_teacher(config, batches.classes) if asks else None
    trainer = kind(config, accelerator, batches, network, card, teacher=teacher, quiet=quiet)
    if begun:
        trainer.load(run)
    if epochs is not None:
        # Every process must know since when patience counts.
        note, trainer.extended = on_main(accelerator, lambda: (extend(run, trainer, epochs), trainer.extended))
        batches.notes.append(note)
    return trainer.fit(run)


def read_config(run: RunFolder) -> TrainConfig:
    """The settings of a run, of this version or of an older one.

    Raises:
        UserError: they are missing or damaged.
    """
    return TrainConfig.from_dict(run.read_json(run.config))


def train_or_resume(
    config: TrainConfig, *, quiet: bool = False, test: bool = True, kind: type[Trainer] = Trainer
) -> dict[str, Any]:
    """The summary of the run in ``config.output``: read if it is finished, resumed if begun, else trained.

    Raises:
        UserError: as :func:`train` and :func:`resume`; the folder holds a run of other settings.
    """
    if config.output is None or not config.output.is_dir():
        return _one_of_many(train(config, quiet=quiet, test=test, kind=kind))
    run = RunFolder.open(config.output)
    different = differing(run, config)
    if different:
        raise UserError(f"{config.output} is a run with other settings ({different}): move it away")
    if not run.summary.is_file():
        return _one_of_many(resume(config.output, quiet=quiet, test=test, kind=kind))
    if run.manifest.is_file():  # the same settings on other images are another run
        run.open_data(exact=True)
    return run.read_json(run.summary)


def _one_of_many(summary: dict[str, Any]) -> dict[str, Any]:
    """The summary of a run of many, that nobody extends: their checkpoints would take more than their weights."""
    RunFolder(summary["run"]).checkpoint.unlink(missing_ok=True)
    return summary


def differing(run: RunFolder, config: TrainConfig) -> str:
    """The setting in which a run differs from what these settings would make, "" where there is none.

    Networks and weights are compared by what they hold, never by what their files are called.
    """
    stored, asked = read_config(run).flat(), config.flat()
    for name in ("data", "data_dir", "split", "teacher"):
        stored[name], asked[name] = (_place(absolute(values[name])) for values in (stored, asked))
    card, init = run.read_card(), config.network.init
    if init is not None and card.started_from is None and stored["init"] is not None:  # a run of version 1
        same = init.name == stored["init"].name
    else:
        same = identity_of(config) == (card.started_from or card.identity)
    if not same:
        return "network"
    fill_in = ("drop_rate", "drop_path_rate") if init is not None else ()
    skipped = {"output", "model", "init", *(name for name in fill_in if asked[name] is None)}
    return next((name for name in asked if name not in skipped and asked[name] != stored[name]), "")


def taught(how: Teaching) -> Teaching:
    """The settings of teaching, a file or folder by its absolute path."""
    return how if how.teacher is None else replace(how, teacher=_place(absolute(how.teacher)))


def _place(value: object) -> str:
    """A file or folder by its absolute path, the name of a data set as it is."""
    path = Path(str(value)).expanduser()
    return str(path.resolve() if path.exists() else value)
