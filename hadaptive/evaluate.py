"""Evaluate a finished run on one of its parts, and leave the figures beside it."""

import hashlib
import math
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from hadaptive.cards import ModelCard
from hadaptive.console import console, say
from hadaptive.data import DataConfig, LabelSets, Source, is_stream
from hadaptive.data.apart import open_apart
from hadaptive.data.places import COLUMNS
from hadaptive.data.tables import is_table
from hadaptive.engine.accelerator import create_accelerator
from hadaptive.engine.batches import EVALUATION_BATCH, evaluation_batches, stream_loader
from hadaptive.engine.processes import on_main
from hadaptive.errors import UserError
from hadaptive.files import check_new_picture, json_text, write_atomically, write_csv, write_json
from hadaptive.metrics import Evaluation, share_text, told
from hadaptive.mistakes import Judgement, draw_mistakes
from hadaptive.multi_label import MultiLabelEvaluation, evaluate_network
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
    columns: dict[str, str] | None = None,
    sheet: Path | None = None,
    cpu: bool = False,
    quiet: bool = True,
) -> tuple[Evaluation | MultiLabelEvaluation, list[str], dict[str, Path]]:
    """Evaluate a run's network on its held-out data, the same images that were held out then, or on others.

    Writes evaluation-<split>.json, per-class-<split>.csv, predictions-<split>.csv, reliability-<split>.png and, of
    one class an image, confusion-<split>.png into the run folder; of other data their name stands there behind
    "on-".

    Args:
        path: the run folder.
        split: "test" or "validation".
        weights: "best" or "last"; None for those that the run's own test used.
        data, data_dir: where the data lie now, if they have moved since.
        on: other labelled images, named like any data: all of them, or their test part where they have parts, but
            those that the network has learned from.
        columns: of a label file in `on`, by the setting that names each; default are the run's own.
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
        check_new_picture(sheet, "--sheet")
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
    if columns and on is None:
        flag = f"--{next(iter(columns)).replace('_', '-')}"
        raise UserError(f"the run knows its own columns, and nothing is given to --on: leave {flag} out")
    if on is None:
        loader, notes, source, sets = _part(run, config, card, split, accelerator, data, data_dir)
        part, where = split, config.data.data
    else:
        run.require_manifest()
        others = DataConfig(data=on, data_dir=data_dir, **{**_labelling(on, config.data), **(columns or {})})
        source, sets, notes = open_apart(others, card.classes, run.read_manifest())
        loader = evaluation_batches(source, card.preprocessing, accelerator=accelerator)
        where = str(Path(on).resolve()) if Path(on).exists() else on
        part = _part_of_others(run, where)
    if sheet is not None and source is None:
        raise UserError(f"{where} is a stream, whose images cannot be looked up again: leave --sheet out")
    if not run.summary.is_file():
        notes = [*notes, f"{path} is not finished: these are the weights it has so far"]
    evaluation = evaluate_network(
        accelerator.prepare(model),
        loader,
        len(card.classes),
        sets,
        accelerator=accelerator,
        channels_last=execution.channels_last,
        temperature=card.temperature,
        thresholds=card.thresholds,
    )
    files = {
        "figures": run.path / f"evaluation-{part}.json",
        "per class": run.path / f"per-class-{part}.csv",
        "each image": run.path / f"predictions-{part}.csv",
        "reliability": run.path / f"reliability-{part}.png",
    }
    if isinstance(evaluation, Evaluation):
        files["confusion matrix"] = run.path / f"confusion-{part}.png"

    def write() -> None:
        rows = evaluation.per_class(card.classes)
        about = {
            "split": split if on is None else None,
            "data": where,
            "weights": weights or run.choice(),
            **sureness_of(card),
            "notes": notes,
        }
        write_json(files["figures"], {**about, **evaluation.summary()})
        write_atomically(files["per class"], lambda p: write_csv(p, rows, list(rows[0])))
        images = each_image(evaluation, card.classes, source)
        columns = IMAGE_COLUMNS if isinstance(evaluation, Evaluation) else SEVERAL_COLUMNS
        write_atomically(files["each image"], lambda p: write_csv(p, images, list(columns)))
        title = f"{card.model} on {where}, {part}"
        if isinstance(evaluation, Evaluation):
            named = f"{title}: {share_text(evaluation.correct, evaluation.total)}"
            plot_confusion(evaluation.confusion(), card.classes, files["confusion matrix"], named)
            assert evaluation.confidences is not None
            plot_reliability(evaluation.confidences, evaluation.right, files["reliability"], title)
        else:
            happened = evaluation.probabilities.flatten(), evaluation.truth.flatten()
            plot_reliability(*happened, files["reliability"], title, of_classes=True)
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


def sureness_of(card: ModelCard) -> dict[str, Any]:
    """How sure a network was when it was judged, ready for JSON."""
    thresholds = None if card.thresholds is None else list(card.thresholds)
    return {"temperature": card.temperature, "thresholds": thresholds}


def _labelling(on: str, own: DataConfig) -> dict[str, Any]:
    """How the labels of other images are read: as those of the run's, from the same columns of a label file."""
    columns = {name: getattr(own, name) for name in COLUMNS} if is_table(Path(on)) else {}
    return {**columns, "multi_label": own.multi_label, "label_separator": own.label_separator}


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
) -> tuple[DataLoader, list[str], Source | None, LabelSets | None]:
    """Batches of one part of a run's images, what has become of them, the images, and the classes of each target.

    A stream has no images to name, and one class an image.
    """
    stored = config.data
    if is_stream(stored.data):
        name = stored.test_split if split == "test" else stored.val_split
        if name is None or (split == "test" and name in (stored.train_split, stored.val_split)):
            raise UserError(f"{stored.data} has no {split} part; try --split validation")
        return stream_loader(config, name, EVALUATION_BATCH, accelerator), [], None, None
    opened = run.open_data(data, data_dir, needs=(split,))
    source = opened.parts.get(split)
    if source is None:
        raise UserError(f"{stored.data} has no {split} part; try --split validation")
    loader = evaluation_batches(source, card.preprocessing, in_memory=opened.in_memory, accelerator=accelerator)
    return loader, opened.notes, source, opened.label_sets(card.classes)


IMAGE_COLUMNS = ("image", "class", "prediction", "probability", "right")
SEVERAL_COLUMNS = ("image", "classes", "predictions", "probabilities", "right")


def each_image(
    evaluation: Evaluation | MultiLabelEvaluation, classes: list[str], source: Source | None
) -> list[dict[str, object]]:
    """A row for every image that could be read: what it is, what the network takes it for, and how surely.

    Of several classes an image, names and the probabilities of all classes are JSON.

    Args:
        evaluation: of the images in their order.
        classes: names.
        source: the images; None where they have numbers alone.
    """
    bad = set(evaluation.unreadable)
    numbers = [number for number in range(evaluation.total + len(bad)) if number not in bad]
    if isinstance(evaluation, MultiLabelEvaluation):
        marks = zip(numbers, evaluation.truth, evaluation.found, evaluation.probabilities, strict=True)
        return [
            {
                "image": f"#{number}" if source is None else source.name(number),
                "classes": _named(truth, classes),
                "predictions": _named(found, classes),
                "probabilities": json_text(
                    {n: round(float(p), 6) for n, p in zip(classes, probability, strict=True)}
                ),
                "right": int(torch.equal(truth, found)),
            }
            for number, truth, found, probability in marks
        ]
    assert evaluation.confidences is not None
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


def _named(marks: Tensor, classes: list[str]) -> str:
    return json_text([classes[i] for i in marks.nonzero().flatten().tolist()])


def print_evaluation(
    evaluation: Evaluation | MultiLabelEvaluation, classes: list[str], files: dict[str, Path]
) -> None:
    """Print accuracy with its interval, the classes from worst to best, and where the files lie."""
    from rich.table import Table

    out = console()
    error = evaluation.calibration_error
    calibration = "" if math.isnan(error) else f", calibration error {error:.3f}"
    figures = evaluation.summary()
    top5 = f", among the first five {figures['top5']:.2%}" if "top5" in figures else ""
    f1 = figures.get("macro_f1")
    macro = "" if f1 is None else f", macro F1 {f1:.3f}"
    out.print(f"{told(figures, interval=True)}{top5}{macro}, loss {evaluation.loss:.4f}{calibration}")
    table = Table(title="classes, hardest first", title_justify="left")
    table.add_column("class", overflow="fold")
    several = isinstance(evaluation, MultiLabelEvaluation)
    for column in ("images", "recall", "precision", *(("average precision", "threshold") if several else ())):
        table.add_column(column, justify="right")
    rows, by = evaluation.per_class(classes), "average_precision" if several else "recall"
    rows.sort(key=lambda row: math.inf if row[by] is None else row[by])
    for row in rows[:50]:
        recall = "no images" if row["recall"] is None else f"{row['recall']:.2%}"
        precision = "never predicted" if row["precision"] is None else f"{row['precision']:.2%}"
        more = []
        if several:
            average = row["average_precision"]
            more = ["" if average is None else f"{average:.3f}", f"{row['threshold']:.3f}"]
        table.add_row(row["class"], f"{row['images']:,}", recall, precision, *more)
    out.print(table)
    if evaluation.unreadable:
        number = len(evaluation.unreadable)
        images = (
            "1 image could not be read and does" if number == 1 else f"{number:,} images could not be read and do"
        )
        out.print(f"{images} not count")
    for what, path in files.items():
        out.print(f"{what}: {path}", soft_wrap=True)
