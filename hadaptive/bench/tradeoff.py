"""Accuracy against latency, for the networks that have both."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hadaptive.text import drawn


def plot_tradeoff(rows: Sequence[dict[str, Any]], accuracies: Sequence[dict[str, str]], path: Path) -> int:
    """Draw a panel for each runtime with a point for each network.

    Args:
        rows: of ``hadaptive bench latency``; those of one runtime with the first number of threads and batch.
        accuracies: of ``hadaptive bench accuracy``, several seeds of a model.
        path: PNG to write.

    Returns:
        How many networks are drawn; nothing is written where there is none.
    """
    from matplotlib.figure import Figure

    from hadaptive.pictures import save_png

    scores: dict[str, list[float]] = {}
    for row in accuracies:
        scores.setdefault(row["model"], []).append(100 * float(row["test_accuracy"]))
    panels: dict[str, dict[str, dict[str, Any]]] = {}
    first: dict[str, tuple[Any, ...]] = {}
    for row in rows:
        place = tuple(row[key] for key in ("isa", "threads", "batch"))
        if row["model"] in scores and first.setdefault(row["runtime"], place) == place:
            panels.setdefault(row["runtime"], {})[row["model"]] = row
    if not panels:
        return 0
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for number, (runtime, points) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, len(panels), number)
        for name, row in points.items():
            x, y = float(row["median_ms"]), statistics.fmean(scores[name])
            ours = name.startswith("hadaptive")
            axes.errorbar(
                x,
                y,
                xerr=[[x - float(row["lower_quartile_ms"])], [float(row["upper_quartile_ms"]) - x]],
                yerr=[[y - min(scores[name])], [max(scores[name]) - y]],
                fmt="o" if ours else "s",
                color="tab:red" if ours else "tab:gray",
            )
            axes.annotate(drawn(name), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
        _, threads, batch = first[runtime]
        axes.set_title(f"{runtime}, {threads} threads, batch {batch}", fontsize=9)
        axes.set_xlabel(f"latency at {next(iter(points.values()))['image_size']} pixels, ms (bars: quartiles)")
        axes.set_ylabel("test accuracy, % (bars: seeds)")
        axes.margins(0.2)
    save_png(figure, path)
    return len({name for points in panels.values() for name in points})
