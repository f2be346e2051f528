"""Networks that were never trained, as they are exported and timed before training."""

import torch
from torch import Tensor, nn

from hadaptive.nn import BatchNorm, DySoft, expansions


@torch.no_grad()
def liven(network: nn.Module, images: Tensor) -> nn.Module:
    """Give an untrained network constants as a trained one has them, from PyTorch's generator; in eval mode after.

    With BatchNorm's first statistics outputs all but vanish, and with those of other images or selections products
    of products grow beyond all bounds: a comparison says nothing then. Constants that are exactly zero, as those
    of products at first, are removed by whatever simplifies a graph.

    Args:
        network: changed in place.
        images: that give BatchNorm its statistics, (B, C, H, W).
    """
    norms = [m for m in network.eval().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for layer in expansions(network).values():
        if isinstance(layer.norm, DySoft | BatchNorm):
            layer.norm.bias.normal_(0, 0.1)
    return network.eval()
