"""Networks and layers as the tests of them build, fill and feed them."""

import pytest
import timm
import torch
from torch import nn

from hadaptive.models.shipped import FOUND

NAMES = ["hadaptive_net_s", "hadaptive_net_m", "hadaptive_net_l"]
REGISTERED = ["hadaptive_net", *NAMES, *FOUND]
each_net = pytest.mark.parametrize("name", NAMES, ids=["s", "m", "l"])


def images(batch=2, side=64, channels=3, seed=1):
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


def create(name="hadaptive_net_s", **options):
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def settled(name="hadaptive_net_s", **options):
    """An untrained network in eval mode whose BatchNorms know their inputs: without that, activations shrink
    from layer to layer until every output looks the same."""
    model = create(name, **options)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(8, channels=model.in_chans))
    return model.eval()


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def same_under_transforms(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What a module in eval mode makes of x, the same scripted, traced, exported, compiled and mapped."""
    with torch.no_grad():
        expected = module(x)
        close(torch.jit.script(module)(x), expected)
        close(torch.jit.trace(module, x)(x), expected)
        close(torch.export.export(module, (x,)).module()(x), expected)
        close(torch.compile(module, fullgraph=True, backend="eager")(x), expected)
    close(torch.vmap(module)(x.unsqueeze(1)).squeeze(1), expected)
    return expected


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Parameters and running statistics that are not the initial ones (temperatures stay)."""
    generator = seeded(seed)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2.0, generator=generator)
            elif tensor.is_floating_point() and "select." not in name:
                tensor.normal_(0.1, 0.6, generator=generator)
    return module
