"""The settings of a training run, and recipes: settings that belong together, by name."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from hadaptive.errors import UserError

Config = TypeVar("Config", bound="TrainConfig")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run; also the flags of ``hadaptive train``.

    Attributes:
        model: timm model name (ours or any other) or a NetSpec file (.json).
        data: digits, fashion-mnist, cifar10, cifar100, a folder of images, a tar file, or timm's hfds/<name>,
            wds/<name>, tfds/<name>.
        recipe: the named settings that the other flags start from.
        init: run folder or exported .safetensors whose network is trained on, instead of a new model.
        output: run folder to make; default runs/<time>-<model>-<data>.
        epochs: passes over the training part.
        batch_size: images per optimiser step, over all processes and accumulation steps.
        lr: peak learning rate.
        weight_decay: of weights; biases, norms and DySoft's alpha are exempt.
        opt: any optimiser timm knows.
        sched: any schedule timm knows.
        warmup: share of the training spent warming up.
        warmup_lr: learning rate at the first step.
        min_lr: learning rate at the end.
        accumulate: split each step into this many smaller batches, to save memory.
        clip_grad: largest gradient norm; 0 does not clip.
        label_smoothing: probability mass spread over the other classes.
        mixup: timm's mixup alpha; 0 is off.
        cutmix: timm's cutmix alpha; 0 is off.
        ema: decay of a moving average of the weights, which is then evaluated and saved; 0 is off.
        drop_rate: dropout before the classifier; default is the model's own.
        drop_path_rate: stochastic depth; default is the model's own.
        image_size: side of the square input in pixels.
        in_chans: 3 (RGB) or 1 (grey).
        stem_strides: strides of a Hadaptive-Net's first convolutions, e.g. 1 1 for 32x32 images.
        fit: crop (timm's resize and centre crop) or stretch (pad and resize, for small images).
        pad: pixels added on each side before a stretch.
        interpolation: nearest, bilinear or bicubic.
        crop_pct: share of the resized image that the centre crop keeps.
        mean: of each channel, for normalisation.
        std: of each channel, for normalisation.
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        shift: pixels a stretched image may move while training.
        scale: smallest share of the area a random crop keeps.
        auto_augment: timm's policy, e.g. rand-m7-mstd0.5-inc1.
        color_jitter: strength of random colour changes.
        erase: probability of random erasing.
        data_dir: where the data lie or are downloaded to.
        train_size: use only so many training images.
        val_fraction: share of the training part held out for validation.
        test_fraction: share held out for testing where the data have no test part.
        train_split: name of the training part (hfds, wds, tfds).
        val_split: name of the validation part (hfds, wds, tfds).
        test_split: name of the test part (hfds, wds, tfds).
        num_classes: needed for streams (wds, tfds) only.
        train_samples: images per epoch of a stream, where it does not say so itself.
        data_seed: of the held-out parts; the same for runs that are to be compared.
        seed: of initialisation, order, augmentation and noise.
        select: test the weights with the best validation accuracy (ties: the lower loss), or the last ones.
        mixed_precision: no, bf16 or fp16.
        compile: run the network through torch.compile.
        channels_last: lay images out as NHWC, which is faster for convolutions on CPU and GPU.
        cpu: stay on the CPU even where there is a GPU.
        workers: loader processes; -1 chooses.
        checkpoint_every: also save a resumable checkpoint every so many steps; 0 only after each epoch.
        strict: stop at an image that cannot be read, instead of skipping it.
    """

    model: str = "hadaptive_net_s"
    data: str = "digits"
    recipe: str = "quick"
    init: Path | None = None
    output: Path | None = None

    epochs: int = 30
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    opt: str = "adamw"
    sched: str = "cosine"
    warmup: float = 0.1
    warmup_lr: float = 8e-5
    min_lr: float = 0.0
    accumulate: int = 1
    clip_grad: float = 0.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float = 0.0
    drop_rate: float | None = None
    drop_path_rate: float | None = None

    image_size: int = 32
    in_chans: int = 3
    stem_strides: tuple[int, ...] | None = None
    fit: Literal["crop", "stretch"] = "stretch"
    pad: int = 0
    interpolation: Literal["nearest", "bilinear", "bicubic"] = "bilinear"
    crop_pct: float = 0.875
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    hflip: float = 0.0
    vflip: float = 0.0
    shift: int = 0
    scale: float = 0.35
    auto_augment: str | None = None
    color_jitter: float = 0.0
    erase: float = 0.0

    data_dir: Path | None = None
    train_size: int | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = "test"
    num_classes: int | None = None
    train_samples: int | None = None
    data_seed: int = 0

    seed: int = 0
    select: Literal["best", "last"] = "best"
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    channels_last: bool = True
    cpu: bool = False
    workers: int = -1
    checkpoint_every: int = 0
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "image_size"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "label_smoothing", "ema", "hflip", "vflip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        for name in ("scale", "crop_pct"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"{name} must be above 0 and at most 1, got {getattr(self, name)}")
        if not 0 < self.lr < float("inf"):
            raise UserError(f"lr must be positive, got {self.lr}")
        for name in (
            "weight_decay",
            "clip_grad",
            "mixup",
            "cutmix",
            "checkpoint_every",
            "shift",
            "pad",
            "min_lr",
            "color_jitter",
        ):
            if getattr(self, name) < 0:
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.seed < 0 or self.data_seed < 0:
            raise UserError("seeds must not be negative")
        if len(self.mean) < self.in_chans or len(self.std) < self.in_chans:
            raise UserError(f"mean and std need {self.in_chans} values each")
        if min(self.std) <= 0:
            raise UserError(f"std must be positive, got {self.std}")

    @classmethod
    def from_recipe(cls: type[Config], recipe: str, **changes: Any) -> Config:
        """A recipe's settings with some changed.

        Raises:
            UserError: no such recipe or setting, or a value out of range.
        """
        if recipe not in RECIPES:
            raise UserError(f"there is no recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
        unknown = set(changes) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise UserError(f"there is no setting {', '.join(sorted(unknown))}")
        return cls(**{"recipe": recipe, **RECIPES[recipe].settings, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        data = dataclasses.asdict(self)
        return {
            k: str(v) if isinstance(v, Path) else list(v) if isinstance(v, tuple) else v for k, v in data.items()
        }

    @classmethod
    def from_dict(cls: type[Config], data: dict[str, Any]) -> Config:
        """The inverse of :meth:`to_dict`.

        Raises:
            UserError: a setting is unknown, as in a run of another version.
        """
        known = {field.name for field in dataclasses.fields(cls)}
        if set(data) - known:
            raise UserError(f"unknown settings {', '.join(sorted(set(data) - known))}: made by another version?")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        for name in ("output", "init", "data_dir", "latency_table"):
            if values.get(name) is not None:
                values[name] = Path(values[name])
        return cls(**values)


@dataclass(frozen=True)
class Recipe:
    """Named settings and what they are for."""

    about: str
    settings: dict[str, Any]


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
