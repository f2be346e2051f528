"""Pictures of results: confusion matrices and contact sheets."""

import warnings
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from hadaptive.files import write_atomically
from hadaptive.text import drawn


def save_png(figure: Figure, path: Path) -> None:
    """Draw a figure into a PNG, which is written whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in all the world's scripts, one font
        write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))


def plot_confusion(matrix: Tensor, classes: list[str], path: Path, title: str) -> None:
    """Draw a (classes, classes) confusion matrix, rows true and columns predicted, as shares of each row."""
    n = len(classes)
    shares = (matrix.double() / matrix.sum(1, keepdim=True).clamp(min=1)).numpy()
    side = min(14.0, 3.0 + 0.45 * n)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, vmax=100)
    axes.set(title=drawn(title), xlabel="predicted", ylabel="true")
    if n <= 30:
        names = [drawn(name) for name in classes]
        axes.set_xticks(range(n), names, rotation=90)
        axes.set_yticks(range(n), names)
        for i in range(n):
            for j in range(n):
                if matrix[i, j]:
                    colour = "white" if shares[i, j] > 0.5 else "black"
                    axes.text(j, i, str(int(matrix[i, j])), ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, label="% of the true class")
    save_png(figure, path)


def contact_sheet(
    tiles: list[tuple[Image.Image, str, bool | None]], path: Path, title: str, columns: int = 8
) -> None:
    """Draw images with captions; a caption is green if right, red if wrong, black if nobody knows."""
    rows = -(-len(tiles) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.8 * rows + 0.5), layout="constrained")
    figure.suptitle(drawn(title))
    for panel in figure.subplots(rows, columns, squeeze=False).flat:
        panel.axis("off")
    colours = {True: "green", False: "red", None: "black"}
    for panel, (image, caption, right) in zip(figure.axes, tiles, strict=False):
        panel.imshow(image, cmap="gray" if image.mode == "L" else None)
        panel.set_title(drawn(caption), fontsize=8, color=colours[right])
    save_png(figure, path)
