"""The images that a network is surest of and wrong about, from the prediction of each image."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from hadaptive.data import Preprocessing, Source, to_eight_bit
from hadaptive.pictures import contact_sheet, tile_of

SHEET = 64  # mistakes; more are no sheet to look over


@dataclass(frozen=True)
class Judgement:
    """What a network takes one image for.

    Attributes:
        image: its name in the data.
        true, predicted: classes; of an image of several, all of them.
        probability: of the predicted class, in [0, 1]; of several, of what is said of `wrong`.
        wrong: of several classes, the one that is most surely said or left out wrongly; else the predicted one.
    """

    image: str
    true: str
    predicted: str
    probability: float
    wrong: str

    @property
    def right(self) -> bool:
        return self.true == self.predicted

    @classmethod
    def of(cls, row: dict[str, Any]) -> "Judgement":
        """From a row of an evaluation's predictions.

        Raises:
            KeyError, ValueError: it is none.
        """
        if "classes" not in row:
            predicted = row["prediction"]
            return cls(row["image"], row["class"], predicted, float(row["probability"]), predicted)
        true, predicted, chances = (json.loads(row[name]) for name in ("classes", "predictions", "probabilities"))
        sure = {name: chances[name] if name in predicted else 1 - chances[name] for name in chances}
        wrong = set(true) ^ set(predicted)
        name = max(wrong, key=sure.__getitem__) if wrong else min(sure, key=sure.__getitem__)
        return cls(row["image"], ", ".join(true) or "none", ", ".join(predicted) or "none", sure[name], name)


def mistakes(judged: Iterable[Judgement]) -> list[Judgement]:
    """Those that are wrong, the surest first."""
    return sorted((one for one in judged if not one.right), key=lambda one: -one.probability)


def images_of(
    judged: Iterable[Judgement], source: Source, preprocessing: Preprocessing, most: int
) -> Iterator[tuple[Judgement, Image.Image]]:
    """The first judgements whose images can be read, with these as 8-bit colours.

    Args:
        judged: in the order wanted.
        source: that has the images, by their names.
        preprocessing: of the network, for what it says of white.
        most: how many.
    """
    numbers = {source.name(number): number for number in range(len(source))}
    found = 0
    for one in judged:
        if found == most:
            return
        if one.image in numbers:
            try:
                image = to_eight_bit(source.read(numbers[one.image])[0], 3, preprocessing.white)
            except OSError:
                continue
            found += 1
            yield one, image


def draw_mistakes(
    judged: Iterable[Judgement], source: Source, preprocessing: Preprocessing, path: Path, title: str
) -> str:
    """Draw the surest mistakes into a PNG, each with what it was taken for, how surely, and what it is.

    Returns:
        A line about it; where there are no mistakes there is no picture.
    """
    wrong = mistakes(judged)
    tiles: list[tuple[Image.Image, str, bool | None]] = [
        (tile_of(image), f"{one.predicted} ({one.probability:.0%}), is {one.true}", False)
        for one, image in images_of(wrong, source, preprocessing, SHEET)
    ]
    if not tiles:
        return f"{path} is not written: there are no mistakes to show"
    contact_sheet(tiles, path, title)
    return f"{path}: the {len(tiles)} surest of {len(wrong):,} mistakes"
