"""Networks that were never trained, as they are exported and timed before training."""

import torch
from torch import Tensor, nn

from hadaptive.errors import UserError
from hadaptive.measure.formats import source_of
from hadaptive.models import HadaptiveNet, create_model
from hadaptive.nn import BatchNorm, DySoft, FixedSelection, expansions
from hadaptive.nn.reparam import reparameterized


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


def fix_selections(network: nn.Module) -> None:
    """Freeze every selection to channels that PyTorch's generator draws: they are as fast as any others."""
    for layer in expansions(network).values():
        if not isinstance(layer.select, FixedSelection):
            layer.freeze(torch.randperm(layer.channels)[: layer.k])


def untrained(name: str, image_size: int) -> nn.Module:
    """A network in eval mode with seeded random weights and none of the constants that would make work vanish.

    What trains with branches, as RepGhost, has them in one convolution.

    Args:
        name: of a network, with ":frozen" or ":int8" at its end for fixed selections.
        image_size: of the noise that gives BatchNorm its statistics.
    """
    source, variant = source_of(name)
    torch.manual_seed(0)
    network = create_model(source, num_classes=1000, image_size=image_size)
    if variant == "frozen" and type(network) is not HadaptiveNet:
        raise UserError(f"{source} has no selections to freeze: leave out :frozen")
    liven(network, torch.randn(4, 3, image_size, image_size))
    if variant and type(network) is HadaptiveNet:
        fix_selections(network)
    return reparameterized(network)
