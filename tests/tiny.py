"""A network small enough to train in a test, and settings to go with it."""

from pathlib import Path
from typing import Any

import pytest

from hadaptive.engine.accelerator import create_accelerator
from hadaptive.engine.stopping import StopRequest
from hadaptive.errors import TrainingInterruptedError
from hadaptive.models import ConvSpec, NetSpec
from hadaptive.models.layer_spec import ach, ghost
from hadaptive.search import SearchConfig, SearchSpace, Skip
from hadaptive.search.launch import configured_data, new_searcher
from hadaptive.search.searcher import Searcher
from hadaptive.train import TrainConfig, Trainer, train
from hadaptive.train.launch import new_trainer

TINY = NetSpec(
    name="tiny",
    stem=ConvSpec(8, 3, 1, act=False),
    stage1=(ConvSpec(8, 2, 2),),
    stages=((ghost(2, 3, 12), ach(4, 3, 12)), (ghost(2, 2, 16, stride=2), ach(5, 3, 16, norm="batchnorm"))),
    last_channels=24,
    head_channels=16,
)

# Some positions may be empty, so that 0.8 times the latency of one choice lies well within that of others.
WIDE_SPACE = SearchSpace(
    "wide",
    (ConvSpec(8, 2, 2), ConvSpec(8, 3, 2)),
    (),
    (((ghost(2, 3, 8), ach(4, 3, 8)), *[(ghost(2, 3, 8), ach(5, 3, 8), Skip())] * 4),),
    8,
    8,
)
WIDE_CHOICE = (0, 0, 0, 0, 0, 2)


def tiny_spec(folder: Path) -> str:
    """The tiny network's spec file in `folder`."""
    path = folder / "tiny.json"
    TINY.save(path)
    return str(path)


def tiny_config(folder: Path, name: str = "run", **changes: Any) -> TrainConfig:
    """A run of seconds: the tiny network on 200 digits at 8x8."""
    settings: dict[str, Any] = {
        "model": tiny_spec(folder),
        "output": folder / name,
        "epochs": 2,
        "batch_size": 32,
        "image_size": 8,
        "train_size": 200,
        "shift": 1,
        "cpu": True,
    }
    return TrainConfig.from_recipe("quick", **{**settings, **changes})


def trainer_of(config: TrainConfig) -> Trainer:
    """A training that has not begun."""
    return new_trainer(config, create_accelerator(config.execution), quiet=True)[0]


def searcher_of(config: SearchConfig, space: SearchSpace) -> Searcher:
    """A search that has not begun."""
    data, config = configured_data(config)
    return new_searcher(config, space, create_accelerator(config.execution), data, quiet=True)


def stopped_after(calls: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a signal comes, when so many steps and ends of epochs have passed."""
    left = iter([False] * calls)
    with monkeypatch.context() as patched:
        patched.setattr(StopRequest, "agreed", lambda self: next(left, True))
        with pytest.raises(TrainingInterruptedError):
            train(config, quiet=True)
