"""The parts of a configuration that trainings and searches share, and recipes: settings that belong together."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from hadaptive.data.config import is_stream
from hadaptive.engine.recipes import RECIPES
from hadaptive.errors import UserError
from hadaptive.settings import Settings, names

Config = TypeVar("Config", bound="RecipeSettings")
Tracker = Literal["tensorboard", "wandb", "mlflow"]


@dataclass(frozen=True)
class Optimisation:
    """How weights learn.

    Attributes:
        epochs: passes over the training part.
        batch_size: images per optimiser step, over all processes and accumulation steps; auto finds the largest
            power of two that memory has room for and of which an epoch has 16 steps, from 16 to 1024.
        lr: peak learning rate.
        weight_decay: of weights; biases, norms and DySoft's alpha are exempt.
        opt: any optimiser timm knows.
        sched: cosine, tanh, poly, wsd, rsqrt, constant, none; step lowers lr to a tenth after each third of the
            training, multistep after a half and three quarters, plateau when the validation loss has not improved
            for a tenth of the epochs.
        warmup: share of the training spent warming up.
        warmup_lr: learning rate at the first step.
        min_lr: learning rate at the end.
        label_smoothing: probability mass spread over the other classes.
    """

    epochs: int = 30
    batch_size: int | Literal["auto"] = 64
    lr: float = 2e-3
    weight_decay: float = 0.05
    opt: str = "adamw"
    sched: str = "cosine"
    warmup: float = 0.1
    warmup_lr: float = 8e-5
    min_lr: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        at_least_one("epochs", self.epochs)
        if isinstance(self.batch_size, int):
            at_least_one("batch_size", self.batch_size)
        elif self.batch_size != "auto":
            raise UserError(f"batch_size must be a number of images or auto, got {self.batch_size!r}")
        for name in ("warmup", "label_smoothing"):
            share(name, getattr(self, name))
        if not 0 < self.lr < float("inf"):
            raise UserError(f"lr must be positive, got {self.lr}")
        for name in ("weight_decay", "min_lr", "warmup_lr"):
            not_negative(name, getattr(self, name))

    @property
    def images_per_step(self) -> int:
        """`batch_size`, when it is known."""
        if isinstance(self.batch_size, str):
            raise UserError("batch_size auto is for trainings only: pass a number of images")
        return self.batch_size


@dataclass(frozen=True)
class Execution:
    """How and where the work is done, and what chance decides in it.

    Attributes:
        seed: of initialisation, order, augmentation and noise.
        mixed_precision: no, bf16 or fp16.
        channels_last: lay images out as NHWC, which is faster for convolutions on CPU and GPU.
        cpu: stay on the CPU even where there is a GPU.
        workers: loader processes; -1 chooses.
        checkpoint_every: also save a resumable checkpoint every so many steps; 0 only after each epoch.
        strict: stop at an image that cannot be read, instead of skipping it.
        track: also hand the figures of every epoch to these experiment trackers, which must be installed;
            TensorBoard's files lie in the run folder.
        cache: folder where decoded images are kept, so that only the first epoch decodes them: those to learn from
            with their short side reduced to twice image_size, and validation's as they are evaluated.
        cache_size: the most that it may take, in GB.
    """

    seed: int = 0
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    channels_last: bool = True
    cpu: bool = False
    workers: int = -1
    checkpoint_every: int = 0
    strict: bool = False
    track: tuple[Tracker, ...] = ()
    cache: Path | None = None
    cache_size: float = 20.0

    def __post_init__(self) -> None:
        if self.cache is not None:  # a run may be resumed from another folder
            object.__setattr__(self, "cache", self.cache.expanduser().absolute())
        if not 0 < self.cache_size < float("inf"):
            raise UserError(f"cache_size must be a positive number of GB, got {self.cache_size}")
        not_negative("seed", self.seed)
        not_negative("checkpoint_every", self.checkpoint_every)
        if self.seed >= 2**63:
            raise UserError(f"seed must be below 2**63, got {self.seed}")
        if self.workers < -1:
            raise UserError(f"workers must be a number of processes, or -1, which chooses; got {self.workers}")


def at_least_one(name: str, value: float) -> None:
    """Raise one clear UserError unless a setting is 1 or more."""
    if value < 1:
        raise UserError(f"{name} must be at least 1, got {value}")


def not_negative(name: str, value: float) -> None:
    """Raise one clear UserError unless a setting is a finite number of 0 or more."""
    if not 0 <= value < float("inf"):
        raise UserError(f"{name} must not be negative, got {value}")


def share(name: str, value: float) -> None:
    """Raise one clear UserError unless a setting lies between 0 and 1."""
    if not 0 <= value <= 1:
        raise UserError(f"{name} must lie between 0 and 1, got {value}")


@dataclass(frozen=True)
class Idle:
    """A setting without an effect beside another one, and what that one does."""

    name: str
    cause: str
    how: str


def idle_images(config: Any) -> Iterator[Idle]:
    """Settings of images and their schedule without an effect: each family of transforms has its own."""
    fit = config.preprocessing.fit
    others = ("pad", "shift") if fit == "crop" else ("crop_pct", "scale", "auto_augment", "color_jitter", "erase")
    yield from (Idle(name, "fit", f"{fit} does not use it") for name in others)
    sched = config.optimisation.sched
    if sched == "none":
        yield from (Idle(name, "sched", "none leaves the rate as it is") for name in ("warmup", "warmup_lr"))
    if sched in ("none", "constant", "step", "multistep"):
        yield Idle("min_lr", "sched", f"{sched} does not use it")
    if config.optimisation.warmup == 0:
        yield Idle("warmup_lr", "warmup", "0 leaves it out")
    if is_stream(config.data.data):
        yield Idle("cache", "data", "is a stream, which is read from its start to its end")
    if config.execution.cache is None:
        yield Idle("cache_size", "cache", "is not there")


class RecipeSettings(Settings):
    """A configuration whose defaults a recipe sets; it has a field `recipe`."""

    recipe: str

    def idle(self) -> Iterable[Idle]:
        """Settings that have no effect beside the others."""
        return ()

    def refuse_idle(self, given: Collection[str]) -> None:
        """Raise one clear UserError if a setting was given that has no effect beside the others."""
        for rule in self.idle():
            if rule.name in given:
                flag, cause = (f"--{name.replace('_', '-')}" for name in (rule.name, rule.cause))
                raise UserError(f"{flag} has no effect here, for {cause} {rule.how}: leave it out")

    @classmethod
    def from_recipe(cls: type[Config], recipe: str, **changes: Any) -> Config:
        """A recipe's settings with some changed.

        Settings of the recipe that a configuration does not have (a search has no EMA) are those of others.

        Raises:
            UserError: no such recipe or setting, or a value out of range.
        """
        if recipe not in RECIPES:
            raise UserError(f"there is no recipe {recipe!r}; choose one of {', '.join(RECIPES)}")
        own = {name: value for name, value in RECIPES[recipe].settings.items() if name in names(cls)}
        return cls().changed(**{**own, "recipe": recipe, **changes})

    def given(self) -> dict[str, Any]:
        """The settings that differ from the recipe's: what a person would have to type."""
        base = self.from_recipe(self.recipe).flat()
        return {name: value for name, value in self.flat().items() if value != base[name]}
