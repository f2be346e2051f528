"""The layers that a NetSpec's parts describe.

Source: arXiv 2505.22226, section 4.
"""

from typing import Any

import torch
from torch import nn
from torch.types import Device

from hadaptive.models.layer_spec import BlockSpec, ConvSpec
from hadaptive.models.spec import NetSpec
from hadaptive.nn import (
    ACTIVATIONS,
    AdaptiveBottleneck,
    AdaptiveCrossHadamard,
    GhostExpansion,
    InvertedExpansion,
    Layers,
    PolyBlock,
    ProductBlock,
)


def conv_norm_act(
    in_channels: int,
    spec: ConvSpec,
    device: Device = None,
    dtype: torch.dtype | None = None,
    *,
    activation: str = "hardswish",
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, and the activation if the spec says so."""
    dd: Any = {"device": device, "dtype": dtype}
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, spec.channels, spec.kernel, spec.stride, spec.rim, bias=False, **dd),
        nn.BatchNorm2d(spec.channels, **dd),
    ]
    return Layers(*layers, ACTIVATIONS[activation]()) if spec.act else Layers(*layers)


def build_layer(in_channels: int, layer: ConvSpec | BlockSpec, spec: NetSpec, device: Device = None) -> nn.Module:
    """A plain convolution, or a block without stochastic depth, of a network that `spec` describes."""
    if isinstance(layer, ConvSpec):
        return conv_norm_act(in_channels, layer, device, activation=spec.activation)
    return build_block(in_channels, layer, spec, 0.0, device=device)


def build_block(
    in_channels: int,
    block: BlockSpec,
    spec: NetSpec,
    drop_path: float,
    number: int = 0,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The block that `block` describes, the one of this number in its network."""
    dd: Any = {"device": device, "dtype": dtype}
    if block.kind == "conv":
        conv = ConvSpec(block.channels, block.kernel, block.stride, block.act)
        return conv_norm_act(in_channels, conv, **dd, activation=spec.activation)
    act_layer = ACTIVATIONS[spec.activation]
    how: Any = {"reparam": spec.reparam, "layer_scale_init": spec.layer_scale, **dd}
    if block.kind == "products":
        assert block.k is not None
        assert block.width is not None
        return ProductBlock(
            in_channels,
            block.k,
            block.width,
            block.kernel,
            block.norm,
            drop_path,
            **how,
            act_layer=act_layer if block.act else None,
            after=block.after,
        )
    if block.kind == "poly":
        act = act_layer if block.act else None
        return PolyBlock(in_channels, block.kernel, drop_path, **how, act_layer=act)
    expansion = _expansion(in_channels, block, spec, number, **dd)
    width = expansion.out_channels
    return AdaptiveBottleneck(
        expansion,
        in_channels,
        width,
        block.channels,
        block.kernel,
        block.stride,
        drop_path,
        **how,
        act_layer=act_layer,
    )


def _expansion(
    in_channels: int, block: BlockSpec, spec: NetSpec, number: int, **dd: Any
) -> AdaptiveCrossHadamard | GhostExpansion | InvertedExpansion:
    act_layer = ACTIVATIONS[spec.activation]
    if block.k is not None:
        how: Any = {"pairing": block.pairing, "mix": spec.mix, "join": block.join}
        if block.pairing == "triangle":
            for name in ("order", "surrogate", "selection", "noise", "temperature", "score_kernel"):
                how[name] = getattr(spec, name)
            how["seed"] = number if spec.selection == "random" else 0
        return AdaptiveCrossHadamard(in_channels, block.k, block.norm, **dd, **how)
    assert block.ratio is not None
    if block.kind == "ghost":
        return GhostExpansion(in_channels, block.ratio, **dd, act_layer=act_layer, join=block.join)
    return InvertedExpansion(
        in_channels, block.ratio, **dd, act=block.act, act_layer=act_layer, groups=block.groups
    )
