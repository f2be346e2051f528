"""What a person is told at the end of a training."""

from typing import Any

from hadaptive.console import say
from hadaptive.metrics import told


def say_outcome(figures: dict[str, dict[str, Any]], select: str, summary: dict[str, Any]) -> None:
    """Print the accuracies of a run that is done, and where it is.

    Args:
        figures: validation of the "best" and the "last" weights, as far as they are known.
        select: those that were tested.
        summary: of the run.
    """
    test = summary["test"]
    for which, found in sorted({**figures, select: summary["validation"]}.items()):
        if which in ("best", select):
            epoch = "" if found["epoch"] is None else f", epoch {found['epoch']}"
            say(f"{which} validation {told(found, interval=True)}{epoch}")
    if test is None:
        say("no test part was measured")
    else:
        say(f"test {told(test, interval=True)}, {select} weights")
    say(f"run folder: {summary['run']}")
