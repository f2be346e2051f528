"""Trainings and searches side by side: what is in the folders, what came of them, and their curves."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from hadaptive.console import console, say
from hadaptive.errors import UserError
from hadaptive.files import json_text, read_csv, refuse_existing
from hadaptive.runs import RunFolder
from hadaptive.settings import without_timms
from hadaptive.text import shown


@dataclass(frozen=True)
class Listed:
    """What a folder of a run says of it.

    Attributes:
        path: of the folder.
        kind: training or search.
        state: done, or how far it is, or what is wrong with it.
        model: that was trained, or the space that was searched.
        data, recipe, seed: as it was given.
        epochs: that are done.
        validation_accuracy, test_accuracy: of the tested weights, in [0, 1]; None where they are not known.
        mean_average_precision: on the test part, of images of several classes, whose accuracies are of those of
            which every class is right; None of others.
        parameters: of the network.
        seconds: of training.
        changed: when its folder was written last, ISO 8601.
    """

    path: str
    kind: str
    state: str
    model: str
    data: str
    recipe: str
    seed: int | None
    epochs: int
    validation_accuracy: float | None
    test_accuracy: float | None
    mean_average_precision: float | None
    parameters: int | None
    seconds: float | None
    changed: str


def find_runs(folders: Iterable[Path]) -> list[Listed]:
    """The runs that the folders are or hold, at any depth, the latest last.

    Raises:
        UserError: there is no such folder, or no run in any.
    """
    found: dict[Path, Listed] = {}
    folders = list(folders)
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"there is no folder {folder}")
        for config in folder.rglob("config.json"):
            run, place = RunFolder(config.parent), config.parent.resolve()
            if place not in found and (run.card.is_file() or (run.path / "space.json").is_file()):
                found[place] = _listed(run)
    if not found:
        raise UserError(f"there are no runs in {', '.join(map(str, folders))}")
    return sorted(found.values(), key=lambda run: run.changed)


def _listed(run: RunFolder) -> Listed:
    searched = (run.path / "space.json").is_file()
    rows = _epochs(run)
    stamp = max(path.stat().st_mtime for path in (run.config, run.metrics, run.summary) if path.is_file())
    facts: dict[str, Any] = {
        "path": str(run.path),
        "kind": "search" if searched else "training",
        "epochs": len(rows),
        "changed": datetime.fromtimestamp(stamp).isoformat(timespec="seconds"),
    }
    try:
        settings = flat_settings(run.read_json(run.config))
        summary = run.read_json(run.summary) if run.summary.is_file() else {}
        model = settings.get("space") if searched else run.read_card().model
        test = summary.get("test") or {}
    except (UserError, AttributeError, ValueError) as error:  # what another program left there
        why = str(error) if isinstance(error, UserError) else "damaged"
        return Listed(**facts, **dict.fromkeys(("model", "data", "recipe"), ""), **UNKNOWN, state=why)
    return Listed(
        **facts,
        model=Path(str(model)).stem if str(model).endswith(".json") else str(model),
        data=str(settings.get("data", "")),
        recipe=str(settings.get("recipe", "")),
        seed=settings.get("seed"),
        state="done" if summary else f"{len(rows)} of {settings.get('epochs')} epochs",
        validation_accuracy=summary.get("validation_accuracy"),
        test_accuracy=test.get("accuracy"),
        mean_average_precision=test.get("mean_average_precision"),
        parameters=summary.get("parameters"),
        seconds=summary.get("train_seconds"),
    )


def _epochs(run: RunFolder) -> list[dict[str, str]]:
    """Whole rows of its epochs; none where the file is damaged."""
    try:
        rows = read_csv(run.metrics) if run.metrics.is_file() else []
    except (ValueError, csv.Error):
        return []
    return [row for row in rows if None not in row.values()]


UNKNOWN = dict.fromkeys(
    ("seed", "validation_accuracy", "test_accuracy", "mean_average_precision", "parameters", "seconds")
)


def flat_settings(stored: dict[str, Any]) -> dict[str, Any]:
    """Stored settings by their names, whatever part they are in; older folders have no parts."""
    found: dict[str, Any] = {}
    for key, value in without_timms(stored).items():
        found |= flat_settings(value) if isinstance(value, dict) else {key: value}
    return found


def runs_command(folders: Iterable[Path], *, as_json: bool = False, plot: Path | None = None) -> None:
    """List the runs in folders, as a table or a JSON line each; draw their validation accuracy over the epochs.

    Raises:
        UserError: there are none, or the picture exists.
    """
    from rich.table import Table

    refuse_existing(plot, "--plot")
    found = find_runs(folders)
    if as_json:
        for run in found:
            say(json_text(asdict(run)))
    else:
        table = Table()
        for column in ("run", "model", "data, recipe, seed", "state"):
            table.add_column(column, overflow="fold")
        for column in ("validation", "test", "parameters", "seconds"):
            table.add_column(column, justify="right")
        for run in found:
            settings = ", ".join(str(x) for x in (run.data, run.recipe, run.seed) if x not in ("", None))
            shares = ["" if x is None else f"{x:.2%}" for x in (run.validation_accuracy, run.test_accuracy)]
            if run.mean_average_precision is not None:
                shares[1] += f", mAP {run.mean_average_precision:.3f}"
            number = "" if run.parameters is None else f"{run.parameters:,}"
            seconds = "" if run.seconds is None else f"{run.seconds:,.0f}"
            table.add_row(shown(run.path), run.model, settings, run.state, *shares, number, seconds)
        console().print(table)
    if plot is not None:
        plot_runs(found, plot)
        say(f"{plot}: validation accuracy over the epochs", error=as_json)


def plot_runs(runs: list[Listed], path: Path) -> None:
    """Draw validation accuracy over the epochs, a line for each training."""
    from matplotlib.figure import Figure

    from hadaptive.pictures import save_png
    from hadaptive.text import drawn

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        rows = [row for row in _epochs(RunFolder(run.path)) if "val_accuracy" in row]
        if rows and run.kind == "training":
            epochs = [int(row["epoch"]) + 1 for row in rows]
            axes.plot(epochs, [100 * float(row["val_accuracy"]) for row in rows], label=drawn(Path(run.path).name))
    axes.set(xlabel="epoch", ylabel="validation accuracy, %")
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize="small")
    save_png(figure, path)
