from hadaptive.train.config import RECIPES, Recipe, TrainConfig
from hadaptive.train.finite import NonFiniteLossError
from hadaptive.train.loop import Trainer, TrainingInterruptedError, resume, train, train_or_resume

__all__ = [
    "RECIPES",
    "NonFiniteLossError",
    "Recipe",
    "TrainConfig",
    "Trainer",
    "TrainingInterruptedError",
    "resume",
    "train",
    "train_or_resume",
]
