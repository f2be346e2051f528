"""Evaluate a finished run on one of its parts, and leave the figures beside it."""

import hashlib
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch.utils.data import DataLoader

from hadaptive.cards import ModelCard
from hadaptive.console import console, say
from hadaptive.data import DataConfig, Source, is_stream
from hadaptive.data.apart import open_apart
from hadaptive.engine.accelerator import create_accelerator
from hadaptive.engine.batches import EVALUATION_BATCH, evaluation_batches, stream_loader
from hadaptive.engine.processes import on_main
from hadaptive.errors import UserError
from hadaptive.files import write_atomically, write_csv, write_json
from hadaptive.metrics import Evaluation, evaluate_model, share_text
from hadaptive.mistakes import Judgement, check_sheet, draw_mistakes
from hadaptive.pictures import plot_confusion, plot_reliability
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, read_config


def evaluate_run(
    path: str | Path,
    *,
    split: Literal["test", "validation"] = "test",
    weights: Literal["best", "last"] | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    on: str | None = None,
    sheet: Path | None = None,
    cpu: bool = False,
    quiet: bool = True,
) -> tuple[Evaluation, list[str], dict[str, Path]]:
    """Evaluate a run's network on its held-out data, the same images that were held out then, or on others.

    Writes evaluation-<split>.json, per-class-<split>.csv, predictions-<split>.csv and confusion-<split>.png into
    the run folder; of other data their name stands there behind "on-".

    Args:
        path: the run folder.
        split: "test" or "validation".
        weights: "best" or "last"; None for those that the run's own test used.
        data, data_dir: where the data lie now, if they have moved since.
        on: other labelled images, named like any data: all of them, or their test part where they have parts, but
            those that the network has learned from.
        sheet: new PNG, for the surest mistakes; none is written where there are none.
        cpu: stay on the CPU even where there is a GPU.
        quiet: do not print what has become of the images, nor the figures.

    Returns:
        The evaluation, the class names, and the paths of the files written.

    Raises:
        UserError: no such run, weights or part, or other data than it was trained on; the sheet exists, or is of
            a stream.
    """
    run = RunFolder.open(path)
    if sheet is not None:
        check_sheet(sheet)
    config = read_config(run)
    config = replace(config, data=run.data_config(data, data_dir))
    model, card = run.load_model(weights)
    execution = replace(config.execution, cpu=cpu or config.execution.cpu)
    try:
        accelerator = create_accelerator(execution)
    except UserError:  # a run made on a GPU, looked at on a machine without one
        accelerator = create_accelerator(replace(execution, mixed_precision="no"))
    if on is not None and (data is not None or split != "test"):
        raise UserError("on names other images than the run's: leave data and split out")
    if on is None:
        loader, notes, source = _part(run, config, card, split, accelerator, data, data_dir)
        part, where = split, config.data.data
    else:
        run.require_manifest()
        source, notes = open_apart(DataConfig(data=on, data_dir=data_dir), card.classes, run.read_manifest())
        loader = evaluation_batches(source, card.preprocessing, accelerator=accelerator)
        where = str(Path(on).resolve()) if Path(on).exists() else on
        part = _part_of_others(run, where)
    if sheet is not None and source is None:
        raise UserError(f"{where} is a stream, whose images cannot be looked up again: leave --sheet out")
    if not run.summary.is_file():
        notes = [*notes, f"{path} is not finished: these are the weights it has so far"]
    evaluation = evaluate_model(
        accelerator.prepare(model),
        loader,
        len(card.classes),
        accelerator=accelerator,
        channels_last=execution.channels_last,
        temperature=card.temperature,
    )
    files = {
        "figures": run.path / f"evaluation-{part}.json",
        "per class": run.path / f"per-class-{part}.csv",
        "each image": run.path / f"predictions-{part}.csv",
        "confusion matrix": run.path / f"confusion-{part}.png",
        "reliability": run.path / f"reliability-{part}.png",
    }

    def write() -> None:
        rows = evaluation.per_class(card.classes)
        about = {
            "split": split if on is None else None,
            "data": where,
            "weights": weights or run.choice(),
            "notes": notes,
        }
        write_json(files["figures"], {**about, **evaluation.summary()})
        write_atomically(files["per class"], lambda p: write_csv(p, rows, list(rows[0])))
        images = each_image(evaluation, card.classes, source)
        write_atomically(files["each image"], lambda p: write_csv(p, images, list(IMAGE_COLUMNS)))
        title = f"{card.model} on {where}, {part}: {share_text(evaluation.correct, evaluation.total)}"
        plot_confusion(evaluation.confusion(), card.classes, files["confusion matrix"], title)
        assert evaluation.confidences is not None
        right = evaluation.targets == evaluation.predictions
        plot_reliability(evaluation.confidences, right, files["reliability"], f"{card.model} on {where}, {part}")
        said = ""
        if sheet is not None and source is not None:
            said = draw_mistakes(
                map(Judgement.of, images),
                source,
                card.preprocessing,
                sheet,
                f"surest mistakes of {card.model} on {where}, {part}",
            )
        if not quiet:
            for note in notes:
                say(note)
            print_evaluation(evaluation, card.classes, files)
            if said:
                say(said)
            if on is None:
                say(f"see why: {shlex.join(['hadaptive', 'report', str(path)])}")

    on_main(accelerator, write)
    return evaluation, card.classes, files


def _part_of_others(run: RunFolder, where: str) -> str:
    """What files of other images are called by, where another place of that name may have been measured before."""
    part = "on-" + re.sub(r"[^\w.-]+", "-", Path(where).name)
    known = run.path / f"evaluation-{part}.json"
    if not known.is_file() or run.read_json(known).get("data") == where:
        return part
    return f"{part}-{hashlib.sha256(where.encode(errors='surrogateescape')).hexdigest()[:6]}"


def _part(
    run: RunFolder,
    config: TrainConfig,
    card: ModelCard,
    split: Literal["test", "validation"],
    accelerator: Any,
    data: str | None,
    data_dir: Path | None,
) -> tuple[DataLoader, list[str], Source | None]:
    """Batches of one part of a run's images, what has become of them, and the images; None of a stream."""
    stored = config.data
    if is_stream(stored.data):
        name = stored.test_split if split == "test" else stored.val_split
        if name is None or (split == "test" and name in (stored.train_split, stored.val_split)):
            raise UserError(f"{stored.data} has no {split} part; try --split validation")
        return stream_loader(config, name, EVALUATION_BATCH, accelerator), [], None
    opened = run.open_data(data, data_dir, needs=(split,))
    source = opened.parts.get(split)
    if source is None:
        raise UserError(f"{stored.data} has no {split} part; try --split validation")
    loader = evaluation_batches(source, card.preprocessing, in_memory=opened.in_memory, accelerator=accelerator)
    return loader, opened.notes, source


IMAGE_COLUMNS = ("image", "class", "prediction", "probability", "right")


def each_image(evaluation: Evaluation, classes: list[str], source: Source | None) -> list[dict[str, object]]:
    """A row for every image that could be read: what it is, what the network takes it for, and how surely.

    Args:
        evaluation: of the images in their order.
        classes: names.
        source: the images; None where they have numbers alone.
    """
    assert evaluation.confidences is not None
    bad = set(evaluation.unreadable)
    numbers = [number for number in range(evaluation.total + len(bad)) if number not in bad]
    columns = (numbers, evaluation.targets, evaluation.predictions, evaluation.confidences)
    return [
        {
            "image": f"#{number}" if source is None else source.name(number),
            "class": classes[target],
            "prediction": classes[prediction],
            "probability": round(float(confidence), 6),
            "right": int(target == prediction),
        }
        for number, target, prediction, confidence in zip(*columns, strict=True)
    ]


def print_evaluation(evaluation: Evaluation, classes: list[str], files: dict[str, Path]) -> None:
    """Print accuracy with its interval, the classes from worst to best, and where the files lie."""
    from rich.table import Table

    out = console()
    error = evaluation.calibration_error
    calibration = "" if math.isnan(error) else f", calibration error {error:.3f}"
    out.print(f"accuracy {evaluation.said}, loss {evaluation.loss:.4f}{calibration}")
    table = Table(title="classes, hardest first", title_justify="left")
    table.add_column("class", overflow="fold")
    for column in ("images", "recall", "precision"):
        table.add_column(column, justify="right")
    rows = evaluation.per_class(classes)
    rows.sort(key=lambda row: math.inf if row["recall"] is None else row["recall"])
    for row in rows[:50]:
        recall = "no images" if row["recall"] is None else f"{row['recall']:.2%}"
        precision = "never predicted" if row["precision"] is None else f"{row['precision']:.2%}"
        table.add_row(row["class"], f"{row['images']:,}", recall, precision)
    out.print(table)
    if evaluation.unreadable:
        number = len(evaluation.unreadable)
        images = (
            "1 image could not be read and does" if number == 1 else f"{number:,} images could not be read and do"
        )
        out.print(f"{images} not count")
    for what, path in files.items():
        out.print(f"{what}: {path}", soft_wrap=True)
