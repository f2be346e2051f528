"""Recipes: settings that belong together, by name."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Named settings and what they are for."""

    about: str
    settings: dict[str, Any]


# The trial of operators: augmentation, dropout and EMA are the same for all, the rate is chosen for each.
_TRIAL = {"label_smoothing": 0.1, "drop_rate": 0.2, "select": "last"}
_FASHION = {
    **_TRIAL,
    "data": "fashion-mnist",
    "image_size": 64,
    "pad": 2,
    "shift": 2,
    "hflip": 0.5,
    "val_fraction": 1 / 60,
}

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bicubic"}

RECIPES: dict[str, Recipe] = {
    "quick": Recipe(
        "small images in minutes on a CPU: the digits, or a folder of small pictures",
        {"shift": 1},
    ),
    "fmnist-small": Recipe(
        "12,000 images of Fashion-MNIST, 5 epochs: the small comparison under one recipe",
        {
            "data": "fashion-mnist",
            "train_size": 12_000,
            "epochs": 5,
            "image_size": 64,
            "pad": 2,
            "shift": 2,
            "hflip": 0.5,
            "select": "last",
            "val_fraction": 1 / 60,
        },
    ),
    "fmnist": Recipe(
        "all of Fashion-MNIST on a CPU in less than an hour",
        {
            "data": "fashion-mnist",
            "epochs": 8,
            "image_size": 64,
            "pad": 2,
            "shift": 2,
            "hflip": 0.5,
            "label_smoothing": 0.1,
            "ema": 0.998,
            "val_fraction": 1 / 30,
        },
    ),
    "fmnist-long": Recipe(
        "12,000 images of Fashion-MNIST, 30 epochs: networks compared near their plateau",
        {**_FASHION, "train_size": 12_000, "epochs": 30, "ema": 0.998},
    ),
    "few-50": Recipe(
        "50 images of each class of Fashion-MNIST, 80 epochs: what a network takes for granted counts",
        {**_FASHION, "train_size": 500, "epochs": 80, "batch_size": 16, "ema": 0.99},
    ),
    "few-500": Recipe(
        "500 images of each class of Fashion-MNIST, 40 epochs",
        {**_FASHION, "train_size": 5_000, "epochs": 40, "ema": 0.995},
    ),
    "few-digits": Recipe(
        "50 images of each digit, 80 epochs",
        {**_TRIAL, "train_size": 500, "epochs": 80, "batch_size": 16, "image_size": 64, "shift": 1, "ema": 0.99},
    ),
    "cooccurrence": Recipe(
        "1,000 generated images in which only pairs of patterns tell the class: what products are made for",
        {
            **_TRIAL,
            "data": "cooccurrence",
            "val_fraction": 0.025,
            "train_size": 1_000,
            "epochs": 100,
            "batch_size": 32,
            "in_chans": 1,
            "hflip": 0.0,
            "ema": 0.99,
        },
    ),
    "paper": Recipe(
        "the paper's recipe for CIFAR-100: 200 epochs at 224x224",
        {
            "data": "cifar100",
            "epochs": 200,
            "lr": 3e-3,
            "weight_decay": 1e-4,
            "warmup": 0.05,
            "warmup_lr": 1e-6,
            "min_lr": 1e-6,
            "image_size": 224,
            "shift": 4,
            "hflip": 0.5,
        },
    ),
    "folder": Recipe(
        "a folder of photographs from scratch at 224x224",
        {
            **_IMAGENET,
            "epochs": 100,
            "image_size": 224,
            "fit": "crop",
            "hflip": 0.5,
            "auto_augment": "rand-m7-mstd0.5-inc1",
            "label_smoothing": 0.1,
            "erase": 0.1,
            "ema": 0.999,
        },
    ),
    "imagenet": Recipe(
        "ImageNet-size data on GPUs: 300 epochs with mixup, CutMix, RandAugment and an EMA; not yet tried here",
        {
            **_IMAGENET,
            "data": "folder",
            "epochs": 300,
            "batch_size": 1024,
            "lr": 3e-3,
            "warmup": 1 / 60,
            "warmup_lr": 1e-6,
            "min_lr": 1e-6,
            "image_size": 224,
            "fit": "crop",
            "hflip": 0.5,
            "auto_augment": "rand-m9-mstd0.5-inc1",
            "label_smoothing": 0.1,
            "mixup": 0.2,
            "cutmix": 1.0,
            "erase": 0.1,
            "ema": 0.9999,
            "mixed_precision": "bf16",
            "checkpoint_every": 1000,
        },
    ),
}
