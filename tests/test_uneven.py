"""Classes of few images: drawn as often as the others, or counted as much, they are found more often."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from hadaptive.evaluate import evaluate_run
from hadaptive.train import train

CLASSES = {"common": 160, "rare": 16, "rarest one": 8}


def light(folder: Path) -> Path:
    """Pictures of noise, of which each class lights a corner of its own a little; the test part is even."""
    random = np.random.default_rng(0)
    for part, counts in (("train", CLASSES), ("test", dict.fromkeys(CLASSES, 40))):
        for corner, (name, count) in zip(((0, 0), (0, 4), (4, 0)), counts.items(), strict=True):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 180, (8, 8))
                pixels[corner[0] : corner[0] + 4, corner[1] : corner[1] + 4] += 60
                Image.fromarray(pixels.astype(np.uint8)).save(folder / part / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def macro(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Mean recall over the classes of an even test part, by the way to make up for an uneven one."""
    folder = tmp_path_factory.mktemp("uneven")
    images, found = light(folder / "images"), {}
    for way in ("", "balanced", "class_weights"):
        config = tiny_config(folder, f"run-{way}", data=str(images), train_size=None, epochs=4, batch_size=16)
        train(config.changed(select="last", shift=0, lr=5e-3, **({way: True} if way else {})), quiet=True)
        evaluation, classes, _ = evaluate_run(folder / f"run-{way}", cpu=True)
        found[way] = float(np.mean([row["recall"] for row in evaluation.per_class(classes)]))
    return found


@pytest.mark.parametrize("way", ["balanced", "class_weights"])
def test_macro_recall_improves(way: str, macro: dict[str, float]) -> None:
    assert macro[way] > macro[""] + 0.1
