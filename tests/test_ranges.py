"""Every number among the settings has a range, and what lies outside is one sentence that names the setting."""

import typing
from typing import Any

import pytest

from hadaptive.errors import UserError
from hadaptive.search.config import StudyConfig
from hadaptive.settings import names
from hadaptive.train.config import TrainConfig

NUMBERS = ("nan", "inf", "-inf")
ABOVE = {  # the highest of each setting, and one that is too high; the others have no end but infinity
    **dict.fromkeys(("drop_rate", "drop_path_rate", "weights_first"), (0.99, 1.0)),
    **dict.fromkeys(("val_fraction", "test_fraction", "alpha_fraction"), (0.99, 1.0)),
    **dict.fromkeys(
        ("crop_pct", "scale", "hflip", "vflip", "erase", "warmup", "label_smoothing", "ema"), (1.0, 1.5)
    ),
    "in_chans": (3, 4),
    **dict.fromkeys(("seed", "data_seed"), (2**63 - 1, 2**63)),
}
LOWEST: dict[str, float] = {  # the lowest whole number of each setting, where it is not 0
    **dict.fromkeys(("train_size", "num_classes", "train_samples", "image_size", "in_chans", "epochs"), 1),
    **dict.fromkeys(("batch_size", "accumulate", "seeds", "retrain_seeds", "jobs", "latency_size"), 1),
    "workers": -1,
    "max_pixels": 1,
    "paths": 2,
    **dict.fromkeys(("population", "generations"), 4),
}


def numbers(kind: type) -> dict[str, type]:
    """The settings of a configuration that are one number."""
    found: dict[str, type] = {}
    for name, path in names(kind).items():
        owner: Any = kind
        for part in path:
            owner = typing.get_type_hints(owner)[part]
        hint = typing.get_type_hints(owner)[name]
        kinds = {hint, *typing.get_args(hint)} & {int, float}
        if kinds and typing.get_origin(hint) is not tuple:
            found[name] = kinds.pop()
    return found


CASES = [(kind, name, of) for kind in (TrainConfig, StudyConfig) for name, of in numbers(kind).items()]


def refused(kind: Any, name: str, value: float) -> None:
    with pytest.raises(UserError, match=name) as caught:
        kind().changed(**{name: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name", "of"), CASES, ids=[f"{k.__name__}-{n}" for k, n, _ in CASES])
def test_a_number_has_a_range(kind: Any, name: str, of: type) -> None:
    if of is float:
        for text in NUMBERS:
            refused(kind, name, float(text))
        refused(kind, name, -0.1)
    else:
        lowest = int(LOWEST.get(name, 0))
        kind().changed(**{name: lowest})
        refused(kind, name, lowest - 1)
    if name in ABOVE:
        highest, beyond = ABOVE[name]
        kind().changed(**{name: highest})
        refused(kind, name, beyond)


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize("text", NUMBERS)
def test_statistics_of_pixels_are_finite(name: str, text: str) -> None:
    refused(TrainConfig, name, (float(text), 0.5, 0.5))  # pyright: ignore[reportArgumentType]
