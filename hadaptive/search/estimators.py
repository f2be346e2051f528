"""How the architecture parameters learn from a batch: two estimators of the gradient of the expected loss.

`gdas` runs one path and passes the loss's gradient straight through its gates (GDAS, arXiv 1910.04465, as in
arXiv 2505.22226). What a candidate that was not run would have done is not in it: it sees the loss's slope at the
path that was.

`rloo` runs several paths forward on the same batch and shifts probability towards those with a lower loss than the
mean of the others: the score function with a leave-one-out baseline (Kool et al., "Buy 4 REINFORCE samples, get a
baseline for free!", 2019). It is unbiased, compares whole networks, and needs no backward pass: four paths cost
about as much as one gradient.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hadaptive.search.supernet import Supernet

Loss = Callable[[Tensor], Tensor]  # of the logits (B, classes)


def gdas(
    supernet: Supernet, images: Tensor, loss: Loss, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One sampled path.

    Returns:
        A scalar whose gradient with respect to alpha is the estimate, and the cross-entropy.
    """
    value = loss(supernet(images, supernet.sample(temperature, generator)))
    return value, value.detach()


def rloo(
    supernet: Supernet, images: Tensor, loss: Loss, paths: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Several sampled paths, each compared with the mean of the others.

    Args:
        paths: at least 2.

    Returns:
        A scalar whose gradient with respect to alpha is the estimate, and the mean cross-entropy.
    """
    choices = [supernet.sample(1.0, generator).choice for _ in range(paths)]
    with torch.no_grad():
        losses = torch.stack([loss(supernet(images, choice)) for choice in choices])
    advantages = (losses - losses.mean()) / (paths - 1)
    logs = [alpha.float().log_softmax(0) for alpha in supernet.alpha]
    scores = torch.stack(
        [torch.stack([own[c] for own, c in zip(logs, choice, strict=True)]).sum() for choice in choices]
    )
    return (advantages * scores).sum(), losses.mean()
