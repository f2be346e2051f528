"""Contact sheets: every image in its place, captions that fit and stay apart, an end to their number."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from hadaptive import pictures
from hadaptive.pictures import GAP, MOST_TILES, TILE, contact_sheet, tile_of

Tiles = list[tuple[Image.Image, str, bool | None]]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The texts that a sheet draws, and their colours."""
    found: list[tuple[str, Any]] = []
    real = ImageDraw.ImageDraw.text

    def text(self: Any, place: Any, text: str, colour: Any, font: Any, **how: Any) -> None:
        found.append((text, colour))
        real(self, place, text, colour, font, **how)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    return found


def pixels(path: Path) -> np.ndarray:
    """The sheet, whole."""
    with Image.open(path) as sheet:
        assert sheet.format == "PNG"
        return np.asarray(sheet.convert("RGB"))


def test_images_stand_in_order_under_their_captions(tmp_path: Path, written: list[tuple[str, Any]]) -> None:
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    tiles: Tiles = [
        (Image.new("RGB", (4, 4), colour), name, right)
        for colour, name, right in zip(colours, ("cat", "dog", "猫"), (True, False, None), strict=True)
    ]
    contact_sheet(tiles, tmp_path / "sheet.png", "three", columns=2)
    sheet = pixels(tmp_path / "sheet.png")
    assert sheet.shape[1] == 2 * TILE + 3 * GAP
    firsts = [tuple(np.argwhere((sheet == colour).all(2))[0]) for colour in colours]
    assert firsts[0][0] == firsts[1][0] < firsts[2][0]
    assert firsts[0][1] == firsts[2][1] < firsts[1][1]
    assert [int((sheet == colour).all(2).sum()) for colour in colours] == [TILE * TILE] * 3
    assert written == [("three", "black"), ("cat", "green"), ("dog", "red"), ("\\u732b", "black")]


def test_a_sheet_of_thousands_ends_and_says_so(tmp_path: Path, written: list[tuple[str, Any]]) -> None:
    contact_sheet([(Image.new("L", (2, 2)), "x", None)] * 3000, tmp_path / "sheet.png", "many")
    assert written[0][0] == f"many (the first {MOST_TILES} of 3,000)"
    assert len(written) == 1 + MOST_TILES
    assert pixels(tmp_path / "sheet.png").shape[0] < 6000


def test_long_captions_keep_both_ends_and_their_place(tmp_path: Path, written: list[tuple[str, Any]]) -> None:
    names = ["a class with a very long name indeed, longer than its tile (97%)", "two\nlines", "é ß Ж ñ (5%)"]
    contact_sheet([(Image.new("L", (9, 3)), name, None) for name in names], tmp_path / "sheet.png", "of $x$")
    (_, long, lines, accents) = (text for text, _ in written)
    assert long.startswith("a class")
    assert long.endswith("(97%)")
    assert "…" in long
    assert all(pictures._font(13).getlength(text) <= TILE for text in (long, lines, accents))
    assert lines == "two\\nlines"
    assert accents == "é ß Ж ñ (5%)"


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (1000, 400), (3, 5000)], ids=str)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_tiles_keep_their_shape(size: tuple[int, int], mode: str) -> None:
    tile = tile_of(Image.new(mode, size))
    assert max(tile.size) == TILE
    assert tile.width == max(1, round(size[0] * TILE / max(size)))


def test_small_images_show_their_pixels() -> None:
    image = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    assert set(np.unique(np.asarray(tile_of(image)))) == {0, 255}
