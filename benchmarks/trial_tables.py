"""Tables of networks on trial: several regimes side by side, and what each part of a network adds."""

import math

from benchmarks.rows import Rows, markdown_table
from hadaptive.bench.floor import FLOORS
from hadaptive.metrics import mean_interval, welch_difference, with_interval


def trial_table(rows: Rows) -> str:
    """Mean test accuracy, its 95% interval and, in brackets, the difference to the base network, in each regime.

    A column for each file of rows. Networks stand in the order of the first column's means, the floor last. A
    variant's base is the network that it was made of. Seeds are said where they are fewer than others of a regime.
    """
    scores: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        scores.setdefault(row["regime"], {}).setdefault(row["model"], []).append(100 * float(row["test_accuracy"]))
    parameters = {row["model"]: f"{int(row['parameters']):,}" for row in rows}
    first = next(iter(scores.values()))
    by_name = {short(model): model for model in parameters}

    def place(model: str) -> tuple[bool, bool, float]:
        return model in FLOORS, model not in first, -mean_interval(first.get(model, [0.0]))[0]

    lines = []
    for model in sorted(parameters, key=place):
        base = by_name.get(short(model).partition(":")[0], model)
        cells = []
        for regime in scores.values():
            own = regime.get(model, [])
            cell = with_interval(*mean_interval(own)) if own else ""
            if own and base != model and base in regime:
                difference, half = welch_difference(own, regime[base])
                cell += f" ({with_interval(difference, half, '+')})"
            most = max(len(values) for name, values in regime.items() if name not in FLOORS)
            if own and len(own) < most and model not in FLOORS:
                cell += f", {len(own)} seed{'s' * (len(own) > 1)}"
            cells.append(cell)
        lines.append([short(model), parameters[model], *cells])
    return markdown_table(["network", "parameters", *scores], lines)


def stability_table(rows: Rows) -> str:
    """Products and gradients in the last epoch under each norm: medians over layers and seeds."""
    from hadaptive.bench.stability import PANELS, by_epoch

    lines = []
    for norm in dict.fromkeys(row["norm"] for row in rows):
        ends = [list(by_epoch(rows, norm, column).values())[-1:] for column in PANELS]
        cells = ["" if not end or math.isnan(end[0]) else f"{end[0]:.3g}" for end in ends]
        lines.append([norm, *cells])
    return markdown_table(["norm", *PANELS.values()], lines)


def short(model: str) -> str:
    """A network's name in rows without the fingerprint behind it."""
    return model.partition("@")[0]
