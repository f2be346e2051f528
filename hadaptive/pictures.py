"""Pictures of results: confusion matrices and contact sheets."""

import functools
import warnings
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling
from torch import Tensor

from hadaptive.files import write_atomically
from hadaptive.text import drawn, shown

TILE, GAP = 155, 10  # pixels
MOST_TILES = 200  # more are no sheet to look over


def save_png(figure: Figure, path: Path) -> None:
    """Draw a figure into a PNG, which is written whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    for line in (line for axes in figure.axes for line in axes.lines if np.size(line.get_xdata()) == 1):
        line.set_marker("o")  # a line of one point, as after one epoch, is nothing to see
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # names in all the world's scripts, one font
        write_atomically(path, lambda p: figure.savefig(p, dpi=110, format="png"))


def plot_reliability(
    confidences: Tensor, right: Tensor, path: Path, title: str, *, of_classes: bool = False
) -> None:
    """Draw how often predictions are right over how sure they are, in ten bins, and how many there are in each.

    Args:
        confidences: float (N,), in [0, 1].
        right: bool (N,).
        of_classes: they are probabilities of classes, and whether the images have them.
    """
    share = "share that has the class" if of_classes else "share that is right"
    what = "probability of a class" if of_classes else "probability of the prediction"
    bins = (10 * confidences).long().clamp(0, 9).numpy()
    counts = np.bincount(bins, minlength=10)
    sums = np.bincount(bins, weights=right.double().numpy(), minlength=10)
    centres = [0.1 * number + 0.05 for number in range(10)]
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.bar(centres, sums / counts.clip(min=1), width=0.09, label=share)
    axes.plot([0, 1], [0, 1], color="gray", linestyle="--", linewidth=1, label="as sure as right")
    for centre, count in zip(centres, counts.tolist(), strict=True):
        axes.text(centre, 0.01, f"{count:,}", ha="center", fontsize=6)
    axes.set(xlabel=what, ylabel="share", xlim=(0, 1), ylim=(0, 1), title=drawn(title))
    axes.legend(loc="upper left", fontsize=8)
    save_png(figure, path)


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


def tile_of(image: Image.Image) -> Image.Image:
    """An 8-bit image as it stands in a contact sheet: small ones with their pixels seen, large ones reduced."""
    scale = TILE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Resampling.NEAREST if scale > 1 else Resampling.LANCZOS)


def contact_sheet(
    tiles: list[tuple[Image.Image, str, bool | None]], path: Path, title: str, columns: int = 8
) -> None:
    """Draw images with captions; a caption is green if right, red if wrong, black if nobody knows.

    No more than the first MOST_TILES are drawn, which the title says then.

    Args:
        tiles: 8-bit images, or what :func:`tile_of` made of them; their captions; whether these are right.
        path: PNG to write.
        title: above them.
        columns: of images, fewer where there are fewer.

    Raises:
        UserError: it cannot be written.
    """
    if len(tiles) > MOST_TILES:
        title = f"{title} (the first {MOST_TILES} of {len(tiles):,})"
    tiles = tiles[:MOST_TILES]
    rows, columns = -(-len(tiles) // columns), min(columns, len(tiles))
    heading, small = _font(18), _font(13)
    step, line, top = TILE + GAP, 22, 40
    width = max(columns * step + GAP, round(heading.getlength(_visible(title))) + 2 * GAP)
    sheet = Image.new("RGB", (width, top + rows * (step + line)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((width / 2, top / 2), _visible(title), "black", heading, anchor="mm")
    colours = {True: "green", False: "red", None: "black"}
    for number, (image, caption, right) in enumerate(tiles):
        row, column = divmod(number, columns)
        left, upper = GAP + column * step, top + row * (step + line)
        place = (left + TILE / 2, upper + line / 2)
        draw.text(place, _fitting(caption, small), colours[right], small, anchor="mm")
        tile = tile_of(image)
        sheet.paste(tile, (left + (TILE - tile.width) // 2, upper + line + (TILE - tile.height) // 2))
    write_atomically(path, lambda p: sheet.save(p, "PNG"))


def _font_file() -> str:
    return f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"  # which comes with Matplotlib


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_font_file(), size)


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters that the font has."""
    return frozenset(FT2Font(_font_file()).get_charmap())


def _visible(text: str) -> str:
    """One line in which a character that the font does not have is an escape, so that names stay apart."""
    return "".join(c if ord(c) in _glyphs() else c.encode("unicode_escape").decode("ascii") for c in shown(text))


def _fitting(caption: str, font: ImageFont.FreeTypeFont) -> str:
    """As much of a caption's middle left out as its tile's width asks for: its end is the probability."""
    text = _visible(caption)
    kept = len(text)
    while font.getlength(text) > TILE and kept > 2:
        kept -= 1
        whole = _visible(caption)
        text = f"{whole[: kept - kept // 2]}…{whole[len(whole) - kept // 2 :]}"
    return text
