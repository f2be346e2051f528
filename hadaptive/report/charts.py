"""Charts as SVG within a page, in the page's light or dark."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import MaxNLocator

from hadaptive.report.page import Figure, data_uri
from hadaptive.text import drawn, shown

INK = "#123456"  # stands for the colour of text, which is the page's
STYLE = (
    "<style>svg{color:#1c1e21}@media(prefers-color-scheme:dark){svg{color:#e6e8ea}}</style>"
    # An SVG within an img has the reader's scheme, not the page's rules.
)
Points = tuple[Sequence[float], Sequence[float]]


def _svg(canvas: Canvas) -> str:
    content = io.StringIO()
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "hadaptive"}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        canvas.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    text = content.getvalue().replace(INK, "currentColor")
    return re.sub(r"<defs>", lambda found: STYLE + found[0], text, count=1)


def _chart(title: str, xlabel: str, ylabel: str) -> tuple[Canvas, Axes]:
    canvas = Canvas(figsize=(4.4, 3.0), layout="constrained")
    axes = canvas.subplots()
    axes.set_title(drawn(title), color=INK, fontsize=11)
    axes.set_xlabel(drawn(xlabel), color=INK)
    axes.set_ylabel(drawn(ylabel), color=INK)
    axes.tick_params(colors=INK)
    for spine in axes.spines.values():
        spine.set_color(INK)
    axes.grid(alpha=0.25, color=INK)
    return canvas, axes


def _finished(canvas: Canvas, axes: Axes, alt: str, legend: bool) -> Figure:
    if legend:
        small = len(axes.get_legend_handles_labels()[0]) > 4
        axes.legend(fontsize=7 if small else 9, labelcolor=INK, framealpha=0.0)
    return Figure(data_uri(_svg(canvas).encode(), "svg+xml"), shown(alt))


def lines(title: str, xlabel: str, ylabel: str, series: Mapping[str, Points]) -> Figure:
    """A line for each series, by its name; a line of one point is a dot."""
    canvas, axes = _chart(title, xlabel, ylabel)
    ends = []
    for name, (x, y) in series.items():
        axes.plot(x, y, label=drawn(name), linewidth=1.5, marker="o" if len(x) == 1 else None)
        ends.append(f"{name} from {y[0]:.3g} to {y[-1]:.3g}")
    if len(next(iter(series.values()))[0]) < 6:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    few = ends if len(ends) <= 3 else [f"{len(ends)} lines"]
    return _finished(canvas, axes, f"{title} over {xlabel}: {'; '.join(few)}", len(series) > 1)


def scatter(
    title: str,
    xlabel: str,
    ylabel: str,
    points: Mapping[str, Points],
    *,
    joined: Mapping[str, Points] | None = None,
    agree: bool = False,
) -> Figure:
    """Points of several kinds, by the kind's name.

    Args:
        title, xlabel, ylabel: of the chart and its axes.
        points: apart.
        joined: besides, by a line.
        agree: draw the line on which both axes agree.
    """
    canvas, axes = _chart(title, xlabel, ylabel)
    for name, (x, y) in points.items():
        axes.scatter(x, y, s=9, label=drawn(name))
    for name, (x, y) in (joined or {}).items():
        axes.plot(x, y, label=drawn(name), color="tab:red", marker="o", markersize=3)
    if agree:
        both = [value for x, y in points.values() for value in (*x, *y)]
        axes.plot(
            [min(both), max(both)], [min(both), max(both)], color=INK, linewidth=1, linestyle="--", label="equal"
        )
    number = sum(len(x) for x, _ in points.values())
    return _finished(canvas, axes, f"{title}: {ylabel} over {xlabel}, {number} points", True)


def reliability(confidences: Sequence[float], right: Sequence[bool], title: str) -> Figure:
    """How often predictions are right over how sure they are, in ten bins."""
    canvas, axes = _chart(title, "probability of the prediction", "share that is right")
    bins: list[list[bool]] = [[] for _ in range(10)]
    for confidence, one in zip(confidences, right, strict=True):
        bins[min(9, int(10 * confidence))].append(one)
    shares = [sum(own) / max(1, len(own)) for own in bins]
    axes.bar([0.1 * n + 0.05 for n in range(10)], shares, width=0.09)
    axes.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1)
    for number, own in enumerate(bins):
        if own:
            axes.text(0.1 * number + 0.05, 0.01, f"{len(own):,}", ha="center", fontsize=7, color=INK)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    said = ", ".join(
        f"{share:.0%} right at {10 * n}-{10 * n + 10}%"
        for n, (share, own) in enumerate(zip(shares, bins, strict=True))
        if own
    )
    return _finished(canvas, axes, f"{title}: {said}", False)


def heat(title: str, label: str, values: Sequence[Sequence[float]]) -> Figure:
    """A square of numbers over two channels; NaN is left empty."""
    canvas, axes = _chart(title, "channel", "channel")
    axes.grid(visible=False)
    image = axes.imshow(values, cmap="viridis", interpolation="nearest", origin="upper")
    bar = canvas.colorbar(image, ax=axes)
    bar.set_label(label, color=INK)
    bar.ax.tick_params(colors=INK)
    return _finished(canvas, axes, f"{title}: {label} for every two channels", False)
