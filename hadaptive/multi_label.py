"""How good a network is on images that have any number of classes each: every class is a question of its own."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hadaptive.data import LabelSets
from hadaptive.metrics import (
    Evaluation,
    binned_gap,
    evaluate_model,
    fit_temperature,
    logits_of,
    wilson_interval,
)

FEWEST = 5  # images of a class, and without it, from which its threshold is found


@dataclass
class MultiLabelEvaluation:
    """Probabilities on a labelled part, and what follows from them.

    Attributes:
        truth: (N, C) bool, the classes of each image.
        probabilities: (N, C) float32, that the network gives them.
        thresholds: (C,) float32, from which probability each class counts.
        losses: (N,) float32, binary cross-entropy, mean over the classes, nats.
        unreadable: indices of the images that could not be read.
    """

    truth: Tensor
    probabilities: Tensor
    thresholds: Tensor
    losses: Tensor
    unreadable: list[int]

    @property
    def total(self) -> int:
        """Images that counted."""
        return len(self.truth)

    @property
    def found(self) -> Tensor:
        """(N, C) bool, the classes that the network says."""
        return self.probabilities >= self.thresholds

    @property
    def correct(self) -> int:
        """Images of which every class is right."""
        return int((self.found == self.truth).all(1).sum())

    @property
    def accuracy(self) -> float:
        """Share of the images of which every class is right; NaN for no images."""
        return self.correct / self.total if self.total else math.nan

    @cached_property
    def average_precisions(self) -> np.ndarray:
        """(C,) float64: area under precision over recall of each class; NaN where no image has it."""
        from sklearn.metrics import average_precision_score

        columns = zip(self.truth.T.numpy(), self.probabilities.nan_to_num(0).T.numpy(), strict=True)
        return np.array([average_precision_score(*column) if column[0].any() else math.nan for column in columns])

    @property
    def score(self) -> float:
        """Mean average precision over the classes that there are; what weights are chosen by. NaN for none."""
        known = self.average_precisions[~np.isnan(self.average_precisions)]
        return float(known.mean()) if len(known) else math.nan

    @property
    def loss(self) -> float:
        """Mean binary cross-entropy in nats."""
        return float(self.losses.double().mean()) if self.total else math.nan

    @property
    def calibration_error(self) -> float:
        """Expected calibration error in [0, 1] of all probabilities alike, in fifteen equal bins."""
        return binned_gap(self.probabilities.flatten(), self.truth.flatten())

    def per_class(self, names: list[str]) -> list[dict[str, Any]]:
        """For each class: name, images that have it, average precision, threshold, recall, precision, F1.

        A share of nothing is None.
        """
        hits, called, images = ((both).sum(0) for both in (self.truth & self.found, self.found, self.truth))
        rows = []
        for i, name in enumerate(names):
            hit, calls, there = int(hits[i]), int(called[i]), int(images[i])
            precision = self.average_precisions[i]
            rows.append(
                {
                    "class": name,
                    "images": there,
                    "average_precision": None if math.isnan(precision) else float(precision),
                    "threshold": round(float(self.thresholds[i]), 6),
                    "recall": hit / there if there else None,
                    "precision": hit / calls if calls else None,
                    "f1": 2 * hit / (there + calls) if there + calls else None,
                }
            )
        return rows

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON; `accuracy` is of images of which every class is right."""
        low, high = wilson_interval(self.correct, self.total)
        rows = self.per_class([""] * len(self.thresholds))
        f1 = [row["f1"] for row in rows if row["f1"] is not None]
        hits = int((self.truth & self.found).sum())
        said = int(self.truth.sum() + self.found.sum())
        return {
            "images": self.total,
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "mean_average_precision": self.score,
            "macro_f1": float(np.mean(f1)) if f1 else None,
            "micro_f1": 2 * hits / said if said else None,
            "loss": self.loss,
            "calibration_error": self.calibration_error,
            "skipped": len(self.unreadable),
        }


def evaluate_multi_label(
    model: nn.Module,
    loader: DataLoader,
    sets: LabelSets,
    *,
    accelerator: Any = None,
    channels_last: bool = True,
    temperature: float = 1.0,
    thresholds: tuple[float, ...] | None = None,
) -> MultiLabelEvaluation:
    """Run a network over a labelled loader, in eval mode, and put it back into the mode it was in.

    Args:
        model, loader, accelerator, channels_last, temperature: as of :func:`hadaptive.metrics.evaluate_model`.
        sets: the classes of each target.
        thresholds: from which probability each class counts; None for one half.
    """
    logits, targets, unreadable = logits_of(model, loader, accelerator=accelerator, channels_last=channels_last)
    truth = torch.from_numpy(sets.members)[targets]
    limits = torch.tensor(thresholds) if thresholds else torch.full((len(sets.classes),), 0.5)
    losses = F.binary_cross_entropy_with_logits(logits, truth.float(), reduction="none").mean(1)
    return MultiLabelEvaluation(truth, (logits / temperature).sigmoid(), limits, losses, unreadable)


def fit_multi_label(logits: Tensor, truth: Tensor) -> tuple[float, tuple[float, ...]]:
    """The temperature as of :func:`hadaptive.metrics.fit_temperature`, and the thresholds of the classes.

    A threshold is that of the best F1 on these images; one half where too few images have the class, or lack it.

    Args:
        logits: float32 (N, C), of images that the network has not learned from.
        truth: bool (N, C).
    """
    from sklearn.metrics import precision_recall_curve

    temperature = fit_temperature(logits, truth)
    thresholds = []
    for values, there in zip((logits / temperature).sigmoid().T, truth.T, strict=True):
        if min(int(there.sum()), int((~there).sum())) < FEWEST or not bool(values.isfinite().all()):
            thresholds.append(0.5)
            continue
        precision, recall, limits = precision_recall_curve(there.numpy(), values.numpy())
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
        best = int(f1[:-1].argmax())
        # Halfway to the next lower probability: an image a little less likely than the last one counts as well.
        below = limits[best - 1] if best else limits[best]
        thresholds.append(round(float(limits[best] + below) / 2, 6))
    return temperature, tuple(thresholds)


def evaluate_network(
    model: nn.Module,
    loader: DataLoader,
    num_classes: int,
    sets: LabelSets | None,
    *,
    thresholds: tuple[float, ...] | None = None,
    **how: Any,
) -> Evaluation | MultiLabelEvaluation:
    """:func:`evaluate_multi_label` where images have any number of classes, else evaluate_model.

    Args:
        model, loader, num_classes, how: as of :func:`hadaptive.metrics.evaluate_model`.
        sets: the classes of each target; None where that is the one of its number.
        thresholds: from which probability each class counts, of several; of one class an image they mean nothing.
    """
    if sets is None:
        return evaluate_model(model, loader, num_classes, **how)
    return evaluate_multi_label(model, loader, sets, thresholds=thresholds, **how)


def calibration(logits: Tensor, targets: Tensor, sets: LabelSets | None) -> dict[str, Any]:
    """How sure a network is to be: `temperature`, and `thresholds` where images have any number of classes.

    Args:
        logits: float32 (N, classes), of images that the network has not learned from.
        targets: int64 (N,).
        sets: as of :func:`evaluate_network`.
    """
    if sets is None:
        return {"temperature": fit_temperature(logits, targets)}
    temperature, thresholds = fit_multi_label(logits, torch.from_numpy(sets.members)[targets])
    return {"temperature": temperature, "thresholds": thresholds}
