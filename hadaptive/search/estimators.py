"""How the architecture parameters learn from a batch: two estimators of the gradient of the expected loss.

`gdas` draws one path and passes the loss's gradient straight through its gates (GDAS, arXiv 1910.04465, as in
arXiv 2505.22226). Every candidate is computed, so that its gate sees what it would have done, as far as the loss's
slope at the path that was drawn can tell. The memory and time of a step are those of all candidates.

`rloo` runs several paths forward on the same batch and shifts probability towards those with a lower loss than the
mean of the others: the score function with a leave-one-out baseline (Kool et al., "Buy 4 REINFORCE samples, get a
baseline for free!", 2019). It is unbiased, compares whole networks, and needs no backward pass: four paths cost
about as much as one gradient.

The rest is what an architecture step does to the network meanwhile: paths meet the same noise (common random
numbers) and no dropout, so that they differ in their candidates alone, and nothing is left behind.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from hadaptive.data import derive_seed
from hadaptive.nn import ChannelSelection
from hadaptive.search.supernet import Supernet

Loss = Callable[[Tensor], Tensor]  # of the logits (B, classes)


def gdas(
    supernet: Supernet, images: Tensor, loss: Loss, temperature: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One sampled path, with every candidate computed.

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


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise with its batch, as in training, and leave its running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    counts = [norm.num_batches_tracked for norm in norms]
    moments = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, count, momentum in zip(norms, counts, moments, strict=True):
            norm.num_batches_tracked, norm.momentum = count, momentum


@contextlib.contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Let everything that drops at random pass all there is, inside."""
    kinds = nn.modules.dropout._DropoutNd | DropPath
    droppers = [m for m in module.modules() if isinstance(m, kinds) and m.training]
    for dropper in droppers:
        dropper.eval()
    try:
        yield
    finally:
        for dropper in droppers:
            dropper.train()


@contextlib.contextmanager
def common_noise(supernet: Supernet, seed: int) -> Iterator[None]:
    """Give the selections at one position the same noise in every path that runs inside, whatever came before.

    Candidates of a position choose among equally many channels, so that they share it as well.
    """

    def seeded(position: int) -> Callable[[nn.Module, tuple], None]:
        own = derive_seed(seed, position)
        return lambda module, args: torch.manual_seed(own) and None

    handles = [
        module.register_forward_pre_hook(seeded(number))
        for number, candidates in enumerate(supernet.positions)
        for module in candidates.modules()
        if isinstance(module, ChannelSelection)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
