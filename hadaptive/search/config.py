"""The settings of a search: the parts that it shares with a training, and its own."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hadaptive.data.config import Augmentation, DataConfig, Preprocessing
from hadaptive.engine.config import (
    Config,
    Execution,
    Idle,
    Optimisation,
    RecipeSettings,
    at_least_one,
    idle_images,
    not_negative,
)
from hadaptive.errors import UserError
from hadaptive.jobs.config import Sharing
from hadaptive.measure.setting import LOWERED, Runtime, Setting
from hadaptive.settings import names
from hadaptive.train.config import TrainConfig


@dataclass(frozen=True)
class LatencyGoal:
    """How fast the network found must be, and where.

    Attributes:
        latency_target: such as 5ms, 0.8xS or 0.8xmobilenetv3_small_100; none searches for accuracy alone.
        latency_table: of ``hadaptive latency``; where it is left out one that was measured here before for the
            same space, setting and versions is taken, else it is measured at the start.
        latency_weight: of the expected latency's relative distance from the target in the loss.
        runtime: what latency is measured with, where there is no table.
        frozen: latency is of the network with fixed selections, as ``hadaptive export --freeze`` writes it.
        threads: of the runtime that latency is measured in; 0 leaves their number to it.
        foreign_table: accept a table measured on another device.
        max_params: most parameters of what evolution finds, as it is trained, such as 1M or 400k.
        fresh_table: measure at the start whatever was measured here before.
        latency_size: side of the images that latency is of, pixels; default that of the images the search learns
            from. A network for large images may so be searched on small ones, which takes less time.
    """

    latency_target: str | None = None
    latency_table: Path | None = None
    latency_weight: float = 1.0
    runtime: Runtime = "pytorch"
    frozen: bool = False
    threads: int = 0
    foreign_table: bool = False
    max_params: str | None = None
    fresh_table: bool = False
    latency_size: int | None = None

    def __post_init__(self) -> None:
        _ = self.most_parameters
        not_negative("latency_weight", self.latency_weight)
        not_negative("threads", self.threads)
        if self.latency_size is not None:
            at_least_one("latency_size", self.latency_size)

    @property
    def most_parameters(self) -> float:
        """The number that `max_params` says; infinity where it says none."""
        if self.max_params is None:
            return math.inf
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", self.max_params.strip())
        if not found or float(found[1]) == 0:
            raise UserError(f"max_params is written like 400k, 1.5M or 800000, got {self.max_params!r}")
        return float(found[1]) * {"": 1, "k": 1e3, "m": 1e6}[found[2].lower()]


@dataclass(frozen=True)
class Architecture:
    """How the architecture learns.

    Attributes:
        estimator: rloo compares several paths on one batch, gdas passes the gradient of one straight through, as
            in the paper.
        paths: that rloo compares in each step.
        alpha_fraction: share of the training images that the architecture parameters learn from.
        alpha_lr: of the architecture parameters; default lets them move by 10 in all, with gdas by 2, and by the
            paper's 3e-4 a step at least.
        alpha_weight_decay: of the architecture parameters.
        alpha_clip: largest norm of their gradient.
        tau_start: temperature of the Gumbel softmax at the start; it shapes the gradient of gdas and nothing else.
        tau_end: and at the end.
        weights_first: share of the search that trains weights only, on paths drawn evenly.
        method: gradient learns the architecture with the weights; evolution trains weights that candidates share,
            and then looks for the networks that no other beats in both accuracy and cost.
        population: networks of each generation of evolution.
        generations: of evolution.
    """

    estimator: Literal["rloo", "gdas"] = "rloo"
    paths: int = 4
    alpha_fraction: float = 0.5
    alpha_lr: float | None = None
    alpha_weight_decay: float = 1e-3
    alpha_clip: float = 1.0
    tau_start: float = 4.0
    tau_end: float = 0.1
    weights_first: float = 0.2
    method: Literal["gradient", "evolution"] = "gradient"
    population: int = 32
    generations: int = 16

    def __post_init__(self) -> None:
        for name in ("population", "generations"):
            if getattr(self, name) < 4:
                raise UserError(f"{name} must be at least 4, got {getattr(self, name)}")
        if self.paths < 2:
            raise UserError(f"paths are compared with each other: at least 2, got {self.paths}")
        if not 0 < self.alpha_fraction < 1:
            raise UserError(f"alpha_fraction must lie between 0 and 1, got {self.alpha_fraction}")
        if not 0 <= self.weights_first < 1:
            raise UserError(f"weights_first must be at least 0 and below 1, got {self.weights_first}")
        for name in ("tau_start", "tau_end", "alpha_clip"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name} must be positive, got {getattr(self, name)}")
        not_negative("alpha_weight_decay", self.alpha_weight_decay)
        if self.alpha_lr is not None and not 0 < self.alpha_lr < float("inf"):
            raise UserError(f"alpha_lr must be positive, got {self.alpha_lr}")


class _SearchSettings(RecipeSettings):
    @classmethod
    def from_recipe(cls: type[Config], recipe: str, **changes: Any) -> Config:
        """As of any configuration; a setting that only a training has is called that."""
        for name in changes:
            if name in names(TrainConfig) and name not in names(cls):
                raise UserError(f"{name} has no meaning in a search: give it to the training of what is found")
        return super().from_recipe(recipe, **changes)  # pyright: ignore[reportAttributeAccessIssue]

    @classmethod
    def _from_version_1(cls: type[Config], data: dict[str, Any]) -> Config:
        # They stood there with a recipe's values or none, and had no meaning.
        idle = set(names(TrainConfig)) - set(names(cls))
        rest = {key: value for key, value in data.items() if key not in idle}
        return super()._from_version_1(rest)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class SearchConfig(_SearchSettings):
    """Everything that decides one search.

    Attributes:
        recipe: the named settings that the other flags start from.
        output: folder to make; default runs/<time>-search-<space>-<data>.
        space: published, rich-s, rich-m, rich-l, star, or a .json file of your own.
        stem_strides: strides of the first convolutions, e.g. 1 1 for 32x32 images.
        drop_rate: dropout before the classifier; default 0.3.
        data: which images.
        preprocessing: what happens to every image.
        augmentation: what happens to training images besides.
        optimisation: how the weights learn.
        architecture: how the architecture learns.
        latency: how fast the network found must be.
        execution: how and where the work is done.
    """

    recipe: str = "quick"
    output: Path | None = None
    space: str = "published"
    stem_strides: tuple[int, ...] | None = None
    drop_rate: float | None = None
    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: Preprocessing = field(default_factory=lambda: TrainConfig().preprocessing)
    augmentation: Augmentation = field(default_factory=lambda: TrainConfig().augmentation)
    optimisation: Optimisation = field(default_factory=Optimisation)
    architecture: Architecture = field(default_factory=Architecture)
    latency: LatencyGoal = field(default_factory=LatencyGoal)
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        if self.drop_rate is not None and not 0 <= self.drop_rate < 1:
            raise UserError(f"drop_rate must be at least 0 and below 1, got {self.drop_rate}")
        if self.execution.mixed_precision == "fp16":
            raise UserError("a search has no loss scaling: use --mixed-precision bf16 or no")
        if self.data.multi_label:
            raise UserError(
                "a search learns from images of one class each: leave out multi_label, search on those, and train "
                "what was found with it"
            )

    def idle(self) -> Iterator[Idle]:
        yield from idle_images(self)
        method, estimator = self.architecture.method, self.architecture.estimator
        for name in self._idle_of_method():
            yield Idle(name, "method", f"{method} does not use it")
        if method == "gradient":
            for name in ("tau_start", "tau_end") if estimator == "rloo" else ("paths",):
                yield Idle(name, "estimator", f"{estimator} does not use it")
        if self.latency.latency_target is None:
            for name in names(LatencyGoal):
                if name != "max_params":
                    yield Idle(name, "latency_target", "is not there")
        elif self.latency.latency_table is not None:
            yield Idle("fresh_table", "latency_table", "says which")

    def _idle_of_method(self) -> list[str]:
        own = ("method", "population", "generations")
        if self.architecture.method == "gradient":
            return [*own[1:], "max_params"]
        return [*(name for name in names(Architecture) if name not in own), "latency_weight"]

    def setting(self, num_classes: int, device: str) -> Setting:
        """What the latency of the found network is of: one image of the size asked for, on the search's device."""
        runtime = self.latency.runtime
        return Setting(
            runtime=runtime,
            device="cpu" if runtime in LOWERED else device,
            image_size=self.latency.latency_size or self.preprocessing.image_size,
            in_chans=self.preprocessing.in_chans,
            num_classes=num_classes,
            threads=self.latency.threads,
            channels_last=self.execution.channels_last,
            frozen=self.latency.frozen,
        )

    def training(self, **changes: Any) -> TrainConfig:
        """The settings to train the found network with: the same recipe, data and budget."""
        shared = {name: value for name, value in self.flat().items() if name in names(TrainConfig)}
        return TrainConfig.from_recipe(**{**shared, "stem_strides": None, **changes})


LEAST = {"random": 2, "best": 2, "evolution": 4}  # networks of each kind of baseline


@dataclass(frozen=True)
class StudyConfig(_SearchSettings):
    """Everything that decides a search, its repetitions and its comparison; the flags of ``hadaptive search``.

    Attributes:
        search: the search that is repeated.
        seeds: search so many times, and report how far the seeds agree.
        baseline: what a search must beat, trained beside what it finds under the same recipe, with the published
            network that the target names: "random 10" ten random networks within its limits; "best 500" the best
            of five hundred such by the shared weights; "evolution 10" the best that evolution finds without shared
            weights, by training ten networks with the epochs of the search. Several may stand together.
        retrain_seeds: trainings of each network; random ones are trained once.
        sharing: which of these trainings run at once, and where; searches, which time networks, take turns.
    """

    search: SearchConfig = field(default_factory=SearchConfig)
    seeds: int = 1
    baseline: tuple[tuple[Literal["random", "best", "evolution"], int], ...] = ()
    retrain_seeds: int = 3
    sharing: Sharing = field(default_factory=Sharing)

    def __post_init__(self) -> None:
        at_least_one("seeds", self.seeds)
        at_least_one("retrain_seeds", self.retrain_seeds)
        if len(self.rivals) < len(self.baseline):
            raise UserError("baseline has the same rivals twice: give each one number")
        for name, number in self.rivals.items():
            least = LEAST[name]
            if number < least:
                raise UserError(f"baseline {name} needs at least {least} networks, got {number}")
        if "best" in self.rivals and self.search.architecture.method != "evolution":
            raise UserError("baseline best is by shared weights, which --method evolution alone has")
        epochs = self.search.optimisation.epochs
        if self.rivals.get("evolution", 0) > epochs:
            raise UserError(
                f"baseline evolution divides the search's {epochs} epochs among its networks: at most {epochs}, "
                f"got {self.rivals['evolution']}"
            )

    @property
    def recipe(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The recipe of its search."""
        return self.search.recipe

    @property
    def rivals(self) -> dict[str, int]:
        """How many networks of each kind of baseline."""
        return dict(self.baseline)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "StudyConfig":
        """As of any configuration; older ones had one kind of baseline, or None."""
        pairs = data.get("baseline") or []
        pairs = [pairs] if pairs and isinstance(pairs[0], str) else pairs
        return super().from_dict({**data, "baseline": pairs})

    @property
    def is_single(self) -> bool:
        """Whether this is one search and nothing else."""
        return self.seeds == 1 and not self.baseline

    def idle(self) -> Iterator[Idle]:
        yield from self.search.idle()
        if not self.baseline:
            for name in ("retrain_seeds", *names(Sharing)):
                yield Idle(name, "baseline", "is not there")
