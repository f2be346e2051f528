"""Where in an image a network finds a class: class-activation maps, by captum.

The map is the sum over channels of the last features times their gradients, so that what it shows is what the
logit is made of, to first order; of a network that only averages its last map it is Grad-CAM's. Source: arXiv
2011.08891.
"""

import contextlib
import functools
import math
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hadaptive.data import Preprocessing
from hadaptive.errors import first_line
from hadaptive.packages import obstacle, quiet

ENOUGH = 16  # places, for a map to say where


class NoMapError(Exception):
    """A network, or this machine, has no maps: the message says why."""


class _Features(nn.Module):
    """What a network's head gets, as a layer."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = [network]  # not a child: hooks are on this layer alone

    def forward(self, x: Tensor) -> Tensor:
        return self.network[0].forward_features(x)


class _Split(nn.Module):
    """A network as its features and its head, as timm's are."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.features = network, _Features(network)

    def forward(self, x: Tensor) -> Tensor:
        return self.network.forward_head(self.features(x))


@torch.no_grad()
def _layer(network: Any, split: _Split, image: Tensor) -> tuple[nn.Module, int]:
    """Where to look, and how many channels there are: the last features, or earlier ones of enough places.

    Behind its last block a network with a class token looks at nothing else: other tokens have no gradient there.
    """
    width = network.num_features
    if getattr(network, "num_prefix_tokens", 0):
        norms = [module for name, module in network.named_modules() if name.rpartition(".")[2] == "norm1"]
        return (norms[-1] if norms else split.features), width
    places: list[tuple[nn.Module, int]] = [(split.features, width)]
    for info in reversed(getattr(network, "feature_info", None) or []):
        try:
            places.append((network.get_submodule(info["module"]), info["num_chs"]))
        except (AttributeError, KeyError, TypeError):
            continue
    sizes: dict[nn.Module, int] = {}

    def measure(module: nn.Module, args: Any, output: Any, channels: int) -> None:
        with contextlib.suppress(NoMapError, AttributeError):
            sizes[module] = _as_maps(output, channels, network)[0].numel()

    handles = [
        module.register_forward_hook(functools.partial(measure, channels=channels)) for module, channels in places
    ]
    try:
        split(image)
    finally:
        for handle in handles:
            handle.remove()
    places = [place for place in places if place[0] in sizes]
    if not places:
        raise NoMapError("its features are no map of the image")
    enough = min(ENOUGH, max(sizes.values()))
    return next(place for place in places if sizes[place[0]] >= enough)


def _as_maps(values: Tensor, channels: int, network: Any) -> Tensor:
    """(B, H, W) of a layer's values, summed over channels, which are first or last, or of tokens."""
    if values.dim() == 4:
        return values.sum(3 if values.shape[1] != channels and values.shape[3] == channels else 1)
    if values.dim() == 3:
        tokens = values[:, getattr(network, "num_prefix_tokens", 0) :].sum(2)
        height, width = getattr(getattr(network, "patch_embed", None), "grid_size", None) or (0, 0)
        if height * width != tokens.shape[1]:
            height = width = math.isqrt(tokens.shape[1])
        if height * width == tokens.shape[1]:
            return tokens.reshape(-1, height, width)
    raise NoMapError("its last features are no map of the image")


def activation_maps(network: nn.Module, images: Tensor, classes: list[int]) -> Tensor:
    """How much each place of images speaks for a class, in [0, 1]: (B, H, W), of the size of the images.

    The largest is 1, or 0 where none speaks for it.

    Args:
        network: of timm's interface, in eval mode, on the CPU.
        images: (B, C, H, W), as it takes them.
        classes: a number for each image.

    Raises:
        NoMapError: captum is not there, or the network has no map to look at.
    """
    if (why := obstacle("captum")) is not None:
        raise NoMapError(f'the package captum {why}: pip install "hadaptive[cam]"')
    if not (hasattr(network, "forward_features") and hasattr(network, "forward_head")):
        raise NoMapError("it does not part into features and a head")
    from captum.attr import LayerGradientXActivation

    split = _Split(network).eval()
    try:
        with quiet(), torch.enable_grad():
            layer, channels = _layer(network, split, images[:1])
            method = LayerGradientXActivation(split, layer)
            found: Any = method.attribute(images.clone().requires_grad_(), target=classes)
            maps = _as_maps(found.detach().float(), channels, network)
    except (RuntimeError, AssertionError, AttributeError, TypeError, IndexError) as error:
        raise NoMapError(first_line(error)) from None
    if not bool(torch.isfinite(maps).all()) or not bool(maps.any()):
        raise NoMapError("no place of its last features speaks for or against a class")
    maps = maps.clamp(min=0)
    maps = torch.nn.functional.interpolate(maps[:, None], images.shape[2:], mode="bilinear")[:, 0]
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=1e-12)


def overlay(image: Tensor, heat: Tensor, how: Preprocessing, side: int = 155) -> Image.Image:
    """An image as the network gets it, with a map on it.

    Args:
        image: (C, H, W), normalised.
        heat: (H, W), in [0, 1].
        how: images are made tensors for the network.
        side: pixels of the result.
    """
    from matplotlib import colormaps

    mean, std = (torch.tensor(values[: how.in_chans])[:, None, None] for values in (how.mean, how.std))
    pixels = (image * std + mean).clamp(0, 1)
    pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels[:3]
    grey = pixels.mean(0).numpy()[..., None].repeat(3, axis=2)  # colours are the map's
    share = 0.65 * heat.numpy()[..., None] ** 0.7
    mixed = (1 - share) * grey + share * colormaps["inferno"](0.25 + 0.75 * heat.numpy())[..., :3]
    picture = Image.fromarray((255 * mixed).round().clip(0, 255).astype(np.uint8))
    return picture.resize((side, max(1, round(side * picture.height / picture.width))), Image.Resampling.BICUBIC)
