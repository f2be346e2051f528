"""What labels teach: the loss of a batch whose images have one class each, or any number of them."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.data import Mixup
from torch import Tensor

from hadaptive.engine.batches import Batches
from hadaptive.errors import UserError
from hadaptive.train.config import TrainConfig


def class_weights(batches: Batches) -> Tensor:
    """By which each class counts alike, float32 (classes,).

    Of one class an image: weights of its loss, 1 on average over the images. Of several: weights of the images
    that have the class, which then count as much as those that lack it.

    Raises:
        UserError: nobody knows how many images there are of each.
    """
    if batches.counts is None:
        raise UserError("the classes of these images are not known before they are read: leave class_weights out")
    counts = torch.from_numpy(batches.counts).float()
    if batches.sets is not None:
        return torch.where(counts > 0, (batches.train.images - counts).clamp(min=1) / counts.clamp(min=1), 1.0)
    return torch.where(counts > 0, counts.sum() / ((counts > 0).sum() * counts.clamp(min=1)), 1.0)


class Criterion:
    """Cross-entropy of one class an image, or binary cross-entropy of each class, mean over them, of several.

    Args:
        config: of the training.
        batches: of its images.
        device: that losses are computed on.
    """

    def __init__(self, config: TrainConfig, batches: Batches, device: torch.device) -> None:
        self.smoothing = config.optimisation.label_smoothing
        self.weights = class_weights(batches).to(device) if config.class_weights else None
        self.members: Tensor | None = None
        if batches.sets is not None:
            self.members = torch.from_numpy(batches.sets.members).float().to(device)
        self.mixup: Any = None
        if config.mixup or config.cutmix:
            of_sets = self.members is not None  # whose classes are smoothed, not the sets
            smoothing = 0.0 if of_sets else self.smoothing
            self.mixup = Mixup(config.mixup, config.cutmix, label_smoothing=smoothing, num_classes=batches.labels)

    def mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """A batch as the network learns from it: mixed where that is set, targets as the loss takes them.

        Args:
            images: float32 (B, C, H, W).
            targets: int64 (B,), of one class, or of the set of classes.
        """
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        if self.members is not None:
            targets = self.members[targets] if targets.ndim == 1 else targets.float() @ self.members
            targets = targets * (1 - self.smoothing) + 0.5 * self.smoothing
        return images, targets

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the batch, ().

        Args:
            logits: float32 (B, classes).
            targets: of :meth:`mixed`.
        """
        if self.members is not None:
            return F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights)
        return F.cross_entropy(logits, targets, self.weights, label_smoothing=self._smoothing)

    def each(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image, (B,), whose mean is that of the batch."""
        if self.members is not None:
            losses = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=self.weights, reduction="none")
            return losses.mean(1)
        losses = F.cross_entropy(logits, targets, self.weights, reduction="none", label_smoothing=self._smoothing)
        if self.weights is not None and targets.ndim == 1:
            losses = losses / self.weights[targets].mean()  # as the mean over the batch is taken
        return losses

    @property
    def _smoothing(self) -> float:
        return 0.0 if self.mixup is not None else self.smoothing  # which smooths itself
