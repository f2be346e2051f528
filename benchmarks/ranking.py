"""How well a search's shared weights order networks that are trained on their own, beside what it found."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from hadaptive.console import console
from hadaptive.errors import UserError
from hadaptive.files import append_csv, read_csv
from hadaptive.jobs.config import Sharing
from hadaptive.jobs.job import Job
from hadaptive.jobs.run import run_jobs
from hadaptive.search.config import SearchConfig
from hadaptive.search.folder import SearchFolder
from hadaptive.search.latency import LatencyTable
from hadaptive.search.launch import finished_search
from hadaptive.search.rivals import draws_of, rank_of
from hadaptive.search.space import SearchSpace
from hadaptive.train import TrainConfig
from hadaptive.train.launch import train_or_resume


@dataclass(frozen=True)
class RankingConfig:
    """Train random networks within a search's limits, and what it found, and compare with the shared weights.

    Attributes:
        search: folder of a finished evolution.
        recipe: of the trainings.
        lr: peak learning rate of all of them.
        networks: random ones, each trained once.
        runs: folder of the trainings.
        results: the CSV file of rows.
        sharing: how many at once.
    """

    search: Path
    recipe: str = "few-50"
    lr: float = 2e-3
    networks: int = 20
    runs: Path = Path("runs/ranking")
    results: Path = Path("benchmarks/results/search-ranking.csv")
    sharing: Sharing = field(default_factory=Sharing)


def ranking(config: RankingConfig) -> None:
    """Train, append a row for each network, and print Kendall's tau; what has a row is not trained again.

    Raises:
        UserError: the folder is not of a finished evolution.
    """
    folder = SearchFolder(config.search)
    if not folder.supernet.is_file():
        raise UserError(f"{config.search} is not the folder of a finished evolution")
    settings = SearchConfig.from_dict(folder.read_json(folder.config))
    space, summary = SearchSpace.load(folder.space), folder.read_json(folder.summary)
    table = LatencyTable.load(folder.latency) if folder.latency.is_file() else None
    draw = draws_of(settings, space, table, summary["num_classes"])
    choices = {"found": tuple(summary["choice"])} | {f"random-{n}": draw() for n in range(config.networks)}
    engine = finished_search(folder, data=settings.data.data, data_dir=settings.data.data_dir)
    done = {row["network"] for row in read_csv(config.results) if row["search"] == folder.path.name}
    jobs: dict[Job, dict[str, Any]] = {}
    for name, choice in choices.items():
        if name in done:
            continue
        path = config.runs / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        space.build(choice, name=name).save(path)
        training = TrainConfig.from_recipe(
            config.recipe, model=str(path), lr=config.lr, output=config.runs / name, cpu=settings.execution.cpu
        )
        about = {
            "search": folder.path.name,
            "space": space.name,
            "network": name,
            "choice": "-".join(map(str, choice)),
            "predicted_ms": "" if table is None else round(table.predict(choice), 4),
            "supernet_accuracy": engine.evaluate(choice).accuracy,  # pyright: ignore[reportAttributeAccessIssue]
        }
        jobs[Job(f"training {name}", partial(train_or_resume, training))] = about
    for outcome in run_jobs(list(jobs), config.sharing, quiet=False, cpu=settings.execution.cpu):
        trained = outcome.result()
        keys = ("recipe", "data", "seed", "parameters", "train_images", "epochs", "validation_accuracy")
        where = ("train_seconds", "device", "cores", "threads", "python", "torch", "timm", "hadaptive", "commit")
        row = {**jobs[outcome.job], **{key: trained[key] for key in keys}, "lr": config.lr}
        row |= {"accuracy": trained["test"]["accuracy"], **{key: trained[key] for key in where}}
        append_csv(config.results, [row])
    rows = [row for row in read_csv(config.results) if row["search"] == folder.path.name]
    rank = rank_of([row for row in rows if row["network"] != "found"])
    console().print(
        f"the shared weights order {rank['networks']} random networks as their trainings do with Kendall's tau "
        f"{rank['kendall_tau']:.2f} (p = {rank['p']:.2g})"
    )
