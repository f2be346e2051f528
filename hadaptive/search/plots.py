"""Pictures of a search: confidence per position, its curves, and the network found as a strip of blocks."""

import statistics
from pathlib import Path

from matplotlib.figure import Figure

from hadaptive.files import read_csv
from hadaptive.models import NetSpec
from hadaptive.pictures import save_png
from hadaptive.search.config import SearchConfig
from hadaptive.search.folder import SearchFolder
from hadaptive.search.front import Judged, front_of
from hadaptive.search.labels import label
from hadaptive.text import drawn

KINDS = {
    "ach": ("ACH", "tab:orange"),
    "ghost": ("Ghost", "tab:blue"),
    "inverted": ("inverted bottleneck", "tab:green"),
    "products": ("products", "tab:red"),
    "poly": ("product of depthwise", "tab:purple"),
    "conv": ("convolution", "tab:gray"),
}


def plot_confidence(run: SearchFolder) -> None:
    """Draw softmax(alpha) of the last epoch."""
    rows = read_csv(run.confidence)
    if rows:
        last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
        draw_confidence(last, run.heat_map, f"confidence after epoch {int(rows[-1]['epoch']) + 1}")


def draw_confidence(last: list[dict[str, str]], path: Path, title: str) -> None:
    """Draw the confidence in `last`: a row per candidate, a column per position; the mean where rows repeat."""
    names = list(dict.fromkeys(row["candidate"] for row in last))
    positions = sorted({int(row["position"]) for row in last})
    cells: dict[tuple[str, int], list[float]] = {}
    for row in last:
        cells.setdefault((row["candidate"], int(row["position"])), []).append(float(row["confidence"]))
    empty = [float("nan")]
    grid = [[statistics.fmean(cells.get((name, place), empty)) for place in positions] for name in names]
    figure = Figure(figsize=(1.5 + 0.55 * len(positions), 1.5 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, aspect="auto", vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(positions)), [str(p) for p in positions])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set(title=title, xlabel="position")
    figure.colorbar(image, ax=axes, label="softmax(alpha)")
    save_png(figure, path)


def plot_search(run: SearchFolder) -> None:
    """Draw losses, temperature, entropy, expected latency, and the most confident candidates over the epochs."""
    rows, confidence = read_csv(run.metrics), read_csv(run.confidence)
    if not rows:
        return
    epochs = [int(row["epoch"]) + 1 for row in rows]
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    for key, name in (("weight_loss", "weights' part"), ("alpha_loss", "architecture's part")):
        points = [(e, float(row[key])) for e, row in zip(epochs, rows, strict=True) if row[key]]
        axes[0, 0].plot([e for e, _ in points], [y for _, y in points], label=name)
    axes[0, 0].legend()
    for panel, key, title in (
        (axes[0, 1], "tau", "temperature tau"),
        (axes[0, 2], "entropy", "relative entropy"),
        (axes[1, 0], "expected_ms", "expected latency, ms"),
        (axes[1, 1], "val_accuracy", "validation accuracy of the most confident path"),
    ):
        points = [(e, float(row[key])) for e, row in zip(epochs, rows, strict=True) if row[key]]
        panel.plot([e for e, _ in points], [y for _, y in points])
        panel.set_title(title)
    axes[0, 0].set_title("cross-entropy, nats")
    for position in sorted({int(row["position"]) for row in confidence}):
        own = [row for row in confidence if int(row["position"]) == position]
        largest: dict[int, float] = {}
        for row in own:
            epoch = int(row["epoch"]) + 1
            largest[epoch] = max(largest.get(epoch, 0.0), float(row["confidence"]))
        axes[1, 2].plot(list(largest), list(largest.values()), label=str(position))
    axes[1, 2].set_title("largest confidence per position")
    axes[1, 2].legend(fontsize="xx-small", ncols=3)
    for panel in axes.flat:
        panel.set_xlabel("epoch")
        panel.grid(alpha=0.3)
    save_png(figure, run.curves)


def plot_weights(run: SearchFolder) -> None:
    """Draw the loss of the shared weights, and the accuracy of one network with them, over the epochs."""
    rows = read_csv(run.metrics)
    if not rows:
        return
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    for panel, key, title in zip(
        figure.subplots(1, 2),
        ("weight_loss", "val_accuracy"),
        ("cross-entropy of the networks in turn, nats", "validation accuracy of one network drawn at random"),
        strict=True,
    ):
        panel.plot([int(row["epoch"]) + 1 for row in rows], [float(row[key]) for row in rows])
        panel.set(title=title, xlabel="epoch")
        panel.grid(alpha=0.3)
    save_png(figure, run.curves)


def _of_size(what: str, size: int, latency_size: int | None) -> str:
    """What an axis shows, with the size of the images where the axes are not of the same."""
    return what if latency_size in (None, size) else f"{what}\n{size}x{size} images"


def plot_front(judged: list[Judged], within: list[Judged], config: SearchConfig, path: Path) -> None:
    """Draw accuracy on the supernet over cost: networks by their generation, and the front of those `within`."""
    size, latency_size = config.preprocessing.image_size, config.latency.latency_size
    unit, name = 1e-6, "million multiply-accumulates"
    if judged[0].latency_ms is not None:
        unit, name = 1, _of_size("predicted ms", latency_size or size, size)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    points = axes.scatter(
        [unit * one.cost for one in judged],
        [100 * one.accuracy for one in judged],
        c=[one.generation for one in judged],
        s=12,
        cmap="viridis",
    )
    figure.colorbar(points, ax=axes, label="generation")
    front = front_of(within)
    x, y = [unit * one.cost for one in front], [100 * one.accuracy for one in front]
    axes.plot(x, y, color="tab:red", label="front")
    axes.set(xlabel=name, ylabel=_of_size("validation accuracy, shared weights, %", size, latency_size))
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, path)


def draw_network(spec: NetSpec, path: Path) -> None:
    """Draw a network as a strip of blocks: height is width in channels, colour the kind, a gap a halved map."""
    layers = [("conv", conv.channels, conv.stride, label(conv)) for conv in spec.convs]
    layers += [(b.kind, b.channels, b.stride, label(b)) for stage in spec.stages for b in stage]
    figure = Figure(figsize=(2 + 0.55 * len(layers), 3), layout="constrained")
    axes = figure.subplots()
    x = 0.0
    for kind, channels, stride, text in layers:
        x += 0.45 if stride > 1 else 0.0
        axes.bar(x, channels, width=0.85, color=KINDS[kind][1])
        axes.text(x, channels, f"{channels}", ha="center", va="bottom", fontsize=7)
        axes.text(x, -4, text, ha="right", va="top", rotation=45, fontsize=7)
        x += 1.0
    for name, colour in KINDS.values():
        axes.bar(0, 0, color=colour, label=name)
    axes.set(ylabel="channels out", title=drawn(spec.name))
    axes.set_xticks([])
    axes.legend(fontsize=7, loc="upper left")
    save_png(figure, path)


def plot_comparison(rows: list[dict[str, str]], target: float | None, config: SearchConfig, path: Path) -> None:
    """Draw accuracy over measured latency: a point per network, the range over its seeds, a colour per group."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for number, group in enumerate(dict.fromkeys(row["group"] for row in rows)):
        own = [row for row in rows if row["group"] == group]
        points: dict[str, list[tuple[float, float]]] = {}
        for row in own:
            points.setdefault(row["network"], []).append((float(row["measured_ms"]), 100 * float(row["accuracy"])))
        x = [values[0][0] for values in points.values()]
        y = [statistics.fmean(a for _, a in values) for values in points.values()]
        low = [max(0.0, mean - min(a for _, a in values)) for mean, values in zip(y, points.values(), strict=True)]
        high = [
            max(0.0, max(a for _, a in values) - mean) for mean, values in zip(y, points.values(), strict=True)
        ]
        axes.errorbar(x, y, yerr=(low, high), fmt="osd^v"[number % 5], capsize=2, label=group)
    if target is not None:
        axes.axvline(target, color="gray", linestyle="--", linewidth=1, label="target")
    accuracy = f"{rows[0]['part']} accuracy, %"
    accuracy = _of_size(accuracy, config.preprocessing.image_size, config.latency.latency_size)
    axes.set(xlabel=f"{rows[0]['latency']} latency, ms", ylabel=accuracy)
    axes.set(title=drawn(f"{rows[0]['data']}, recipe {rows[0]['recipe']}"))
    axes.grid(alpha=0.3)
    axes.legend()
    save_png(figure, path)
