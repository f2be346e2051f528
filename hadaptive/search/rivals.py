"""What a search must beat: random networks of its space, as fast and as small, and the published one."""

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from hadaptive.errors import UserError
from hadaptive.metrics import mean_interval, welch_difference
from hadaptive.models import HadaptiveNet
from hadaptive.search.config import SearchConfig, StudyConfig
from hadaptive.search.latency import Reference, fits, measure_networks, references
from hadaptive.search.outcome import odds_within, random_within
from hadaptive.search.space import Choice, SearchSpace
from hadaptive.search.table import LETTERS, LatencyTable

RANKED = 6  # networks at least, for fewer are never in an order that chance does not explain
DRAWS = 1000  # of a random network that is to be small enough


def draws_of(
    config: SearchConfig, space: SearchSpace, table: LatencyTable | None, classes: int
) -> Callable[[], Choice]:
    """What draws random networks as fast and as small as what the search finds.

    Args:
        config, space, table: of the search.
        classes: of the images.
    """
    generator = torch.Generator().manual_seed(config.execution.seed)
    goal = config.latency.latency_target
    if table is None or goal is None:
        return lambda: small_enough(config, space, lambda: space.random(generator), classes)
    target = table.target(goal)
    odds = odds_within(space, table, target) if table.others else None
    draw = partial(random_within, space, table, target, generator, odds)
    return lambda: small_enough(config, space, draw, classes)


def networks_to_compare(
    config: StudyConfig,
    space: SearchSpace,
    table: LatencyTable | None,
    summaries: list[dict[str, Any]],
    rivals: dict[str, Choice],
    judge: Callable[[Choice], float] | None = None,
) -> dict[str, dict[str, Any]]:
    """The networks to compare: found, rivals, and the one that the target is relative to; timed in turns.

    Args:
        config, space, table: of the study.
        summaries: of its searches.
        rivals: by names that begin with their group.
        judge: accuracy of a choice with a supernet's weights; None where there is none.
    """
    specs: dict[str, Reference] = {}
    choices: dict[str, Choice | None] = {}
    for summary in summaries:
        choices[f"found-seed{summary['seed']}"] = tuple(summary["choice"])
    single, goal = config.search, config.search.latency.latency_target
    setting = single.setting(summaries[0]["num_classes"], summaries[0]["device_type"])
    setting = setting if table is None else table.setting
    choices |= rivals
    for name, choice in choices.items():
        assert choice is not None
        specs[name] = space.build(choice, name=name)
    letter = LatencyTable.reference_of(goal)
    reference = references(single.stem_strides).get(letter, letter)
    if letter in table.references if table else fits(reference, setting):
        name = f"published-{letter}" if letter in LETTERS else f"reference-{letter}"
        specs[name], choices[name] = reference, None
    if table is None or table.is_of_this_machine:
        latency, ms = "measured", measure_networks(specs, setting)
    else:
        latency, ms = (
            "predicted",
            {n: table.predict(c) if c else table.references[letter] for n, c in choices.items()},
        )
    return {
        name: {
            "group": name.split("-")[0],
            "choice": choices[name],
            "predicted_ms": round(table.predict(choice), 4) if table and (choice := choices[name]) else "",
            "measured_ms": round(ms[name], 4),
            "latency": latency,
            "spec": spec if isinstance(spec, str) else spec.to_dict(),
            **({} if judge is None else {"supernet_accuracy": judge(own) if (own := choices[name]) else ""}),
        }
        for name, spec in specs.items()
    }


def small_enough(config: SearchConfig, space: SearchSpace, draw: Callable[[], Choice], classes: int) -> Choice:
    """A choice drawn among those that are as small as what is found must be.

    Raises:
        UserError: none of many is so small.
    """
    for _ in range(DRAWS):
        choice = draw()
        if config.latency.max_params is None:
            return choice
        network = HadaptiveNet(space.build(choice), classes, config.preprocessing.in_chans, device="meta")
        if sum(parameter.numel() for parameter in network.parameters()) <= config.latency.most_parameters:
            return choice
    raise UserError(
        f"none of {DRAWS} random networks has {config.latency.max_params} parameters or fewer: leave --baseline "
        "or --max-params out"
    )


def comparison_of(rows: list[dict[str, str]]) -> dict[str, Any]:
    """Means with 95% intervals of each group of networks, and whether the search beat the others.

    Where a group has several networks the values are the networks' means over their seeds, else the seeds'.
    """
    groups: dict[str, list[float]] = {}
    for group in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == group]
        by_name: dict[str, list[float]] = {}
        for row in own:
            by_name.setdefault(row["network"], []).append(100 * float(row["accuracy"]))
        means = [statistics.fmean(values) for values in by_name.values()]
        groups[group] = means if len(means) > 1 else next(iter(by_name.values()))
    result: dict[str, Any] = {
        "groups": {
            group: dict(zip(("mean", "half_width"), mean_interval(values), strict=True), values=values)
            for group, values in groups.items()
        }
    }
    for other in groups:
        if other != "found":
            difference, half = welch_difference(groups["found"], groups[other])
            verdict = "better" if difference > half else "worse" if difference < -half else "no different"
            verdict = "undecided" if math.isnan(half) else verdict
            result[f"found_against_{other}"] = {"difference": difference, "half_width": half, "verdict": verdict}
    # Of networks that were not chosen by the very accuracies that are in question.
    judged = [row for row in rows if row.get("supernet_accuracy") and row["group"] == "random"]
    enough = len({row["network"] for row in judged}) >= RANKED
    return result | ({"rank": rank_of(judged)} if enough else {})


def rank_of(rows: list[dict[str, str]]) -> dict[str, float]:
    """How well a supernet's accuracies order networks as their trainings do: Kendall's tau-b, and its p value."""
    from scipy.stats import kendalltau

    trained: dict[str, list[float]] = {}
    for row in rows:
        trained.setdefault(row["network"], []).append(float(row["accuracy"]))
    shared = {row["network"]: float(row["supernet_accuracy"]) for row in rows}
    means = [statistics.fmean(own) for own in trained.values()]
    found: Any = kendalltau([shared[name] for name in trained], means)
    return {"kendall_tau": float(found.statistic), "p": float(found.pvalue), "networks": len(trained)}
