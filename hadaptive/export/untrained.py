"""Networks that were never trained, as they are exported and timed before training."""

import torch
from torch import nn

from hadaptive.nn import BatchNorm, DySoft, expansions


@torch.no_grad()
def liven(network: nn.Module, size: tuple[int, int, int]) -> nn.Module:
    """Give an untrained network constants as a trained one has them, from PyTorch's generator; in eval mode after.

    With BatchNorm's first statistics outputs all but vanish, and a comparison says nothing; constants that are
    exactly zero, as those of products at first, are removed by whatever simplifies a graph.

    Args:
        network: changed in place.
        size: of the noise images that give BatchNorm its statistics, (C, H, W).
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    network.train()(torch.randn(4, *size))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for layer in expansions(network).values():
        if isinstance(layer.norm, DySoft | BatchNorm):
            layer.norm.bias.normal_(0, 0.1)
    return network.eval()
