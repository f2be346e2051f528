"""Figures that are made and left blank: to render one takes longer than to train the tiny network."""

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

RENDER = Figure.savefig


def blank(figure: Figure, path: Path, *, dpi: int, format: str) -> None:
    """An empty picture of the figure's size."""
    width, height = (round(side * dpi) for side in figure.get_size_inches())
    Image.new("1", (width, height)).save(path, format)


def leave_blank() -> None:
    """Every figure of this process from now on."""
    Figure.savefig = blank
