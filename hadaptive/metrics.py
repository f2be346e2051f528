"""How good a network is on labelled images: accuracy with its interval, per class, and the confusion matrix."""

import math
import statistics
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

FEW = 100  # images, below which a share alone says more than is known


def wilson_interval(correct: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a proportion (Wilson, 1927); (0, 1) for no trials."""
    if total == 0:
        return 0.0, 1.0
    from scipy.stats import binomtest

    interval = binomtest(correct, total).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Iterable[float]) -> tuple[float, float]:
    """Mean and half-width of its 95% Student interval; the half-width is NaN for fewer than two values."""
    from scipy.stats import t

    numbers = list(values)
    mean = statistics.fmean(numbers)
    if len(numbers) < 2:
        return mean, math.nan
    return mean, float(t.ppf(0.975, len(numbers) - 1)) * statistics.stdev(numbers) / math.sqrt(len(numbers))


def welch_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """mean(a) - mean(b) and the half-width of its 95% interval (Welch, 1947).

    One value against several is a new observation against a sample, so that its interval is that of a prediction
    from the sample; the half-width is NaN where both have one value.
    """
    from scipy.stats import t, ttest_ind

    difference = statistics.fmean(a) - statistics.fmean(b)
    if len(a) < 2 or len(b) < 2:
        sample = max(a, b, key=len)
        if len(sample) < 2:
            return difference, math.nan
        spread = statistics.stdev(sample) * math.sqrt(1 + 1 / len(sample))
        return difference, float(t.ppf(0.975, len(sample) - 1)) * spread
    if statistics.variance(a) + statistics.variance(b) == 0:
        return difference, 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one of the groups may be all the same
        interval = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)  # pyright: ignore
    return difference, float(interval.high - interval.low) / 2


def with_interval(mean: float, half: float, sign: str = "") -> str:
    """A mean and the half-width of its interval to two digits, without the latter where there is none."""
    return f"{mean:{sign}.2f}" if math.isnan(half) else f"{mean:{sign}.2f} ± {half:.2f}"


def share_text(correct: int, total: int, interval: bool = False) -> str:
    """A share as a person is told it: with the count where that is small, and with Wilson's 95% interval.

    Args:
        correct, total: counts.
        interval: say that too.
    """
    if total == 0:
        return "of no images"
    digits = 0 if total < FEW else 2
    inside = f"{correct / total:.{digits}%}"
    if not interval:
        return f"{correct} of {total} ({inside})" if total < FEW else inside
    low, high = (f"{end:.{digits}%}" for end in wilson_interval(correct, total))
    said = f"95% interval {low} to {high}"
    if total < FEW:
        return f"{correct} of {total} ({inside}, {said})"
    return f"{inside} ({said}) on {total:,} images"


def binned_gap(probabilities: Tensor, happened: Tensor) -> float:
    """How far probabilities lie from shares, in fifteen equal bins, on average; NaN for none.

    Args:
        probabilities: float (N,), in [0, 1].
        happened: bool (N,).
    """
    if not len(probabilities):
        return math.nan
    bins = (15 * probabilities).long().clamp(0, 14)
    gaps = torch.zeros(15, dtype=torch.double).index_add_(0, bins, probabilities.double() - happened.double())
    return float(gaps.abs().sum() / len(probabilities))


def told(figures: dict[str, Any], interval: bool = False) -> str:
    """What a summary of an evaluation comes to, for a person.

    Args:
        figures: of :meth:`Evaluation.summary`, or of a multi-label one.
        interval: say that too.
    """
    correct = round((figures["accuracy"] or 0) * figures["images"])
    share = share_text(correct, figures["images"], interval)
    precision = figures.get("mean_average_precision")
    if precision is None:
        return f"accuracy {share}"
    return f"mean average precision {precision:.3f}, every class right {share}"


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
        confidences: (N,) float32, probability that the network gives its prediction; None where nobody looked.
    """

    targets: Tensor
    predictions: Tensor
    top5: Tensor
    losses: Tensor
    num_classes: int
    unreadable: list[int]
    confidences: Tensor | None = None

    @property
    def total(self) -> int:
        """Images that counted."""
        return len(self.targets)

    @property
    def right(self) -> Tensor:
        """(N,) bool, which images are classified correctly."""
        return self.targets == self.predictions

    @property
    def correct(self) -> int:
        """Images classified correctly."""
        return int(self.right.sum())

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy in [0, 1]; NaN for no images."""
        return self.correct / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95% interval of the accuracy."""
        return wilson_interval(self.correct, self.total)

    @property
    def score(self) -> float:
        """What weights are chosen by: the accuracy."""
        return self.accuracy

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in [0, 1]: how far confidence lies from accuracy, in fifteen equal bins.

        Source: Guo et al., arXiv 1706.04599. NaN for no images.
        """
        return math.nan if self.confidences is None else binned_gap(self.confidences, self.right)

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return float(self.losses.double().mean()) if self.total else math.nan

    def confusion(self) -> Tensor:
        """(classes, classes) int64: rows are true classes, columns predicted ones."""
        pairs = self.targets * self.num_classes + self.predictions
        counts = torch.bincount(pairs, minlength=self.num_classes**2)
        return counts.reshape(self.num_classes, self.num_classes)

    def per_class(self, names: list[str]) -> list[dict[str, Any]]:
        """For each class: name, images, recall (share of them found), precision (share of its calls right).

        A share of nothing is None.
        """
        matrix = self.confusion()
        rows = []
        for i, name in enumerate(names):
            images, called, hit = int(matrix[i].sum()), int(matrix[:, i].sum()), int(matrix[i, i])
            rows.append(
                {
                    "class": name,
                    "images": images,
                    "recall": hit / images if images else None,
                    "precision": hit / called if called else None,
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
        if self.confidences is not None:
            result["calibration_error"] = self.calibration_error
        if self.num_classes > 5 and self.total:
            result["top5"] = float(self.top5.double().mean())
        return result


def _said(
    model: nn.Module, loader: DataLoader, accelerator: Any, channels_last: bool
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Logits of this process's share of each batch, float32, their targets, and which could not be read."""
    for images, targets, unreadable in loader:
        images = images.to(memory_format=torch.channels_last) if channels_last else images
        with nullcontext() if accelerator is None else accelerator.autocast():
            logits = model(images)
        yield logits.float(), targets, unreadable


def _gathered(part: tuple[Tensor, ...], accelerator: Any) -> tuple[Tensor, ...]:
    """The parts of all processes, on the CPU."""
    part = part if accelerator is None else accelerator.gather_for_metrics(part)
    return tuple(tensor.cpu() for tensor in part)


MISTAKES = 10  # fewer say too little of how sure a network should be


@torch.no_grad()
def logits_of(
    model: nn.Module, loader: DataLoader, *, accelerator: Any = None, channels_last: bool = True
) -> tuple[Tensor, Tensor, list[int]]:
    """What a network says in eval mode of the images that can be read; it is put back into the mode it was in.

    Args:
        model, loader, accelerator, channels_last: as of :func:`evaluate_model`.

    Returns:
        Logits, float32 (N, classes), targets, int64 (N,), and indices of the images that could not be read.
    """
    was_training = model.training
    model.eval()
    parts = [_gathered(part, accelerator) for part in _said(model, loader, accelerator, channels_last)]
    model.train(was_training)
    logits, targets, unreadable = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return logits[targets >= 0], targets[targets >= 0], _indices(unreadable)


def _indices(unreadable: Tensor) -> list[int]:
    return sorted(set(unreadable[unreadable >= 0].tolist()))


def fit_temperature(logits: Tensor, targets: Tensor) -> float:
    """The number that logits are divided by to be as sure as they are right; 1 where there are too few mistakes.

    Source: temperature scaling, Guo et al., arXiv 1706.04599.

    Args:
        logits: float32 (N, classes), of images that the network has not learned from.
        targets: int64 (N,); or bool (N, classes) where an image has any number of classes.
    """
    from scipy.optimize import minimize_scalar

    finite = torch.isfinite(logits).all(1)
    logits, targets = logits[finite].double(), targets[finite]
    several = targets.ndim == 2
    wrong = ((logits > 0) != targets).any(1) if several else logits.argmax(1) != targets
    if int(wrong.sum()) < MISTAKES:
        return 1.0
    loss_of = F.binary_cross_entropy_with_logits if several else F.cross_entropy
    truth = targets.double() if several else targets

    def loss(exponent: float) -> float:
        return float(loss_of(logits / math.exp(exponent), truth))

    found: Any = minimize_scalar(loss, bounds=(math.log(0.05), math.log(20)), method="bounded")
    return math.exp(float(found.x))


@torch.no_grad()
def evaluate_model(
    model: nn.Module,
    loader: DataLoader,
    num_classes: int,
    *,
    accelerator: Any = None,
    channels_last: bool = True,
    temperature: float = 1.0,
) -> Evaluation:
    """Run a network over a labelled loader, in eval mode, and put it back into the mode it was in.

    Args:
        model: on the accelerator's device (the CPU without one).
        loader: yields (images, targets, unreadable) as :class:`hadaptive.data.ImageDataset` does.
        num_classes: outputs of the network.
        accelerator: gathers over processes and sets the precision; None for plain CPU.
        channels_last: lay the images out as NHWC.
        temperature: that logits are divided by before they are probabilities.
    """
    was_training = model.training
    model.eval()
    parts: list[tuple[Tensor, ...]] = []
    for logits, targets, unreadable in _said(model, loader, accelerator, channels_last):
        known = targets.clamp(min=0)
        best = logits.topk(min(5, logits.shape[1]), dim=1).indices
        part = (
            targets,
            logits.argmax(1),
            (best == known[:, None]).any(1),
            F.cross_entropy(logits, known, reduction="none"),
            (logits / temperature).softmax(1).amax(1),
            unreadable,
        )
        parts.append(_gathered(part, accelerator))
    model.train(was_training)
    if not parts:
        empty = torch.empty(0, dtype=torch.int64)
        return Evaluation(empty, empty, empty.bool(), empty.float(), num_classes, [], empty.float())
    targets, predictions, top5, losses, confidences, unreadable = (
        torch.cat(columns) for columns in zip(*parts, strict=True)
    )
    keep = targets >= 0
    bad = _indices(unreadable)
    return Evaluation(
        targets[keep], predictions[keep], top5[keep], losses[keep], num_classes, bad, confidences[keep]
    )
