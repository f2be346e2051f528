from hadaptive.engine.finite import NonFiniteLossError
from hadaptive.engine.recipes import RECIPES, Recipe
from hadaptive.errors import TrainingInterruptedError
from hadaptive.train.config import NetworkConfig, TrainConfig
from hadaptive.train.launch import read_config, resume, train, train_or_resume
from hadaptive.train.trainer import Trainer

__all__ = [
    "RECIPES",
    "NetworkConfig",
    "NonFiniteLossError",
    "Recipe",
    "TrainConfig",
    "Trainer",
    "TrainingInterruptedError",
    "read_config",
    "resume",
    "train",
    "train_or_resume",
]
