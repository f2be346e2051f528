"""Figures that are made and left blank: to render one takes longer than to train the tiny network."""

from typing import Any

from matplotlib.figure import Figure
from PIL import Image

RENDER = Figure.savefig


def blank(figure: Figure, path: Any, *, format: str, **how: Any) -> None:
    """An empty picture of the figure's size, but for charts within a page, which are text."""
    if format == "svg":
        RENDER(figure, path, format=format, **how)
        return
    width, height = (round(side * how["dpi"]) for side in figure.get_size_inches())
    Image.new("1", (width, height)).save(path, format)


def leave_blank() -> None:
    """Every figure of this process from now on."""
    Figure.savefig = blank
