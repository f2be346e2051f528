"""A network as it is deployed: no BatchNorm, no dropout, nothing that only training needs.

:func:`fold` makes one from a trained :class:`HadaptiveNet`; :mod:`hadaptive.export.passes` changes it further.
Everything is plain convolutions and element-wise operators, so that any exporter can follow.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hadaptive.models import HadaptiveNet
from hadaptive.nn import (
    AdaptiveBottleneck,
    AdaptiveCrossHadamard,
    BatchNorm,
    ChannelScore,
    DySoft,
    FixedSelection,
    GhostExpansion,
    InvertedExpansion,
    top_k_channels,
)
from hadaptive.ops import num_pairs, pair_indices


class DeployGhost(nn.Module):
    """Ghost expansion: (B, C, H, W) -> (B, 2h, H, W)."""

    def __init__(self, primary: nn.Module, cheap: nn.Module) -> None:
        super().__init__()
        self.primary = primary
        self.cheap = cheap

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], dim=1)


class DeployHadamard(nn.Module):
    """ACH with its norm as constants: (B, C, H, W) -> (B, width + P, H, W).

    The mixing convolution may put out more channels than the C that are scored: zeros that fill the width up.

    Attributes:
        channels: C, channels that are scored.
        k: channels that are multiplied.
        scale: of every selected channel, (1,), or None: the root of DySoft's alpha.
        softsign: whether products pass through it, as DySoft has it.
        weight, bias: of the products after that, (P, 1, 1); None where there is nothing to do.
        norm: the norm of the products where it is none that is made of constants, else None.
        index: (k,) the selected channels where they are fixed, else None.
        pairs: (2, P) which two of the selected channels make a product.
        turned: the selected channels are the first k, and the products are ordered by turns of them.
    """

    index: Tensor | None
    pairs: Tensor
    scale: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    score: nn.Module | None

    def __init__(self, ach: AdaptiveCrossHadamard) -> None:
        super().__init__()
        expansion, norm = ach.expansion, ach.expansion.norm
        self.channels, self.k = ach.channels, expansion.k
        self.mix = fuse_conv_bn_eval(ach.mix, ach.bn)
        select = expansion.select
        if isinstance(select, FixedSelection):
            self.register_buffer("index", select.index.clone())
            self.score = None
            self.order = "index"
        else:
            self.register_buffer("index", None)
            assert isinstance(expansion.score, ChannelScore)
            self.score = copy.deepcopy(expansion.score.conv)
            self.order = select.order
        self.turned = False
        self.softsign = isinstance(norm, DySoft)
        self.norm = None
        scale = weight = bias = None
        if isinstance(norm, DySoft):
            scale, weight, bias = norm.alpha.abs().sqrt(), norm.weight * norm.alpha.sign(), norm.bias
        elif isinstance(norm, BatchNorm):
            weight = norm.weight * (norm.running_var + norm.eps).rsqrt()
            bias = norm.bias - norm.running_mean * weight
        else:
            self.norm = copy.deepcopy(norm)
        self.register_buffer("pairs", pair_indices(self.k).clone())
        self.register_buffer("scale", None if scale is None else scale.detach().clone())
        for name, value in (("weight", weight), ("bias", bias)):
            self.register_buffer(name, None if value is None else value.detach().clone().reshape(-1, 1, 1))

    @property
    def width(self) -> int:
        """Channels that the mixing convolution puts out."""
        return self.mix.out_channels

    def selected(self, x: Tensor) -> Tensor:
        """The k channels that are multiplied, scaled: (B, width, H, W) -> (B, k, H, W)."""
        if self.turned:
            z = x[:, : self.k]
        elif self.index is not None:
            z = x.index_select(1, self.index)
        else:
            # Rows of a matrix: runtimes copy those, where they would gather single numbers.
            batch, rows = x.shape[0], x.flatten(2).flatten(0, 1)
            first = torch.arange(batch, device=x.device).unsqueeze(1) * self.width
            z = rows.index_select(0, (self.chosen(x) + first).flatten()).reshape(batch, self.k, *x.shape[2:])
        return z if self.scale is None else z * self.scale

    def chosen(self, x: Tensor) -> Tensor:
        """Numbers of the channels with the largest scores, (B, k); the lower one of equal scores."""
        assert self.score is not None
        scores = self.score(x[:, : self.channels].mean((2, 3)).unsqueeze(1)).squeeze(1)
        if not torch.onnx.is_in_onnx_export():
            return top_k_channels(scores, self.k, self.order)
        # ONNX's TopK gives the lower index of equal scores; PyTorch's promises nothing.
        index = scores.topk(self.k, dim=1).indices
        return index.sort(dim=1).values if self.order == "index" else index

    def products(self, z: Tensor) -> Tensor:
        """All pairs' products, (B, k, H, W) -> (B, P, H, W)."""
        if not self.turned:
            return z.index_select(1, self.pairs[0]) * z.index_select(1, self.pairs[1])
        # z again and again, read in rows of k + 1, is z turned by one more channel in each row.
        k, turns = self.k, self.k // 2
        height, width = z.shape[2:]
        z = z.flatten(2)
        copies = -(-(turns + 1) * (k + 1) // k)
        rows = torch.cat([z] * copies, dim=1)[:, : (turns + 1) * (k + 1)]
        turned = rows.reshape(-1, turns + 1, k + 1, height * width)[:, 1:, :k]
        products = (turned * z.unsqueeze(1)).reshape(-1, turns * k, height, width)
        # An even number of channels meets its half turn twice.
        return products[:, : num_pairs(k)] if k % 2 == 0 else products

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        q = self.products(self.selected(x))
        if self.softsign:
            q = F.softsign(q)
        if self.norm is not None:
            q = self.norm(q)
        if self.weight is not None:
            q = q * self.weight
        if self.bias is not None:
            q = q + self.bias
        return torch.cat([x, q], dim=1)


class DeployBlock(nn.Module):
    """Expansion, depthwise convolution, projection, and the residual where there is one."""

    def __init__(self, expansion: nn.Module, depthwise: nn.Module, project: nn.Conv2d, residual: bool) -> None:
        super().__init__()
        self.expansion = expansion
        self.depthwise = depthwise
        self.project = project
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expansion(x)))
        return x + y if self.residual else y


class DeployNet(nn.Module):
    """The whole network: (B, in_chans, H, W) -> (B, num_classes) logits."""

    def __init__(self, layers: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.head = head

    def hadamards(self) -> dict[str, DeployHadamard]:
        """Every ACH by its qualified name."""
        return {name: m for name, m in self.named_modules() if isinstance(m, DeployHadamard)}

    def blocks(self) -> list[DeployBlock]:
        """The bottlenecks, in order."""
        return [m for m in self.layers if isinstance(m, DeployBlock)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def _folded(layers: nn.Sequential) -> nn.Module:
    """Convolution + BatchNorm (+ activation) as a convolution with bias (+ activation)."""
    conv, norm, *rest = layers
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    fused = fuse_conv_bn_eval(conv, norm)
    return nn.Sequential(fused, *copy.deepcopy(rest)) if rest else fused


def _block(block: AdaptiveBottleneck) -> DeployBlock:
    inner = block.expansion
    if isinstance(inner, GhostExpansion):
        expansion: nn.Module = DeployGhost(_folded(inner.primary), _folded(inner.cheap))
    elif isinstance(inner, InvertedExpansion):
        expansion = _folded(inner.convolution)
    else:
        assert isinstance(inner, AdaptiveCrossHadamard)
        expansion = DeployHadamard(inner)
    project = _folded(block.project)
    assert isinstance(project, nn.Conv2d)
    return DeployBlock(expansion, _folded(block.depthwise), project, block.residual)


@torch.no_grad()
def fold(network: HadaptiveNet) -> DeployNet:
    """The network in eval mode with BatchNorm in the convolutions before it and DySoft's alpha in the products.

    Dropout and stochastic depth are gone, as they do nothing in eval mode. The given network is left alone.
    """
    network = copy.deepcopy(network).eval()
    layers: list[nn.Module] = [_folded(network.stem)]
    for stage in network.stages:
        assert isinstance(stage, nn.Sequential)
        for module in stage:
            if isinstance(module, AdaptiveBottleneck):
                layers.append(_block(module))
            else:
                assert isinstance(module, nn.Sequential)
                layers.append(_folded(module))
    assert isinstance(network.last, nn.Sequential)
    layers.append(_folded(network.last))
    head = nn.Sequential(
        network.global_pool, network.conv_head, network.act_head, network.flatten, network.classifier
    )
    net = DeployNet(nn.Sequential(*layers), head).eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net
