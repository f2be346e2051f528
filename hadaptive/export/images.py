"""The real images that an export is calibrated, compared and measured on: never those of the test part."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from hadaptive.cards import ModelCard
from hadaptive.data import (
    DataConfig,
    ImageData,
    ImageDataset,
    LabelSets,
    Preprocessing,
    create_loader,
    eval_transform,
    is_stream,
    open_data,
)
from hadaptive.engine.batches import evaluation_batches
from hadaptive.errors import UserError
from hadaptive.export.proof import one_class
from hadaptive.metrics import logits_of
from hadaptive.multi_label import calibration, evaluate_network
from hadaptive.runs import RunFolder
from hadaptive.text import alike

PARTS = ("validation", "train")


@dataclass(frozen=True)
class ExportImages:
    """Images as a network sees them.

    Attributes:
        data: of the run, in the parts it was trained with, or any others for a network without a run.
        preprocessing: of the network.
        card: of a trained network, which says from which probability each class counts; else None.
        sets: the classes of each target, of images that may have several; else None.
    """

    data: ImageData
    preprocessing: Preprocessing
    card: ModelCard | None = None
    sets: LabelSets | None = None

    def samples(self, number: int, only: str | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images (B, C, H, W) and their classes (B,): of validation, then of training.

        Args:
            number: of images, spread evenly over each part, which may be sorted by class.
            only: one of the two parts.

        Raises:
            UserError: not one image can be read.
        """
        transform = eval_transform(self.preprocessing)
        left, readable = number, 0
        for name in (only,) if only else PARTS:
            dataset = ImageDataset(self.data.parts[name], transform, blank=self.preprocessing.input_size)
            count = min(left, len(dataset))
            chosen = torch.linspace(0, len(dataset) - 1, count).long().tolist() if count else []
            for images, targets, unreadable in (
                create_loader(Subset(dataset, chosen), 32, workers=0) if count else ()
            ):
                kept = unreadable < 0
                readable += int(kept.sum())
                if kept.any():
                    yield images[kept], targets[kept]
            left -= count
        if not readable:
            raise UserError("not one of the images to export with could be read")

    def images(self, number: int, only: str | None = None) -> Iterator[Tensor]:
        """The images of :meth:`samples`."""
        return (images for images, _ in self.samples(number, only))

    def accuracy(self, model: nn.Module) -> float:
        """Of a network in eval mode on the CPU, on the validation part; of several classes, every one is right.

        Raises:
            UserError: not one of its images can be read.
        """
        batches = evaluation_batches(self.data.validation, self.preprocessing, workers=0)
        how = (
            {} if self.card is None else {"temperature": self.card.temperature, "thresholds": self.card.thresholds}
        )
        evaluation = evaluate_network(model, batches, len(self.data.classes), self.sets, **how)
        if not evaluation.total:
            raise UserError("not one of the validation images can be read, so that nothing tells the accuracy")
        return evaluation.accuracy

    def calibration(self, model: nn.Module) -> dict[str, Any]:
        """How sure a network in eval mode on the CPU is to be, from the validation part."""
        batches = evaluation_batches(self.data.validation, self.preprocessing, workers=0)
        logits, targets, _ = logits_of(model, batches)
        return calibration(logits, targets, self.sets)

    def right(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Which images a network gets right, bool (B,): their class, or every one of their classes.

        Args:
            logits: (B, classes).
            targets: int64 (B,), of :meth:`samples`.
        """
        if self.sets is None:
            return one_class(logits, targets)
        assert self.card is not None
        found = self.card.probabilities(logits) >= torch.tensor(self.card.limits)
        return (found == torch.from_numpy(self.sets.members)[targets]).all(1)


def open_images(run: RunFolder | None, card: ModelCard, data: str | None, data_dir: Path | None) -> ExportImages:
    """The images of a run, or others for a network without one.

    Args:
        run: None for a network without one.
        card: of the network.
        data, data_dir: where a run's images lie now; which images, without a run (default: the digits).

    Raises:
        UserError: they are not there, or not those of the run.
    """
    if run is None or (data is not None and is_stream(run.data_config().data)):
        config = DataConfig(data=data or "digits", data_dir=data_dir)
    else:
        config = run.data_config(data, data_dir)
    if is_stream(config.data):
        raise UserError(f"{config.data} is a stream, which an export cannot sample: pass a folder as --data")
    if run is not None and not is_stream(run.data_config().data):
        opened = run.open_data(data, data_dir, needs=PARTS)
        return ExportImages(opened, card.preprocessing, card, opened.label_sets(card.classes))
    opened = open_data(config)
    if run is not None and not alike(opened.classes, card.classes):
        raise UserError(
            f"{config.data} has other classes than the run was trained on "
            f"({len(opened.classes)} now, {len(card.classes)} then)"
        )
    return ExportImages(opened, card.preprocessing)
