"""What networks see before they classify, and how alike two of them order the images of a batch by it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadaptive.train.weights import classifier_of


class Features:
    """What a network hands to its classifier in its last forward pass."""

    def __init__(self, network: nn.Module) -> None:
        self.last: Tensor | None = None
        classifier_of(network)[0].register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, args: Any) -> None:
        self.last = args[0].flatten(1).float()

    def take(self) -> Tensor:
        """(B, features) float32, with their gradient."""
        assert self.last is not None
        return self.last


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """How far distances between images differ, each over the mean distance of its network: of each image, (B,).

    Nothing is projected, so that features of any number are compared.

    Args:
        student: float32 (B, features).
        teacher: float32 (B, features of its own).

    Source: relational knowledge distillation, the term of distances; Park et al., arXiv 1904.05068.
    """
    return F.smooth_l1_loss(_distances(student), _distances(teacher), reduction="none").mean(1)


def _distances(features: Tensor) -> Tensor:
    squares = features.square().sum(1)
    apart = (squares[:, None] + squares[None] - 2 * features @ features.T).clamp(min=0)
    eye = torch.eye(len(features), dtype=torch.bool, device=features.device)
    distances = torch.where(eye, 0.0, (apart + eye).clamp(min=1e-12).sqrt())
    count = max(len(features) * (len(features) - 1), 1)
    return distances / (distances.sum() / count).clamp(min=1e-12)
