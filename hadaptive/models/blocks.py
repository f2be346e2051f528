"""The layers that a NetSpec's parts describe.

Source: arXiv 2505.22226, section 4.
"""

from typing import Any

import torch
from torch import nn
from torch.types import Device

from hadaptive.models.spec import BlockSpec, ConvSpec, NetSpec
from hadaptive.nn import AdaptiveBottleneck, AdaptiveCrossHadamard, GhostExpansion, InvertedExpansion, Layers


def conv_norm_act(
    in_channels: int, spec: ConvSpec, device: Device = None, dtype: torch.dtype | None = None
) -> nn.Sequential:
    """Convolution without bias, BatchNorm, and Hardswish if the spec says so."""
    dd: Any = {"device": device, "dtype": dtype}
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, spec.channels, spec.kernel, spec.stride, spec.rim, bias=False, **dd),
        nn.BatchNorm2d(spec.channels, **dd),
    ]
    return Layers(*layers, nn.Hardswish()) if spec.act else Layers(*layers)


def build_block(
    in_channels: int,
    block: BlockSpec,
    spec: NetSpec,
    drop_path: float,
    number: int = 0,
    device: Device = None,
    dtype: torch.dtype | None = None,
) -> AdaptiveBottleneck:
    """The bottleneck that `block` describes, the one of this number in its network."""
    dd: Any = {"device": device, "dtype": dtype}
    expansion: AdaptiveCrossHadamard | GhostExpansion | InvertedExpansion
    if block.k is not None:
        how: Any = {"pairing": block.pairing, "mix": spec.mix}
        if block.pairing == "triangle":
            for name in ("order", "surrogate", "selection", "noise", "temperature", "score_kernel"):
                how[name] = getattr(spec, name)
            how["seed"] = number if spec.selection == "random" else 0
        expansion = AdaptiveCrossHadamard(in_channels, block.k, block.norm, **dd, **how)
    elif block.kind == "ghost":
        assert block.ratio is not None
        expansion = GhostExpansion(in_channels, block.ratio, **dd)
    else:
        assert block.ratio is not None
        expansion = InvertedExpansion(in_channels, block.ratio, **dd, act=block.act)
    width = expansion.out_channels
    return AdaptiveBottleneck(
        expansion, in_channels, width, block.channels, block.kernel, block.stride, drop_path, **dd
    )
