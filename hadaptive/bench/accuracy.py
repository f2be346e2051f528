"""Several networks, several seeds, one recipe: the accuracy comparison. A row per run, written as it lands."""

import math
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hadaptive.bench.config import AccuracyConfig
from hadaptive.bench.floor import FLOORS, floor
from hadaptive.console import console, say
from hadaptive.data import is_stream, open_data
from hadaptive.engine.finite import NonFiniteLossError
from hadaptive.errors import UserError
from hadaptive.files import append_csv, read_csv
from hadaptive.jobs.config import Sharing
from hadaptive.jobs.job import Job
from hadaptive.jobs.run import check, run_jobs
from hadaptive.measure.alone import registered_by
from hadaptive.measure.timing import threads
from hadaptive.metrics import mean_interval, with_interval
from hadaptive.models import create_model, meant
from hadaptive.provenance import provenance
from hadaptive.train import TrainConfig, train_or_resume


def bench_accuracy(config: AccuracyConfig) -> list[dict[str, Any]]:
    """Run what is missing and return all rows of these networks under this recipe, and those of the floor.

    Raises:
        UserError: no such recipe, model or variant, or the rows that are there were trained otherwise.
    """
    check(config.sharing)
    results = config.results or Path("benchmarks/results") / f"accuracy-{_regime(config)}.csv"
    models = {name_of(model): model for model in config.models}
    settings = _recipe(config)  # mistakes show here
    for model in config.models:
        create_model(model, num_classes=2)
    _check_comparable(config, settings, models, results)
    results.parent.mkdir(parents=True, exist_ok=True)
    with threads(config.threads):
        _add_floor(settings, results)
    done = _done(results)
    missing = [(name, seed) for seed in config.seeds for name in models if (name, str(seed)) not in done]
    if missing and not is_stream(settings.data.data):
        open_data(settings.data)  # downloaded once, not by each of several processes
    sharing, modules = _shared(config) if missing else (config.sharing, ())
    config = replace(config, sharing=sharing)
    rates = _rates(config, {name: models[name] for name, _ in missing}, results, modules)
    trainings = {
        Job(
            f"{name}, seed {seed}, learning rate {rates[name]:g}",
            partial(train_or_resume, _settings(config, name, models[name], seed=seed, lr=rates[name])),
            modules,
        ): name
        for name, seed in missing
    }
    for outcome in run_jobs(list(trainings), config.sharing, threads=config.threads):
        name = trainings[outcome.job]
        append_csv(results, [row_of(name, outcome.result(), rates[name])])
    wanted = {*models, *FLOORS}
    return [row for row in read_csv(results) if row["model"] in wanted]


def _done(results: Path) -> set[tuple[str, str]]:
    return {(row["model"], row["seed"]) for row in read_csv(results)}


def _check_comparable(config: AccuracyConfig, settings: TrainConfig, models: Iterable[str], results: Path) -> None:
    """Refuse rows of another recipe, of other numbers of images or epochs, or of a rate that is no choice here."""
    rates = config.rates or (settings.optimisation.lr,)
    wanted = {"recipe": config.recipe, "train_images": settings.data.train_size}
    for row in read_csv(results):
        trained = row["model"] not in FLOORS
        asked = {**wanted, "epochs": settings.optimisation.epochs} if trained else wanted
        other = [f"{name} {row[name]}" for name, value in asked.items() if value and row[name] != str(value)]
        if row["model"] in models and float(row["lr"]) not in rates:
            other.append(f"learning rate {float(row['lr']):g}")
        if other:
            raise UserError(
                f"{results} has a row of {row['model']} with {' and '.join(other)}, which cannot be compared "
                "with these settings: let the results be written elsewhere"
            )


def _settings(config: AccuracyConfig, name: str, model: str, **changes: Any) -> TrainConfig:
    how = [f"{'rate' if key == 'lr' else key}{value:g}" for key, value in changes.items()]
    stem = "-".join([_regime(config), name, *how])
    output = config.runs / stem.replace(":", "-").replace(" ", "-")
    return _recipe(config, model=model, output=output, **changes)


def regime(recipe: str, train_size: int | None, epochs: int | None) -> str:
    """What files are called by of which accuracies can be compared."""
    size = "" if train_size is None else f"-{train_size}"
    return recipe + size + ("" if epochs is None else f"-{epochs}epochs")


def _regime(config: AccuracyConfig) -> str:
    return regime(config.recipe, config.train_size, config.epochs)


def _recipe(config: AccuracyConfig, **changes: Any) -> TrainConfig:
    own = {"train_size": config.train_size, "epochs": config.epochs}
    own = {name: value for name, value in own.items() if value is not None}
    return TrainConfig.from_recipe(config.recipe, **{**own, **changes})


def _add_floor(settings: TrainConfig, results: Path) -> None:
    if any((name, "0") not in _done(results) for name in FLOORS):
        say("== logistic regression and nearest neighbour, on pixels")
        for name, summary in floor(settings).items():
            if (name, "0") not in _done(results):
                append_csv(results, [row_of(name, summary, math.nan)])


def _shared(config: AccuracyConfig) -> tuple[Sharing, tuple[str, ...]]:
    """How trainings are shared out, and the modules that register their networks."""
    modules = sorted({*filter(None, map(registered_by, config.models))})
    if "__main__" in modules:
        if config.sharing != Sharing(jobs=1):
            say("a script's own network is known to no other process: trainings take turns in this one")
        return Sharing(jobs=1), ()
    return config.sharing, tuple(modules)


def _rates(
    config: AccuracyConfig, models: dict[str, str], results: Path, modules: tuple[str, ...]
) -> dict[str, float]:
    """Each network's learning rate: the recipe's, or the best of several on validation, ties to the smaller."""
    whole = _recipe(config).optimisation
    if not config.rates:
        return dict.fromkeys(models, whole.lr)
    epochs = config.rate_epochs or max(1, whole.epochs // 4)
    path = results.with_stem(f"{results.stem}-rates")

    def scores() -> dict[tuple[str, float], float]:
        rows = (row for row in read_csv(path) if (row["recipe"], row["epochs"]) == (config.recipe, str(epochs)))
        return {(row["model"], float(row["lr"])): float(row["validation_accuracy"]) for row in rows}

    known, changes = scores(), {"seed": config.seeds[0], "epochs": epochs}
    trainings = {
        Job(
            f"{name}, learning rate {rate:g}",
            partial(train_or_resume, _settings(config, name, model, lr=rate, **changes), test=False),
            modules,
        ): (name, rate)
        for name, model in models.items()
        for rate in sorted(config.rates)
        if (name, rate) not in known
    }
    for outcome in run_jobs(list(trainings), config.sharing, threads=config.threads):
        name, rate = trainings[outcome.job]
        keys = ("seed", "recipe", "epochs", "validation_accuracy", "train_seconds", "device", "commit")
        if isinstance(outcome.error, NonFiniteLossError):
            say(f"{outcome.job.name}: {outcome.error}: this rate is out")
            own = {**dict.fromkeys(keys, ""), **changes, "recipe": config.recipe, "validation_accuracy": 0.0}
            summary = {**own, **provenance()}
        else:
            summary = outcome.result()
        append_csv(path, [{"model": name, "lr": rate, **{key: summary[key] for key in keys}}])
    found = scores()
    return {name: max(config.rates, key=lambda rate: (found[name, rate], -rate)) for name in models}


def name_of(model: str) -> str:
    """What rows call a network: by its name, that of a spec file by its own name and its content."""
    if not model.partition(":")[0].endswith(".json"):
        return model
    spec = meant(model)
    return f"{spec.name}@{spec.fingerprint[:8]}"


def row_of(name: str, summary: dict[str, Any], rate: float) -> dict[str, Any]:
    """A training's row of results.

    Args:
        name: what rows call it.
        summary: of the training.
        rate: peak learning rate; NaN where there is none.

    Raises:
        UserError: there was no test part.
    """
    test = summary["test"]
    if test is None:
        raise UserError(f"{summary['data']} has no test part to compare on")
    keys = ("seed", "recipe", "data", "parameters", "train_images", "epochs", "weights")
    where = ("train_seconds", "device", "cores", "threads", "python", "torch", "timm", "hadaptive", "commit")
    return {
        "model": name,
        **{key: summary[key] for key in keys},
        "lr": rate,
        "test_images": test["images"],
        "test_accuracy": test["accuracy"],
        "test_loss": test["loss"],
        "validation_accuracy": summary["validation_accuracy"],
        **{key: summary[key] for key in where},
    }


def print_accuracy(rows: list[dict[str, Any]]) -> None:
    """Print mean and interval of the test accuracy per model, best first."""
    from rich.table import Table

    table = Table("model")
    for column in ("parameters", "seeds", "test accuracy, %", "each seed, %", "training, s"):
        table.add_column(column, justify="right")
    models = dict.fromkeys(row["model"] for row in rows)
    by_model = {model: [row for row in rows if row["model"] == model] for model in models}
    means = {m: mean_interval(100 * float(r["test_accuracy"]) for r in rs) for m, rs in by_model.items()}
    for model in sorted(models, key=lambda m: -means[m][0]):
        group, (mean, half) = by_model[model], means[model]
        seconds = sorted(float(row["train_seconds"]) for row in group)[len(group) // 2]
        table.add_row(
            model,
            f"{int(group[0]['parameters']):,}",
            str(len(group)),
            with_interval(mean, half),
            " ".join(f"{100 * float(row['test_accuracy']):.2f}" for row in group),
            f"{seconds:.0f}",
        )
    console().print(table)
