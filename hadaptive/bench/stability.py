"""Products and gradients under each norm, over a training: rows per layer and epoch, and a picture."""

import dataclasses
import itertools
import math
import statistics
from functools import partial
from pathlib import Path
from typing import Any

from hadaptive.bench.accuracy import regime
from hadaptive.bench.config import StabilityConfig
from hadaptive.console import console, say
from hadaptive.data import open_data
from hadaptive.engine.finite import NonFiniteLossError
from hadaptive.errors import UserError
from hadaptive.files import append_csv, read_csv
from hadaptive.jobs.job import Job
from hadaptive.jobs.run import check, run_jobs
from hadaptive.models import create_model
from hadaptive.nn.product_stats import ProductRecorder
from hadaptive.provenance import provenance
from hadaptive.runs import RunFolder
from hadaptive.train import TrainConfig, Trainer, train_or_resume

PRODUCTS = "products.csv"
RECORD_EVERY = 5  # steps; the layers run unfused while they are recorded


class _Observed(Trainer):
    """A training that keeps what the products were like in each epoch."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.products = ProductRecorder(self.network, RECORD_EVERY)
        self.where = provenance(str(self.accelerator.device))

    def own_state(self) -> dict[str, Any]:
        return {**super().own_state(), "products": self.products.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        super().load_own_state(state)
        if "products" in state:
            self.products.load_state_dict(state["products"])

    def summarise_epoch(self, folder: RunFolder) -> Any:
        rows, line = super().summarise_epoch(folder)
        accuracy = rows[folder.metrics][0]["val_accuracy"]
        rows[folder.path / PRODUCTS] = [
            {"epoch": self.epoch, "val_accuracy": accuracy, **dataclasses.asdict(report), **self.where}
            for report in self.products.reports()
        ]
        self.products.reset()
        return rows, line


def bench_stability(config: StabilityConfig) -> list[dict[str, Any]]:
    """Train the network with each norm, unless its rows are there; a training that was cut off goes on.

    Raises:
        UserError: no such network, norm or recipe; a training was gone on with by something else.
    """
    check(config.sharing)
    where = regime(config.recipe, None, config.epochs)
    results = config.results / f"stability-{where}.csv"
    results.parent.mkdir(parents=True, exist_ok=True)
    names = {norm: config.model if norm == "dysoft" else f"{config.model}:norm-{norm}" for norm in config.norms}
    for name in names.values():
        create_model(name, num_classes=2)  # mistakes show here
    done = {(row["model"], row["norm"], row["seed"]) for row in read_csv(results)}
    trainings = {}
    for seed, (norm, name) in itertools.product(config.seeds, names.items()):
        if (config.model, norm, str(seed)) in done:
            continue
        stem = f"stability-{where}-{name}-seed{seed}".replace(":", "-").replace("/", "-")
        settings: dict[str, Any] = {"model": name, "seed": seed, "output": config.runs / stem}
        if config.epochs is not None:
            settings["epochs"] = config.epochs
        training = TrainConfig.from_recipe(config.recipe, **settings)
        trainings[Job(f"{norm}, seed {seed}", partial(_products, training, norm))] = (norm, seed)
    if trainings:
        open_data(TrainConfig.from_recipe(config.recipe).data)  # downloaded once
    for outcome in run_jobs(list(trainings), config.sharing):
        norm, seed = trainings[outcome.job]
        what = {"model": config.model, "norm": norm, "seed": seed, "recipe": config.recipe}
        append_csv(results, [{**what, **row} for row in outcome.result()])
    rows = [row for row in read_csv(results) if row["model"] == config.model]
    picture = results.with_suffix(".png")
    plot_stability(rows, picture)
    console().print(f"products over training: {picture}", soft_wrap=True)
    print_stability(rows)
    return rows


def _products(config: TrainConfig, norm: str, *, quiet: bool) -> list[dict[str, Any]]:
    """The rows of one training, by epoch and layer."""
    assert config.output is not None
    complete = True
    try:
        train_or_resume(config, quiet=quiet, kind=_Observed)
    except NonFiniteLossError as error:
        if not quiet:
            say(f"{norm} diverged: {error}")  # which is a result
        complete = False
    # An epoch that was cut off before its checkpoint has run twice.
    rows = {(row["epoch"], row["layer"]): row for row in read_csv(config.output / PRODUCTS)}
    if complete and {int(epoch) for epoch, _ in rows} != set(range(config.optimisation.epochs)):
        raise UserError(
            f"{config.output} lacks the products of some epochs, for it was gone on with by another command: "
            "move it away"
        )
    return list(rows.values())


PANELS = {
    "kurtosis": "excess kurtosis of the products",
    "normed_largest": "largest magnitude behind the norm",
    "gradient": "gradient behind the norm, r.m.s.",
    "val_accuracy": "validation accuracy",
}


def by_epoch(rows: list[dict[str, Any]], norm: str, column: str) -> dict[int, float]:
    """The median over layers and seeds in each epoch; values that are not finite are left out."""
    values: dict[int, list[float]] = {}
    for row in rows:
        value = float(row[column])
        if row["norm"] == norm and math.isfinite(value):
            values.setdefault(int(row["epoch"]), []).append(value)
    return {epoch: statistics.median(found) for epoch, found in sorted(values.items())}


def plot_stability(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel for each of PANELS with a line for each norm."""
    from matplotlib.figure import Figure

    from hadaptive.pictures import save_png

    figure = Figure(figsize=(12, 7), layout="constrained")
    for number, (column, title) in enumerate(PANELS.items(), 1):
        axes = figure.add_subplot(2, 2, number)
        for norm in dict.fromkeys(row["norm"] for row in rows):
            points = by_epoch(rows, norm, column)
            axes.plot([epoch + 1 for epoch in points], list(points.values()), label=norm, marker=".")
        axes.set(title=title, xlabel="epoch")
        if column != "val_accuracy":
            axes.set_yscale("symlog" if column == "kurtosis" else "log")
        if number == 1:
            axes.legend(fontsize="small")
    save_png(figure, path)


def print_stability(rows: list[dict[str, Any]]) -> None:
    """The last epoch of each norm."""
    from rich.table import Table

    table = Table("norm", *PANELS.values())
    for norm in dict.fromkeys(row["norm"] for row in rows):
        last = [list(by_epoch(rows, norm, column).values())[-1:] for column in PANELS]
        table.add_row(norm, *(f"{value[0]:.4g}" if value else "" for value in last))
    console().print(table)
