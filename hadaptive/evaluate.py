"""Evaluate a finished run on one of its parts, and leave the figures beside it."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import torch

from hadaptive.console import console
from hadaptive.errors import UserError
from hadaptive.files import write_atomically, write_csv, write_json
from hadaptive.metrics import Evaluation, evaluate_model
from hadaptive.pictures import plot_confusion
from hadaptive.runs import RunFolder
from hadaptive.train.config import TrainConfig
from hadaptive.train.setup import create_accelerator, create_data


def evaluate_run(
    path: str | Path,
    *,
    split: Literal["test", "validation"] = "test",
    weights: Literal["best", "last"] | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    cpu: bool = False,
) -> tuple[Evaluation, list[str], dict[str, Path]]:
    """Evaluate a run's network on its held-out data.

    Writes evaluation-<split>.json, per-class-<split>.csv and confusion-<split>.png into the run folder.

    Args:
        path: the run folder.
        split: "test" or "validation".
        weights: "best" or "last"; None for those that the run's own test used.
        data, data_dir: where the data lie now, if they have moved since.
        cpu: stay on the CPU even where there is a GPU.

    Returns:
        The evaluation, the class names, and the paths of the files written.

    Raises:
        UserError: no such run, weights or part, or other data than it was trained on.
    """
    run = RunFolder.open(path)
    config = TrainConfig.from_dict(run.read_json(run.config))
    changes: dict[str, Any] = {"cpu": cpu or config.cpu, "compile": False, "train_size": None}
    if config.mixed_precision == "fp16" and (changes["cpu"] or not torch.cuda.is_available()):
        changes["mixed_precision"] = "no"  # a run made on a GPU, looked at on a machine without one
    if data is not None:
        changes["data"] = data
    if data_dir is not None:
        changes["data_dir"] = data_dir
    config = dataclasses.replace(config, **changes)
    model, card = run.load_model(weights or config.select)
    accelerator = create_accelerator(config)
    parts = create_data(config, accelerator)
    parts.check_classes(card.classes, config.data)
    loader = parts.test if split == "test" else parts.validation
    if loader is None:
        raise UserError(f"{config.data} has no test part; try --split validation")
    evaluation = evaluate_model(
        accelerator.prepare(model),
        loader,
        len(card.classes),
        accelerator=accelerator,
        channels_last=config.channels_last,
    )
    files = {
        "figures": run.path / f"evaluation-{split}.json",
        "per class": run.path / f"per-class-{split}.csv",
        "confusion matrix": run.path / f"confusion-{split}.png",
    }
    if accelerator.is_main_process:
        rows = evaluation.per_class(card.classes)
        write_json(files["figures"], {"split": split, "weights": weights or config.select, **evaluation.summary()})
        write_atomically(files["per class"], lambda p: write_csv(p, rows, list(rows[0])))
        title = f"{card.model} on {config.data}, {split}: {evaluation.accuracy:.2%}"
        plot_confusion(evaluation.confusion(), card.classes, files["confusion matrix"], title)
    return evaluation, card.classes, files


def print_evaluation(evaluation: Evaluation, classes: list[str], files: dict[str, Path]) -> None:
    """Print accuracy with its interval, the classes from worst to best, and where the files lie."""
    from rich.table import Table

    out = console()
    low, high = evaluation.interval
    out.print(
        f"accuracy {evaluation.accuracy:.2%} (95% interval {low:.2%} to {high:.2%}) "
        f"on {evaluation.total:,} images, loss {evaluation.loss:.4f}",
    )
    table = Table(title="classes, hardest first", title_justify="left")
    table.add_column("class")
    for column in ("images", "recall", "precision"):
        table.add_column(column, justify="right")
    rows = sorted(evaluation.per_class(classes), key=lambda row: (row["recall"] != row["recall"], row["recall"]))
    for row in rows[:50]:
        table.add_row(row["class"], f"{row['images']:,}", f"{row['recall']:.2%}", f"{row['precision']:.2%}")
    out.print(table)
    if evaluation.unreadable:
        out.print(f"{len(evaluation.unreadable)} images could not be read and do not count")
    for what, path in files.items():
        out.print(f"{what}: {path}", soft_wrap=True)
