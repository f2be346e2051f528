"""What a search must beat, chosen in other ways: at random, the best of many, by evolution without shared weights.

What was judged stands in the study's files baseline-best.csv and baseline-evolution.csv, and is not judged again.
"""

from collections.abc import Callable
from pathlib import Path

from hadaptive.console import say
from hadaptive.files import append_csv, drop_torn, read_csv
from hadaptive.search.alone import Alone
from hadaptive.search.config import StudyConfig
from hadaptive.search.latency import LatencyTable
from hadaptive.search.rivals import draws_of
from hadaptive.search.space import Choice, SearchSpace


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
        found["evolution"] = Alone(folder, config, space, table, classes, split, quiet).best(draw)
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
