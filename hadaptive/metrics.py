"""How good a network is on labelled images: accuracy with its interval, per class, and the confusion matrix."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (Wilson, 1927); (0, 1) for no trials."""
    if total == 0:
        return 0.0, 1.0
    p, scale = correct / total, 1 + z * z / total
    centre = (p + z * z / (2 * total)) / scale
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half-width of its 95% Student interval; the half-width is NaN for fewer than two values."""
    from scipy.stats import t

    numbers = list(values)
    mean = sum(numbers) / len(numbers)
    if len(numbers) < 2:
        return mean, float("nan")
    variance = sum((x - mean) ** 2 for x in numbers) / (len(numbers) - 1)
    return mean, float(t.ppf(0.975, len(numbers) - 1)) * math.sqrt(variance / len(numbers))


def welch_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """mean(a) - mean(b) and the half-width of its 95% interval (Welch, 1947).

    A group of one value is given the other's variance; the half-width is NaN where both have one.
    """
    from scipy.stats import t

    difference = statistics.fmean(a) - statistics.fmean(b)
    if len(a) < 2 and len(b) < 2:
        return difference, float("nan")
    variances = [statistics.variance(group) if len(group) > 1 else None for group in (a, b)]
    va, vb = (v if v is not None else next(w for w in variances if w is not None) for v in variances)
    ea, eb = va / len(a), vb / len(b)
    if ea + eb == 0:
        return difference, 0.0
    freedom = (ea + eb) ** 2 / (ea**2 / max(1, len(a) - 1) + eb**2 / max(1, len(b) - 1))
    return difference, float(t.ppf(0.975, freedom)) * math.sqrt(ea + eb)


@dataclass
class Evaluation:
    """Predictions on a labelled part, and what follows from them.

    Attributes:
        targets: (N,) int64, true classes.
        predictions: (N,) int64, predicted classes.
        top5: (N,) bool, whether the truth is among the five likeliest.
        losses: (N,) float32, cross-entropy, nats.
        num_classes: outputs of the network.
        unreadable: indices of the images that could not be read.
    """

    targets: Tensor
    predictions: Tensor
    top5: Tensor
    losses: Tensor
    num_classes: int
    unreadable: list[int]

    @property
    def total(self) -> int:
        """Images that counted."""
        return len(self.targets)

    @property
    def correct(self) -> int:
        """Images classified correctly."""
        return int((self.targets == self.predictions).sum())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]; NaN for no images."""
        return self.correct / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        return wilson_interval(self.correct, self.total)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.losses.double().mean()) if self.total else float("nan")

    def confusion(self) -> Tensor:
        """(classes, classes) int64: rows are true classes, columns predicted ones."""
        from torchmetrics.functional.classification import multiclass_confusion_matrix

        return multiclass_confusion_matrix(self.predictions, self.targets, self.num_classes)

    def per_class(self, names: list[str]) -> list[dict[str, Any]]:
        """For each class: name, images, recall (share of them found), precision (share of its calls right)."""
        matrix = self.confusion()
        rows = []
        for i, name in enumerate(names):
            images, called, hit = int(matrix[i].sum()), int(matrix[:, i].sum()), int(matrix[i, i])
            rows.append(
                {
                    "class": name,
                    "images": images,
                    "recall": hit / images if images else float("nan"),
                    "precision": hit / called if called else float("nan"),
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        low, high = self.interval
        result = {
            "images": self.total,
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "loss": self.loss,
            "skipped": len(self.unreadable),
        }
        if self.num_classes > 5 and self.total:
            result["top5"] = float(self.top5.double().mean())
        return result


@torch.no_grad()
def evaluate_model(
    model: nn.Module, loader: DataLoader, num_classes: int, *, accelerator: Any = None, channels_last: bool = True
) -> Evaluation:
    """Run a network over a labelled loader, in eval mode, and put it back into the mode it was in.

    Args:
        model: on the accelerator's device (the CPU without one).
        loader: yields (images, targets, unreadable) as :class:`hadaptive.data.ImageDataset` does.
        num_classes: outputs of the network.
        accelerator: gathers over processes and sets the precision; None for plain CPU.
        channels_last: lay the images out as NHWC.
    """
    was_training = model.training
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    for images, targets, unreadable in loader:
        if channels_last:
            images = images.to(memory_format=torch.channels_last)
        if accelerator is None:
            logits = model(images)
        else:
            with accelerator.autocast():
                logits = model(images)
        logits = logits.float()
        known = targets.clamp(min=0)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        part = (
            targets,
            logits.argmax(1),
            (best == known[:, None]).any(1),
            F.cross_entropy(logits, known, reduction="none"),
            unreadable,
        )
        if accelerator is not None:
            part = accelerator.gather_for_metrics(part)
        parts.append(tuple(tensor.cpu() for tensor in part))
    model.train(was_training)
    if not parts:
        empty = torch.empty(0, dtype=torch.int64)
        return Evaluation(empty, empty, empty.bool(), empty.float(), num_classes, [])
    targets, predictions, top5, losses, unreadable = (torch.cat(columns) for columns in zip(*parts, strict=True))
    keep = targets >= 0
    bad = sorted(set(unreadable[unreadable >= 0].tolist()))
    return Evaluation(targets[keep], predictions[keep], top5[keep], losses[keep], num_classes, bad)
