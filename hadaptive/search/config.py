"""The settings of a search: those of a training, which it is, and its own."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hadaptive.errors import UserError
from hadaptive.measure.setting import LOWERED, Runtime, Setting
from hadaptive.train.config import TrainConfig

# Settings of a training that mean nothing while paths change from step to step.
FIXED = (
    "model",
    "init",
    "accumulate",
    "mixup",
    "cutmix",
    "ema",
    "drop_path_rate",
    "select",
    "compile",
    "clip_grad",
)


@dataclass(frozen=True)
class SearchConfig(TrainConfig):
    """Everything that decides one search.

    Attributes:
        space: published, rich-s, rich-m, rich-l, or a .json file of your own.
        latency_target: such as 5ms or 0.8xS; none searches for accuracy alone.
        latency_table: of ``hadaptive latency``; measured at the start where it is left out.
        latency_weight: of the expected latency's relative distance from the target in the loss.
        runtime: what latency is measured with, where there is no table.
        frozen: latency is of the network with fixed selections, as ``hadaptive export --freeze`` writes it.
        threads: of the runtime that latency is measured in; 0 leaves their number to it.
        foreign_table: accept a table measured on another device.
        estimator: how the architecture learns: rloo compares several paths on one batch, gdas passes the gradient
            of one straight through, as in the paper.
        paths: that rloo compares in each step.
        alpha_fraction: share of the training images that the architecture parameters learn from.
        alpha_lr: of the architecture parameters; default lets them move by 10 in all, and by the paper's
            3e-4 a step at least.
        alpha_weight_decay: of the architecture parameters.
        alpha_clip: largest norm of their gradient.
        tau_start: temperature of the Gumbel softmax at the start; it shapes the gradient of gdas and nothing else.
        tau_end: and at the end.
        weights_first: share of the search that trains weights only, on paths drawn evenly.
    """

    space: str = "published"
    latency_target: str | None = None
    latency_table: Path | None = None
    latency_weight: float = 1.0
    runtime: Runtime = "pytorch"
    frozen: bool = False
    threads: int = 0
    foreign_table: bool = False
    estimator: Literal["rloo", "gdas"] = "rloo"
    paths: int = 4
    alpha_fraction: float = 0.5
    alpha_lr: float | None = None
    alpha_weight_decay: float = 1e-3
    alpha_clip: float = 1.0
    tau_start: float = 4.0
    tau_end: float = 0.1
    weights_first: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        defaults = {field.name: field.default for field in fields(TrainConfig)}
        for name in FIXED:
            if getattr(self, name) != defaults[name] and name not in _set_by_recipe(self.recipe):
                raise UserError(f"{name} has no meaning in a search: give it to the training of what is found")
        if self.paths < 2:
            raise UserError(f"paths are compared with each other: at least 2, got {self.paths}")
        if not 0 < self.alpha_fraction < 1:
            raise UserError(f"alpha_fraction must lie between 0 and 1, got {self.alpha_fraction}")
        if not 0 <= self.weights_first < 1:
            raise UserError(f"weights_first must be at least 0 and below 1, got {self.weights_first}")
        for name in ("tau_start", "tau_end", "alpha_clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("latency_weight", "alpha_weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.alpha_lr is not None and not 0 < self.alpha_lr < float("inf"):
            raise UserError(f"alpha_lr must be positive, got {self.alpha_lr}")
        if self.mixed_precision == "fp16":
            raise UserError("a search has no loss scaling: use --mixed-precision bf16 or no")

    def setting(self, num_classes: int, device: str) -> Setting:
        """What the latency of the found network is of: one image of the search's size, on its device."""
        return Setting(
            runtime=self.runtime,
            device="cpu" if self.runtime in LOWERED else device,
            image_size=self.image_size,
            in_chans=self.in_chans,
            num_classes=num_classes,
            threads=self.threads,
            channels_last=self.channels_last,
            frozen=self.frozen,
        )

    def training(self, **changes: Any) -> TrainConfig:
        """The settings to train the found network with: the same recipe, data and budget."""
        values = {field.name: getattr(self, field.name) for field in fields(TrainConfig)}
        return TrainConfig(**{**values, "stem_strides": None, **changes})


@dataclass(frozen=True)
class StudyConfig(SearchConfig):
    """Everything that decides a search, its repetitions and its comparison; the flags of ``hadaptive search``.

    Attributes:
        seeds: search so many times, and report how far the seeds agree.
        baseline: "random 10" trains what was found beside ten random networks of the same latency, and the
            published network the target names, all under the same recipe.
        retrain_seeds: trainings of each network found and of the published one; random ones are trained once.
    """

    seeds: int = 1
    baseline: tuple[Literal["random"], int] | None = None
    retrain_seeds: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "retrain_seeds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.baseline is not None and self.baseline[1] < 2:
            raise UserError(f"a baseline needs at least 2 random networks, got {self.baseline[1]}")

    @property
    def is_single(self) -> bool:
        """Whether this is one search and nothing else."""
        return self.seeds == 1 and self.baseline is None

    def single(self) -> SearchConfig:
        """The settings of one search."""
        return SearchConfig(**{field.name: getattr(self, field.name) for field in fields(SearchConfig)})


def _set_by_recipe(recipe: str) -> set[str]:
    from hadaptive.train.config import RECIPES

    return set(RECIPES[recipe].settings) if recipe in RECIPES else set()
