"""What a start from weights and what a teacher gain on few images, each with its own learning rate."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadaptive.bench.accuracy import print_accuracy, row_of
from hadaptive.bench.floor import FLOORS, floor
from hadaptive.console import say
from hadaptive.files import append_csv, read_csv
from hadaptive.train import TrainConfig
from hadaptive.train.launch import train_or_resume


@dataclass(frozen=True)
class StartsConfig:
    """Train a network from scratch, from weights of other data, and with a teacher, and compare them.

    Attributes:
        network: that learns.
        weights: of the package, for other data, behind the network's name and a dot.
        teacher: larger network, which is trained on the same images first.
        recipe: of all trainings.
        seeds: of each way.
        rates: learning rates, of which each way takes the best on validation with the first seed.
        rate_epochs: epochs that rates are tried for.
        runs: folder of the trainings.
        results: the CSV file of rows.
    """

    network: str = "hadaptive_net2_xs"
    weights: str = "fmnist"
    teacher: str = "hadaptive_net_s:static"
    recipe: str = "few-digits"
    seeds: tuple[int, ...] = (0, 1, 2)
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    rate_epochs: int = 20
    runs: Path = Path("runs/starts")
    results: Path = Path("benchmarks/results/accuracy-starts.csv")


def bench_starts(config: StartsConfig) -> None:
    """Train, append a row for each training as it ends, and print; what has a row is not trained again."""
    done = {(row["model"], row["seed"]) for row in read_csv(config.results)}
    settings = TrainConfig.from_recipe(config.recipe)
    if not {(name, "0") for name in FLOORS} <= done:
        for name, summary in floor(settings).items():
            append_csv(config.results, [row_of(name, summary, float("nan"))])
    for name, changes in _ways(config):
        rate = _rate(config, name, changes)
        for seed in config.seeds:
            if (name, str(seed)) in done:
                continue
            say(f"== {name}, seed {seed}, learning rate {rate:g}")
            summary = train_or_resume(_training(config, name, changes, rate, seed), quiet=True)
            append_csv(config.results, [row_of(name, summary, rate)])
    print_accuracy(read_csv(config.results))


def _ways(config: StartsConfig) -> Iterator[tuple[str, dict[str, Any]]]:
    """What each way is called, and its settings; the teacher comes before what learns from it."""
    yield config.teacher, {"model": config.teacher}
    yield f"{config.network}, from scratch", {"model": config.network}
    started = {"model": f"{config.network}.{config.weights}", "pretrained": True}
    yield f"{config.network}, from {config.weights}", started
    every = TrainConfig.from_recipe(config.recipe).optimisation.epochs
    yield f"{config.network}, from {config.weights}, classifier alone", {**started, "freeze_backbone": every}
    teacher = {"model": config.teacher}
    run = _training(config, config.teacher, teacher, _rate(config, config.teacher, teacher), config.seeds[0])
    yield f"{config.network}, with a teacher", {"model": config.network, "teacher": str(run.output)}


def _training(
    config: StartsConfig, name: str, changes: dict[str, Any], rate: float, seed: int, **more: Any
) -> TrainConfig:
    folder = "-".join([re.sub(r"\W+", "-", name), f"rate{rate:g}", f"seed{seed}", *more])
    return TrainConfig.from_recipe(
        config.recipe, **changes, lr=rate, seed=seed, output=config.runs / folder, cpu=True, **more
    )


def _rate(config: StartsConfig, name: str, changes: dict[str, Any]) -> float:
    """The best rate on validation, ties to the smaller; what was tried before is read from its run."""
    found = {}
    for rate in config.rates:
        training = _training(config, name, changes, rate, config.seeds[0], epochs=config.rate_epochs)
        found[rate] = train_or_resume(training, quiet=True, test=False)["validation_accuracy"]
    return max(config.rates, key=lambda rate: (found[rate], -rate))
