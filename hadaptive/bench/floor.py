"""What pixels alone tell: the two simplest classifiers on the images that networks of a recipe are trained on."""

import math
import time
from typing import Any

import numpy as np
from PIL import Image

from hadaptive.data import open_data
from hadaptive.data.sources import Source
from hadaptive.errors import UserError
from hadaptive.provenance import provenance
from hadaptive.train import TrainConfig

FLOORS = ("logistic regression", "nearest neighbour")
SIDE = 32  # larger images are made so small


def pixels(source: Source) -> tuple[np.ndarray, np.ndarray]:
    """Grey levels float32 (N, pixels), of mean 0 and scale 1 over all of them, and targets (N,)."""
    rows, targets = [], []
    for number in range(len(source)):
        image, target = source.read(number)
        image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
        image = image.convert("L")
        if max(image.size) > SIDE:
            image = image.resize((SIDE, SIDE))
        rows.append(np.asarray(image, np.float32).ravel())
        targets.append(target)
    return np.stack(rows) / 255, np.array(targets)


def floor(config: TrainConfig) -> dict[str, dict[str, Any]]:
    """By the name of each of FLOORS, what a training's summary says: fitted to the training images and tested.

    The logistic regression's penalty is the one of five with the best validation accuracy.

    Raises:
        UserError: the data have no test part, or images of different sizes.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    data = open_data(config.data)
    if data.test is None:
        raise UserError(f"{config.data.data} has no test part to compare on")
    try:
        (x, y), (xv, yv), (xt, yt) = map(pixels, (data.train, data.validation, data.test))
    except ValueError:
        raise UserError(f"the images of {config.data.data} have several sizes: pixels have no floor") from None
    mean, scale = x.mean(), x.std()
    x, xv, xt = ((part - mean) / scale for part in (x, xv, xt))

    def linear() -> Any:
        fits = [LogisticRegression(C=c, max_iter=300).fit(x, y) for c in (0.0003, 0.001, 0.003, 0.01, 0.1)]
        return max(fits, key=lambda fit: fit.score(xv, yv))

    found = {}
    for name, fit in zip(FLOORS, (linear, lambda: KNeighborsClassifier(1).fit(x, y)), strict=True):
        begun = time.perf_counter()
        model = fit()
        seconds = time.perf_counter() - begun
        size = model.coef_.size + model.intercept_.size if name == FLOORS[0] else 0
        found[name] = {
            "seed": 0,
            "recipe": config.recipe,
            "data": config.data.data,
            "parameters": size,
            "train_images": len(x),
            "epochs": 0,
            "weights": "last",
            "test": {"images": len(xt), "accuracy": model.score(xt, yt), "loss": math.nan},
            "validation_accuracy": model.score(xv, yv),
            "train_seconds": round(seconds, 1),
            **provenance(),
        }
    return found
