"""The settings of a training run: parts that it shares with others, and what only a training has."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hadaptive.data.config import Augmentation, DataConfig, Preprocessing, is_stream
from hadaptive.engine.config import (
    Execution,
    Idle,
    Optimisation,
    RecipeSettings,
    at_least_one,
    idle_images,
    not_negative,
    share,
)
from hadaptive.errors import UserError

DEFAULT_MODEL = "hadaptive_net_s"


@dataclass(frozen=True)
class NetworkConfig:
    """Which network, and what it starts from.

    Attributes:
        model: timm model name (ours or any other) or a NetSpec file (.json); default hadaptive_net_s.
        pretrained: start from the weights that timm has for the model, with a new classifier where the classes are
            others; --model may be hf-hub:NAME or local-dir:FOLDER, too.
        init: run folder or exported .safetensors whose network is trained on, with a new classifier where the
            classes are others; or any other .safetensors with the weights of --model.
        stem_strides: strides of a Hadaptive-Net's first convolutions, e.g. 1 1 for 32x32 images.
        drop_rate: dropout before the classifier; default is the model's own.
        drop_path_rate: stochastic depth; default is the model's own.
    """

    model: str | None = None
    pretrained: bool = False
    init: Path | None = None
    stem_strides: tuple[int, ...] | None = None
    drop_rate: float | None = None
    drop_path_rate: float | None = None

    @property
    def starts_trained(self) -> bool:
        """Whether a training starts from weights that have learned something."""
        return self.pretrained or self.init is not None

    def __post_init__(self) -> None:
        for name in ("drop_rate", "drop_path_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name} must be at least 0 and below 1, got {value}")
        if self.pretrained and self.init is not None:
            raise UserError("a training starts from one of them, pretrained weights or init: leave the other out")


@dataclass(frozen=True)
class Teaching:
    """What another network adds to what labels teach.

    Attributes:
        teacher: to learn from besides the labels: run folder, file of ``hadaptive export``, any ONNX file, weights
            of this package, or timm's weights for the same classes.
        teacher_weight: the teacher's share of the loss.
        teacher_temperature: by which logits are divided: the higher, the more the unlikely classes count.
        teacher_features: weight of a term by which images of a batch lie as far apart, for the layer before the
            classifier, as they do for the teacher's; 0 is off.
        teacher_sees: each training image once, before the first step; or every batch as it is augmented, which
            takes the teacher's time in each step.
    """

    teacher: str | None = None
    teacher_weight: float = 0.5
    teacher_temperature: float = 2.0
    teacher_features: float = 0.0
    teacher_sees: Literal["image", "batch"] = "image"

    def __post_init__(self) -> None:
        share("teacher_weight", self.teacher_weight)
        if not 0 < self.teacher_temperature < float("inf"):
            raise UserError(f"teacher_temperature must be positive, got {self.teacher_temperature}")
        not_negative("teacher_features", self.teacher_features)


@dataclass(frozen=True)
class TrainConfig(RecipeSettings):
    """Everything that decides a training run; also the flags of ``hadaptive train``.

    Attributes:
        recipe: the named settings that the other flags start from.
        output: run folder to make; default runs/<time>-<model>-<data>.
        network: which network.
        data: which images.
        preprocessing: what happens to every image.
        augmentation: what happens to training images besides.
        optimisation: how weights learn.
        teaching: what another network adds to it.
        accumulate: split each step into this many smaller batches, to save memory.
        clip_grad: largest gradient norm; 0 does not clip.
        mixup: timm's mixup alpha; 0 is off.
        cutmix: timm's cutmix alpha; 0 is off.
        freeze_backbone: epochs in which the classifier alone learns, before everything does; with --pretrained or
            --init.
        layer_decay: the learning rate of each layer, as a share of that of the one after it.
        patience: epochs without better validation after which a training ends early; 0 never does.
        class_weights: images of each class count the more, the fewer there are of it; with --multi-label, as
            much as those without it.
        balanced: draw images of every class equally often, however many there are.
        ema: decay of a moving average of the weights, which is then evaluated and saved; 0 is off.
        select: test the weights with the best validation accuracy (ties: the lower loss), or the last ones.
        compile: run the network through torch.compile.
        execution: how and where the work is done.
    """

    recipe: str = "quick"
    output: Path | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    data: DataConfig = field(default_factory=DataConfig)
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(image_size=32, fit="stretch"))
    augmentation: Augmentation = field(default_factory=lambda: Augmentation(hflip=0.0))
    optimisation: Optimisation = field(default_factory=Optimisation)
    teaching: Teaching = field(default_factory=Teaching)
    accumulate: int = 1
    clip_grad: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    freeze_backbone: int = 0
    layer_decay: float = 1.0
    patience: int = 0
    class_weights: bool = False
    balanced: bool = False
    ema: float = 0.0
    select: Literal["best", "last"] = "best"
    compile: bool = False
    execution: Execution = field(default_factory=Execution)

    def __post_init__(self) -> None:
        at_least_one("accumulate", self.accumulate)
        share("ema", self.ema)
        for name in ("clip_grad", "mixup", "cutmix", "freeze_backbone", "patience"):
            not_negative(name, getattr(self, name))
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"layer_decay must be above 0 and at most 1, got {self.layer_decay}")
        if self.balanced and self.class_weights:
            raise UserError("balanced and class_weights make up for the same thing: leave one of them out")
        if self.balanced and self.data.multi_label:
            raise UserError("balanced draws images by the one class they have: with multi_label use class_weights")
        if self.freeze_backbone and not self.network.starts_trained:
            raise UserError(
                "freeze_backbone keeps weights that have learned something: pass pretrained or init as well"
            )
        if self.teaching.teacher is not None and self.teaching.teacher_features and self.compile:
            raise UserError("teacher_features looks into the network, which compile hides: leave one of them out")
        if self.teaching.teacher is not None and self.teaching.teacher_sees == "image":
            for name in ("mixup", "cutmix"):
                if getattr(self, name):
                    raise UserError(
                        f"a teacher that sees each image once knows no {name}: pass teacher_sees batch"
                    )
            if is_stream(self.data.data):
                raise UserError(
                    f"{self.data.data} is a stream, whose images have no number: pass teacher_sees batch"
                )

    @property
    def model_name(self) -> str:
        """What the network is called: of ``init``, the folder or file."""
        return str(self.network.model or self.network.init or DEFAULT_MODEL)

    def idle(self) -> Iterator[Idle]:
        """Settings that have no effect beside the others."""
        if self.network.init is not None and self.network.model is None:
            yield Idle("stem_strides", "init", "has its own network")
        if self.teaching.teacher is None:
            for name in ("teacher_weight", "teacher_temperature", "teacher_features", "teacher_sees"):
                yield Idle(name, "teacher", "is not there")
        if not self.data.multi_label:
            yield Idle("label_separator", "multi_label", "is not there")
        if is_stream(self.data.data):
            for name in ("balanced", "class_weights"):
                yield Idle(name, "data", "is a stream, whose classes nobody has counted")
            for name in ("train_size", "split", "val_fraction", "test_fraction", "data_seed", "group_by"):
                yield Idle(name, "data", "is a stream, whose parts have names of their own")
            for name in ("file_column", "label_column", "split_column"):
                yield Idle(name, "data", "is a stream, which has no columns")
        yield from idle_images(self)

    @classmethod
    def _from_version_1(cls, data: dict[str, Any]) -> "TrainConfig":
        # Beside --init they were recorded, and had no effect.
        idle = ("model", "stem_strides") if data.get("init") else ()
        return super()._from_version_1({key: value for key, value in data.items() if key not in idle})
