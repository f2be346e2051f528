"""The settings of an export; also the flags of ``hadaptive export``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from hadaptive.errors import UserError
from hadaptive.measure.formats import ALIGN, Format


@dataclass(frozen=True)
class ExportConfig:
    """Write a network for another runtime, and prove that the file computes the same.

    Attributes:
        source: run folder, weights that come with the package, or, with seeded random weights, a NetSpec file
            (.json) or timm name.
        output: new file; default in the run folder, or named after the model here.
        format: onnx, openvino, executorch (XNNPACK), coreml, ncnn, torch (torch.export), safetensors (weights and
            spec), or timm (a folder as the Hugging Face Hub has it, with a model card).
        freeze: fix each ACH selection to the channels that calibration images choose most.
        finetune: epochs to train a run on with its fixed selections, in RUN/finetuned; 0 does not.
        finetune_lr: peak learning rate of that; default a quarter of the run's.
        int8: quantise after training, static; layers that cost too much stay in float. For onnx and openvino.
        sensitivity: images (validation, then training) that each layer is quantised alone on.
        max_loss: validation accuracy that freezing may cost before it is refused, and int8, in points.
        force: write a network that costs more.
        calibration: training images that selections and ranges of int8 are calibrated on.
        align: fill expanded widths up to this multiple; 1 leaves them.
        images: real images (validation, then training) that the file is compared on, and int8's accuracy.
        weights: of a run: best or last.
        image_size: of a network without a run; default 224.
        num_classes: of a network without a run, default 1000; its images' classes are not looked at.
        data: images for a network without a run, or where a run's data lie now.
        data_dir: where named data sets lie.
        seed: of random weights; default 0.
        reject_below: probability from which a class counts, and those of single classes, such as 0.6 cat=0.8:
            carried along for ``hadaptive predict``; default as the run's.
    """

    source: tyro.conf.Positional[str]
    output: Path | None = None
    format: Format = "onnx"
    freeze: bool = False
    finetune: int = 0
    finetune_lr: float | None = None
    int8: bool = False
    sensitivity: int = 256
    max_loss: float = 0.5
    force: bool = False
    calibration: int = 512
    align: int = ALIGN
    images: int = 1000
    weights: Literal["best", "last"] | None = None
    image_size: int | None = None
    num_classes: int | None = None
    data: str | None = None
    data_dir: Path | None = None
    seed: int | None = None
    reject_below: tuple[str, ...] = ()

    @property
    def is_run(self) -> bool:
        """Whether a trained run is exported, and not a network with random weights."""
        return Path(self.source).is_dir()

    def __post_init__(self) -> None:
        for name in ("calibration", "align", "images", "image_size", "num_classes", "sensitivity"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("image_size", "num_classes", "seed") if self.is_run else ("weights",):
            if getattr(self, name) is not None:
                flag = name.replace("_", "-")
                whose = "is that of the run" if self.is_run else "is of a run, and this is none"
                raise UserError(f"--{flag} {whose}: leave it out for {self.source}")
        if self.finetune_lr is not None and not self.finetune:
            raise UserError("--finetune-lr is of fine-tuning: pass --finetune as well")
        if self.finetune < 0 or (self.finetune_lr is not None and not 0 < self.finetune_lr < float("inf")):
            raise UserError("finetune must not be negative, and finetune_lr must be positive")
        if self.finetune and not (self.freeze and self.is_run):
            raise UserError("--finetune trains the fixed selections of a run: pass --freeze and a run folder")
        if self.int8 and self.format not in ("onnx", "openvino"):
            raise UserError(f"int8 is for formats onnx and openvino, not {self.format}")
        if not 0 <= self.max_loss < float("inf"):
            raise UserError(f"max_loss must not be negative, got {self.max_loss}")
