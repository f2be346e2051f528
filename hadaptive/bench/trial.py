"""Networks on trial: accuracy over seeds beside parameters, a training step and the exported network's latency."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hadaptive.bench.accuracy import bench_accuracy, name_of, regime
from hadaptive.bench.config import (
    AblationConfig,
    AccuracyConfig,
    LatencyBenchConfig,
    NetworksConfig,
    PluginConfig,
    TrialConfig,
)
from hadaptive.bench.floor import FLOORS
from hadaptive.bench.latency import bench_latency
from hadaptive.bench.networks import bench_networks
from hadaptive.bench.tradeoff import plot_tradeoff
from hadaptive.console import console, say
from hadaptive.errors import UserError
from hadaptive.files import read_csv
from hadaptive.metrics import mean_interval, welch_difference, with_interval
from hadaptive.models.variants import GROUPS, PLUGS
from hadaptive.train import TrainConfig

Rows = list[dict[str, Any]]


def bench_ablation(config: AblationConfig) -> list[dict[str, Any]]:
    """Train and time a network and its variants; a line for each.

    Raises:
        UserError: no such network or recipe.
    """
    variants = [name for group in config.groups for name in GROUPS[group]]
    models = [config.model, *(f"{config.model}:{name}" for name in variants)]
    return _bench(models, dict.fromkeys(models, models[0]), config.trial, "ablation")


def bench_plugin(config: PluginConfig) -> list[dict[str, Any]]:
    """Train and time networks with and without ACH; a line for each.

    Raises:
        UserError: no such network or recipe, or ACH does not fit into one.
    """
    based = {name: model for model in config.models for name in (model, *(f"{model}:{plug}" for plug in PLUGS))}
    return _bench(list(based), based, config.trial, "plugin")


def _bench(models: list[str], based: dict[str, str], trial: TrialConfig, what: str) -> list[dict[str, Any]]:
    where = regime(trial.recipe, trial.train_size, trial.epochs)
    accuracies = trial.results / f"accuracy-{where}.csv"
    latencies, steps = (trial.results / f"{what}-{kind}.csv" for kind in ("latency", "steps"))
    size = TrainConfig.from_recipe(trial.recipe).preprocessing.image_size
    names = {name_of(model): model for model in models}
    if trial.train:
        bench_accuracy(
            AccuracyConfig(
                recipe=trial.recipe,
                models=tuple(models),
                seeds=trial.seeds,
                results=accuracies,
                runs=trial.runs,
                train_size=trial.train_size,
                epochs=trial.epochs,
                rates=trial.rates,
                threads=trial.threads,
                rate_epochs=trial.rate_epochs,
                sharing=trial.sharing,
            )
        )
    if trial.measure:
        _measure(models, size, trial, latencies, steps)
    known = {model: name for name, model in names.items()}
    timed, stepped = (
        [{**row, "model": known[row["model"]]} for row in last_session(read_csv(path), size, models, threads)]
        for path, threads in ((latencies, trial.threads or 1), (steps, trial.threads))
    )
    based = {name: name_of(based[model]) for name, model in names.items()}
    lines = table(based, read_csv(accuracies), timed, stepped)
    if not lines:
        raise UserError(f"{accuracies} has no rows of these networks: train them first")
    picture = trial.results / f"{what}-{where}.png"
    if plot_tradeoff(timed, read_csv(accuracies), picture):
        console().print(f"accuracy against latency: {picture}", soft_wrap=True)
    print_trial(lines)
    return lines


def _measure(models: Sequence[str], size: int, trial: TrialConfig, latencies: Path, steps: Path) -> None:
    """Time all of them in one session, unless there is one already."""
    if not last_session(read_csv(latencies), size, models, trial.threads or 1):
        say(f"== {len(models)} networks, exported to ONNX Runtime")
        # Two threads make times of less than a millisecond jump.
        threads = (trial.threads or 1,)
        bench_latency(
            LatencyBenchConfig(
                tuple(models), ("onnxruntime",), threads, results=latencies, image_size=size, rounds=3
            )
        )
    if not last_session(read_csv(steps), size, models, trial.threads):
        say(f"== {len(models)} networks, a training step")
        bench_networks(NetworksConfig(tuple(models), steps, size, batch=64, rounds=8, threads=trial.threads))


def last_session(rows: Rows, size: int, models: Sequence[str], threads: int | None) -> Rows:
    """The rows of the last session that timed all of these networks at this size; none where there is none.

    Ratios are of one session only. A session ends where a network comes again.

    Args:
        rows: of ``bench latency`` or ``bench networks``, in their order.
        size: of the images.
        models: by the names that were timed.
        threads: how many; None for any.
    """
    sessions: list[dict[tuple[str, ...], dict[str, Any]]] = [{}]
    for row in rows:
        if row["image_size"] != str(size) or (threads is not None and row["threads"] != str(threads)):
            continue
        key = tuple(row.get(name, "") for name in ("model", "what", "layout", "runtime", "batch"))
        if key in sessions[-1]:
            sessions.append({})
        sessions[-1][key] = row
    for session in reversed(sessions):
        if {key[0] for key in session}.issuperset(models):
            return [row for row in session.values() if row["model"] in models]
    return []


def table(based: dict[str, str], accuracies: Rows, latencies: Rows, steps: Rows) -> list[dict[str, Any]]:
    """A line for each network that has an accuracy, best first.

    Args:
        based: of each network the one that it is compared with.
        accuracies: of ``bench accuracy``, those of the floor as well.
        latencies, steps: of one session of ``bench latency`` and ``bench networks`` each.

    Returns:
        name, parameters, macs, products, step_ms and latency_ms with their ratios to the base's, accuracy and
        half of its interval in %, the difference to the base and half of that interval, and the seeds.
    """
    scores: dict[str, list[float]] = {}
    for row in accuracies:
        scores.setdefault(row["model"], []).append(100 * float(row["test_accuracy"]))
    size = {row["model"]: int(row["parameters"]) for row in accuracies}
    timed = {row["model"]: row for row in latencies}
    trained = {
        row["model"]: float(row["median_ms"])
        for row in steps
        if row["what"] == "training step" and row["layout"] == "channels_last"
    }
    lines = []
    for name in [*based, *FLOORS]:
        if name not in scores:
            continue
        base, (mean, half) = based.get(name, name), mean_interval(scores[name])
        difference = (math.nan, math.nan)
        if base != name and base in scores:
            difference = welch_difference(scores[name], scores[base])
        cost, other = timed.get(name), timed.get(base)
        ms, base_ms = (math.nan if row is None else float(row["median_ms"]) for row in (cost, other))
        lines.append(
            {
                "name": name,
                "base": base,
                "parameters": size[name],
                "macs": None if cost is None else int(cost["macs"]),
                "products": None if cost is None else int(cost["products"]),
                "step_ms": trained.get(name, math.nan),
                "step_ratio": trained.get(name, math.nan) / trained.get(base, math.nan),
                "latency_ms": ms,
                "latency_ratio": ms / base_ms,
                "accuracy": mean,
                "half": half,
                "difference": difference[0],
                "difference_half": difference[1],
                "seeds": len(scores[name]),
            }
        )
    return sorted(lines, key=lambda line: -line["accuracy"])


COLUMNS = ("parameters", "MMACs", "products, k", "step", "exported", "accuracy, %", "to the base", "seeds")


def cells(line: dict[str, Any]) -> list[str]:
    """A line of :func:`table` as COLUMNS have it; times are ratios to the base."""

    def ratio(value: float) -> str:
        return "" if math.isnan(value) else f"{value:.2f}"

    difference = line["difference"]
    return [
        f"{line['parameters']:,}",
        "" if line["macs"] is None else f"{line['macs'] / 1e6:.1f}",
        "" if line["products"] is None else f"{line['products'] / 1e3:.1f}",
        ratio(line["step_ratio"]),
        ratio(line["latency_ratio"]),
        with_interval(line["accuracy"], line["half"]),
        "" if math.isnan(difference) else with_interval(difference, line["difference_half"], "+"),
        str(line["seeds"]),
    ]


def print_trial(lines: list[dict[str, Any]]) -> None:
    """Print the lines as a table."""
    from rich.table import Table

    out = Table("network")
    for column in COLUMNS:
        out.add_column(column, justify="right")
    for line in lines:
        out.add_row(line["name"], *cells(line))
    console().print(out)
