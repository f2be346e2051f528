"""What a search must beat, chosen in other ways: at random, the best of many, by evolution without shared weights.

What was judged stands in the study's files baseline-best.csv and baseline-evolution.csv, and is not judged again.
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

from hadaptive.console import say
from hadaptive.errors import UserError
from hadaptive.files import append_csv, drop_torn, read_csv
from hadaptive.info import inspect_network
from hadaptive.jobs.job import Job
from hadaptive.jobs.run import run_jobs
from hadaptive.models import HadaptiveNet
from hadaptive.search.config import StudyConfig
from hadaptive.search.front import Judged, generations, limits_of
from hadaptive.search.latency import LatencyTable
from hadaptive.search.rivals import draws_of
from hadaptive.search.space import Choice, SearchSpace
from hadaptive.train import train_or_resume


def baselines(
    folder: Path,
    config: StudyConfig,
    space: SearchSpace,
    table: LatencyTable | None,
    classes: int,
    judge: Callable[[Choice], float] | None,
    split: Path | None,
    quiet: bool,
) -> dict[str, Choice]:
    """The rivals that the settings ask for, by names that begin with their group.

    Args:
        folder: of the study.
        config, space, table: of the study.
        classes: of the images.
        judge: accuracy of a choice with shared weights.
        split: the division of the images.
        quiet: say nothing.

    Raises:
        UserError: no random network is within the limits.
        TrainingInterruptedError: stopped by a signal.
    """
    draw, found = draws_of(config.search, space, table, classes), {}
    for number in range(config.rivals.get("random", 0)):
        found[f"random-{number}"] = draw()
    if "best" in config.rivals:
        assert judge is not None
        found["best"] = _best(folder / "baseline-best.csv", config.rivals["best"], draw, judge, quiet)
    if "evolution" in config.rivals:
        found["evolution"] = _evolved(folder, config, space, table, classes, draw, split, quiet)
    return found


def _best(
    path: Path, number: int, draw: Callable[[], Choice], judge: Callable[[Choice], float], quiet: bool
) -> Choice:
    """The most accurate of so many random networks with the shared weights."""
    if not quiet:
        say(f"== the best of {number} random networks by the shared weights")
    drop_torn(path)
    accuracies = {_numbers(row["choice"]): float(row["supernet_accuracy"]) for row in read_csv(path)}
    drawn = [draw() for _ in range(number)]
    for choice in drawn:
        if choice not in accuracies:
            accuracies[choice] = judge(choice)
            append_csv(path, [{"choice": " ".join(map(str, choice)), "supernet_accuracy": accuracies[choice]}])
    return max(drawn, key=lambda choice: accuracies[choice])


def _numbers(text: str) -> Choice:
    return tuple(map(int, text.split()))


def _evolved(
    folder: Path,
    config: StudyConfig,
    space: SearchSpace,
    table: LatencyTable | None,
    classes: int,
    draw: Callable[[], Choice],
    split: Path | None,
    quiet: bool,
) -> Choice:
    """The most accurate network that NSGA-II finds by trainings of its own, together as long as the search's."""
    single, number = config.search, config.rivals["evolution"]
    epochs, goal = single.optimisation.epochs // number, single.latency.latency_target
    if not quiet:
        say(f"== evolution without shared weights: {number} networks, {epochs} epochs each")
    limits = limits_of(single.latency, None if table is None or goal is None else table.target(goal))
    how = single.preprocessing
    size = (how.in_chans, how.image_size, how.image_size)
    path, specs = folder / "baseline-evolution.csv", folder / "networks"
    specs.mkdir(exist_ok=True)
    drop_torn(path)
    known = {one.fingerprint: one for one in map(Judged.from_row, read_csv(path))}
    judged: dict[str, Judged] = {}
    population = max(2, round(math.sqrt(number)))
    breeding = generations(space.counts, [draw() for _ in range(population)], number, single.execution.seed)
    choices, generation = next(breeding), 0
    while choices and len(judged) < number:
        built = {choice: space.build(choice) for choice in choices}
        fresh = {spec.fingerprint: choice for choice, spec in built.items() if spec.fingerprint not in judged}
        fresh = dict(list(fresh.items())[: number - len(judged)])
        trainings = {}
        for fingerprint, choice in fresh.items():
            if fingerprint in known:
                judged[fingerprint] = known[fingerprint]
                continue
            model = specs / f"alone-{fingerprint[:12]}.json"
            built[choice].save(model)
            own = {"output": folder / "runs" / model.stem, "epochs": epochs, "split": split}
            training = single.training(model=str(model), seed=single.execution.seed, **own)
            trainings[Job(f"training {model.stem}", partial(train_or_resume, training, test=False))] = choice
        for outcome in run_jobs(list(trainings), config.sharing, quiet=quiet):
            choice, summary = trainings[outcome.job], outcome.result()
            one = Judged(
                generation=generation,
                choice=choice,
                fingerprint=built[choice].fingerprint,
                accuracy=summary["validation_accuracy"],
                loss=math.nan,
                parameters=summary["parameters"],
                macs=inspect_network(HadaptiveNet(built[choice], classes, how.in_chans), size).macs,
                latency_ms=None if table is None else table.predict(choice),
            )
            judged[one.fingerprint] = one
            append_csv(path, [one.row()])
        if len(judged) < number:
            scores = [judged[built[choice].fingerprint].score(limits) for choice in choices]
            choices, generation = breeding.send(scores), generation + 1
    within = [one for one in judged.values() if one.within(limits)]
    if not within:
        raise UserError(
            f"of {len(judged)} networks that evolution trained none is within the limits: leave its --baseline out"
        )
    return max(within, key=lambda one: one.accuracy).choice
