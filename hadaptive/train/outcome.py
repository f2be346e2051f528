"""What a person is told at the end of a training."""

from typing import Any

from hadaptive.console import say
from hadaptive.metrics import share_text


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
            share = share_text(found["correct"], found["images"], interval=True)
            say(f"{which} validation accuracy {share}{epoch}")
    if test is None:
        say("no test part was measured")
    else:
        correct = round(test["accuracy"] * test["images"])
        share = share_text(correct, test["images"], interval=True)
        say(f"test accuracy {share}, {select} weights")
    say(f"run folder: {summary['run']}")
