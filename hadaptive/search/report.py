"""What a person is told at the end of a search, and of a comparison of several."""

from typing import Any

from hadaptive.console import console, say
from hadaptive.files import read_csv
from hadaptive.metrics import with_interval
from hadaptive.parsing import command_line
from hadaptive.search.config import SearchConfig
from hadaptive.search.folder import SearchFolder
from hadaptive.search.labels import label
from hadaptive.search.space import SearchSpace

TAU = 0.4  # Kendall's, below which a supernet's order is not to be trusted


def print_search(folder: SearchFolder, config: SearchConfig, space: SearchSpace, summary: dict[str, Any]) -> None:
    """Print what was found, position by position, its latency, any warning, and how to train it."""
    if summary.get("method") == "evolution":
        _print_front(folder, summary)
    else:
        _print_confidence(space, summary)
    if summary["predicted_ms"] is not None:
        measured = ", ".join(f"{name} {ms:.2f} ms" for name, ms in (summary["measured_ms"] or {}).items())
        say(f"latency: target {summary['target_ms']:.2f} ms, predicted {summary['predicted_ms']:.2f} ms; "
              f"measured: {measured}")  # fmt: skip
    for warning in summary["warnings"]:
        say(f"warning: {warning}")
    say(f"train it: {training_command(folder, config)}")


def _print_confidence(space: SearchSpace, summary: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("position", "found")
    table.add_column("confidence", justify="right")
    chosen = zip(space.positions, summary["choice"], summary["confidence"], strict=True)
    for number, (position, choice, confidence) in enumerate(chosen, start=1):
        if len(position) > 1:
            table.add_row(str(number), label(position[choice]), f"{confidence:.2f}")
    console().print(table)


def _print_front(folder: SearchFolder, summary: dict[str, Any]) -> None:
    """The networks of the front: cost, and accuracy with the supernet's weights, which training will change."""
    from rich.table import Table

    rows = read_csv(folder.front)
    table = Table("network")
    timed = any(row["latency_ms"] for row in rows)
    for column in ("MMACs", "parameters", *(("predicted ms", "measured ms") if timed else ()), "supernet, %"):
        table.add_column(column, justify="right")
    for row in rows:
        ms = [row[key] and f"{float(row[key]):.3f}" for key in ("latency_ms", "measured_ms")]
        table.add_row(
            row["network"],
            f"{int(row['macs']) / 1e6:.2f}",
            f"{int(row['parameters']):,}",
            *(ms if timed else ()),
            f"{100 * float(row['accuracy']):.2f}",
        )
    console().print(table)
    say(
        f"the front of {summary['networks']} networks, each a NetSpec in {folder.front_networks}; "
        f"{folder.found.name} is one of them, with {summary['parameters']:,} parameters"
    )


def training_command(folder: SearchFolder, config: SearchConfig) -> str:
    """The command that trains what was found, with the settings and the division of the images of the search."""
    output = folder.path.with_name(f"{folder.path.name}-trained")
    training = config.training(model=str(folder.found), output=output, split=folder.path)
    drawn = ("val_fraction", "test_fraction", "data_seed")  # the division has settled what they decide
    given = {name: value for name, value in training.given().items() if name not in drawn}
    return command_line("train", training.recipe, given)


def study_lines(folder: SearchFolder, summary: dict[str, Any]) -> list[str]:
    """What a comparison says, in sentences without their full stops."""
    lines = []
    if (agreement := summary["agreement"]) is not None:
        lines.append(
            f"two seeds choose the same candidate at {agreement['share']:.0%} of the positions "
            f"(chance: {agreement['chance']:.0%}); see {folder.path / 'agreement.csv'}"
        )
    for group in summary.get("groups", ()):
        if group != "found":
            against = summary[f"found_against_{group}"]
            points = with_interval(against["difference"], against["half_width"], "+")
            lines.append(f"found against {group}: {points} points: {against['verdict']}")
    if "rank" in summary:
        rank = summary["rank"]
        lines.append(
            f"the supernet orders {rank['networks']} networks as trainings do with Kendall's tau "
            f"{rank['kendall_tau']:.2f} (p = {rank['p']:.2g})"
        )
        if not (rank["kendall_tau"] >= TAU and rank["p"] <= 0.05):
            lines.append("warning: that is too little to trust its front: train the supernet longer (--epochs)")
    if summary.get("found_against_random", {"verdict": "better"})["verdict"] != "better":
        lines.append("the search does not beat random networks of the space: do not trust what it found")
    return lines


def print_study(folder: SearchFolder, rows: list[dict[str, str]], summary: dict[str, Any]) -> None:
    """Print agreement, the groups' accuracy and latency, and the verdict."""
    from rich.table import Table

    for warning in summary["warnings"]:
        say(f"warning: {warning}")
    if "groups" in summary:
        table = Table("networks")
        for column in ("accuracy, %", "latency, ms"):
            table.add_column(column, justify="right")
        for group, values in summary["groups"].items():
            ms = [float(row["measured_ms"]) for row in rows if row["group"] == group]
            table.add_row(
                group, with_interval(values["mean"], values["half_width"]), f"{min(ms):.2f} to {max(ms):.2f}"
            )
        console().print(table)
    for line in study_lines(folder, summary):
        say(line)
    say(f"study: {folder.path}")
