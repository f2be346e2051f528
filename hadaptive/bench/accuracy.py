"""Several networks, several seeds, one recipe: the accuracy comparison. A row per run, written as it lands."""

from pathlib import Path
from typing import Any

from hadaptive.bench.config import AccuracyConfig
from hadaptive.console import console, say
from hadaptive.errors import UserError
from hadaptive.files import append_csv, read_csv
from hadaptive.metrics import mean_interval, with_interval
from hadaptive.models import NetSpec
from hadaptive.train import TrainConfig, train_or_resume


def bench_accuracy(config: AccuracyConfig) -> list[dict[str, Any]]:
    """Run what is missing and return all rows of this recipe.

    Raises:
        UserError: no such recipe or model.
    """
    results = config.results or Path("benchmarks/results") / f"accuracy-{config.recipe}.csv"
    for seed in config.seeds:
        for model in config.models:
            done, name = {(row["model"], row["seed"]) for row in read_csv(results)}, name_of(model)
            if (name, str(seed)) in done:
                continue
            say(f"== {name}, seed {seed}")
            output = config.runs / f"{config.recipe}-{name}-seed{seed}"
            summary = train_or_resume(
                TrainConfig.from_recipe(config.recipe, model=model, seed=seed, output=output)
            )
            results.parent.mkdir(parents=True, exist_ok=True)
            append_csv(results, [_row(name, summary)])
    names = set(map(name_of, config.models))
    return [row for row in read_csv(results) if row["model"] in names]


def name_of(model: str) -> str:
    """What rows call a network: a timm name as it is, that of a spec file by its own name and its content."""
    if not model.endswith(".json"):
        return model
    spec = NetSpec.load(model)
    return f"{spec.name}@{spec.fingerprint[:8]}"


def _row(name: str, summary: dict[str, Any]) -> dict[str, Any]:
    test = summary["test"]
    if test is None:
        raise UserError(f"{summary['data']} has no test part to compare on")
    keys = ("seed", "recipe", "data", "parameters", "train_images", "epochs", "weights")
    where = ("train_seconds", "device", "cores", "threads", "python", "torch", "timm", "hadaptive", "commit")
    return {
        "model": name,
        **{key: summary[key] for key in keys},
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
