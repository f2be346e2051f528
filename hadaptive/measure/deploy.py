"""A network as it is deployed: no dropout, BatchNorm in convolutions, nothing that only training needs.

:func:`fold` makes one from a :class:`HadaptiveNet` or layers of one; :mod:`hadaptive.measure.passes` changes it
further. Everything is plain convolutions and element-wise operators, so that any exporter can follow. What a
block concatenates for its depthwise convolution and its projection goes through convolutions of its own instead,
whose results are added: the same sum, and runtimes that keep channels in blocks never leave their layout.
"""

import copy

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hadaptive.measure.convolutions import (
    absorb_before,
    conv_of,
    fill,
    folded,
    one_hot,
    scaled_by,
    take,
    take_depthwise,
    take_inputs,
)
from hadaptive.measure.deploy_products import DeployPolyBlock, DeployProductBlock, constants_of, softsign
from hadaptive.models import HadaptiveNet
from hadaptive.nn import (
    AdaptiveBottleneck,
    AdaptiveCrossHadamard,
    ChannelScore,
    ChannelSelection,
    FixedSelection,
    GhostExpansion,
    GroupedSelection,
    InvertedExpansion,
    PolyBlock,
    ProductBlock,
    StaticSelection,
    top_k_channels,
)
from hadaptive.nn.grouped_selection import best_of_groups
from hadaptive.nn.reparam import reparameterized
from hadaptive.ops import num_pairs, pair_indices


class DeployCheap(nn.Module):
    """A Ghost block's cheap channels, of its primary ones: (B, h, H, W) -> (B, h, H, W).

    Attributes:
        conv: the cheap convolution, or an identity where it is part of the depthwise one that follows.
    """

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, primary: Tensor) -> Tensor:
        return self.conv(primary)


class DeployProducts(nn.Module):
    """ACH's normalised products, of its mixed channels: (B, C, H, W) -> (B, P, H, W).

    The two factors of every product come out of 1x1 convolutions with a single one in each row: no runtime has to
    gather. Fixed selections are a convolution, too: their rows of the mixing one. Whole blocks are slices of the
    mixed channels, and their products are concatenated: of what was tried it is the fastest.

    Attributes:
        channels: C, channels that are scored.
        k: channels that are multiplied.
        block: channels that are multiplied as one.
        fixed: the convolution that puts out the k selected channels; None where each image selects its own.
        score: the convolution over channels that scores them; None where selections are fixed.
        groups: of which one channel each is selected; 0 where k are selected of all.
        left, right: from the k channels to the two factors of each product; None for blocks.
        ties: what lets the lower of two equally scored channels win: "sort", or "key" where a runtime has no sort;
            "topk" leaves it to the runtime.
        by_parts: softsign as a product, where a runtime has no operator for it.
        scale: of every selected channel, (1,), or None: the root of DySoft's alpha.
        softsign: whether products pass through it, as DySoft has it.
        weight, bias: of the products after that, (P, 1, 1); None where there is nothing to do.
        norm: the norm of the products where it is none that is made of constants, else None.
        fill: channels of zeros behind the products, where no convolution can put them out.
    """

    scale: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    def __init__(self, ach: AdaptiveCrossHadamard, mix: nn.Conv2d) -> None:
        super().__init__()
        expansion = ach.cross_hadamard
        norm, select = expansion.norm, expansion.select
        self.channels, self.k, self.block = ach.channels, expansion.k, expansion.block
        self.pairs = num_pairs(self.k, self.block)
        self.fixed: nn.Conv2d | None = None
        self.score: nn.Module | None = None
        self.order = "index"
        self.groups = 0
        self.ties = "sort"
        self.by_parts = False
        self.left: nn.Conv2d | None = None
        self.right: nn.Conv2d | None = None
        slices = self.block > 1 and isinstance(select, StaticSelection)
        if isinstance(select, ChannelSelection):
            assert isinstance(expansion.score, ChannelScore)
            self.score, self.order = copy.deepcopy(expansion.score.conv), select.order
            self.groups = self.k if isinstance(select, GroupedSelection) else 0
        elif not slices:
            assert isinstance(select, FixedSelection)
            self.fixed = copy.deepcopy(mix)
            take(self.fixed, select.index)
        if not slices:
            self.left, self.right = (one_hot(rows, self.k) for rows in pair_indices(self.k, block=self.block))
        alpha, weight, bias, self.norm = constants_of(norm)
        self.softsign = alpha is not None
        if alpha is not None and weight is not None:
            alpha, weight = alpha.abs().sqrt(), weight * alpha.sign()
        self.register_buffer("scale", alpha)
        for name, value in (("weight", weight), ("bias", bias)):
            self.register_buffer(name, None if value is None else value.reshape(-1, 1, 1))
        self.fill = 0

    def take(self, rows: Tensor) -> bool:
        """Put out these of the products, -1 for a channel of zeros; False where it cannot, and nothing is changed.

        A norm is of so many products, and whole blocks are what they are.
        """
        if self.norm is not None or self.left is None or self.right is None:
            return False
        self.pairs = len(rows)
        for conv in (self.left, self.right):
            take(conv, rows)
        for name in ("weight", "bias"):
            value = getattr(self, name)
            if value is not None:
                filled = value[rows.clamp(min=0)].clone()
                filled[rows < 0] = 0
                setattr(self, name, filled)
        return True

    def convolutions(self) -> list[nn.Conv2d]:
        """What there is to quantise: the score is not."""
        return [m for m in (self.fixed, self.left, self.right) if m is not None]

    def selected(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The k channels that are multiplied, (B, k, H, W)."""
        if self.fixed is not None:
            z = self.fixed(x)
        else:
            # Rows of a matrix: runtimes copy those, where they would gather single numbers.
            batch, width = mixed.shape[:2]
            first = torch.arange(batch, device=x.device).unsqueeze(1) * width
            rows = mixed.flatten(2).flatten(0, 1)
            z = rows.index_select(0, (self.chosen(mixed) + first).flatten())
            z = z.reshape(batch, self.k, *mixed.shape[2:])
        return z if self.scale is None else z * self.scale

    def chosen(self, mixed: Tensor) -> Tensor:
        """Numbers of the channels with the largest scores, (B, k); the lower one of equal scores."""
        assert self.score is not None
        scores = self.score(mixed[:, : self.channels].mean((2, 3)).unsqueeze(1)).squeeze(1)
        if self.groups:
            return best_of_groups(scores, self.k)
        if self.ties == "key":
            return self._chosen_by_key(scores)
        if self.ties == "topk":
            index = scores.topk(self.k, dim=1).indices
            return (-(-index.float()).topk(self.k, dim=1).values).long() if self.order == "index" else index
        return top_k_channels(scores, self.k, self.order)

    def _chosen_by_key(self, scores: Tensor) -> Tensor:
        """The same from keys without ties: scores, and less of them the higher the channel, beyond float32."""
        keys, number = scores.double(), torch.arange(self.channels, dtype=torch.float64, device=scores.device)
        # Two factors, because exporters make scalars float32, where 2**-200 is zero.
        keys = keys - keys.abs() * (number * 2.0**-40) - number * 2.0**-100 * 2.0**-100
        index = keys.topk(self.k, dim=1).indices
        return -(-index).topk(self.k, dim=1).values if self.order == "index" else index

    def products(self, x: Tensor, mixed: Tensor) -> Tensor:
        """The bare products, (B, P, H, W)."""
        if self.left is not None and self.right is not None:
            z = self.selected(x, mixed)
            return self.left(z) * self.right(z)
        parts = [mixed[:, start : start + self.block] for start in range(0, self.k, self.block)]
        if self.scale is not None:
            parts = [part * self.scale for part in parts]
        return torch.cat([one * other for n, one in enumerate(parts) for other in parts[n + 1 :]], dim=1)

    def forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        q = self.products(x, mixed)
        if self.softsign:
            q = softsign(q, self.by_parts)
        if self.norm is not None:
            q = self.norm(q)
        if self.weight is not None:
            q = q * self.weight
        if self.bias is not None:
            q = q + self.bias
        return F.pad(q, (0, 0, 0, 0, 0, self.fill)) if self.fill else q


class DeployBlock(nn.Module):
    """A bottleneck: (B, in, H, W) -> (B, out, H', W').

    Attributes:
        primary: convolution that expands or mixes, with its activation where it has one.
        cheap: depthwise convolution of the primary channels with its activation, where Ghost's are added; or None.
        derived: what the expansion appends or adds, of the input and the primary channels; None for others.
        depthwise, project: of the primary channels.
        derived_depthwise, derived_project: of the derived ones, the second without bias; None where the derived
            channels are added to the primary ones.
        residual: whether the input is added.
    """

    def __init__(
        self,
        primary: nn.Module,
        derived: nn.Module | None,
        block: AdaptiveBottleneck,
        cheap: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.primary = primary
        self.cheap = cheap
        self.derived = derived
        self.depthwise = folded(block.depthwise)
        self.project = scaled_by(conv_of(folded(block.project)), block.scale)
        self.derived_depthwise: nn.Module | None = None
        self.derived_project: nn.Conv2d | None = None
        self.residual = block.residual
        width, total = conv_of(primary).out_channels, self.project.in_channels
        if isinstance(derived, DeployProducts) and total < width + derived.pairs:  # they are added
            take(conv_of(primary), fill(width, total))
            if not derived.take(fill(derived.pairs, total)):
                derived.fill = total - derived.pairs
        elif derived is not None:
            self.derived_depthwise, self.derived_project = copy.deepcopy((self.depthwise, self.project))
            for depthwise, project, rows in (
                (self.depthwise, self.project, torch.arange(width)),
                (self.derived_depthwise, self.derived_project, torch.arange(width, total)),
            ):
                take_depthwise(conv_of(depthwise), rows)
                take_inputs(project, rows)
            self.derived_project.bias = None

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        if self.cheap is not None:
            primary = self.cheap(primary)
        if self.derived is not None and self.derived_depthwise is None:
            primary = primary + self.derived(x, primary)
        y = self.project(self.depthwise(primary))
        if self.residual:
            y = y + x
        if self.derived is not None and self.derived_depthwise is not None:
            assert self.derived_project is not None
            y = y + self.derived_project(self.derived_depthwise(self.derived(x, primary)))
        return y


class DeployNet(nn.Module):
    """The whole network, (B, in_chans, H, W) -> (B, num_classes) logits, or layers of one in a row."""

    def __init__(self, layers: nn.Sequential, head: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.head = head

    def blocks(self) -> list[DeployBlock]:
        """The bottlenecks, in order."""
        return [m for m in self.layers if isinstance(m, DeployBlock)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x))


def _block(block: AdaptiveBottleneck) -> DeployBlock:
    inner = block.expansion
    if isinstance(inner, GhostExpansion) and inner.added:
        return DeployBlock(folded(inner.primary), None, block, folded(inner.cheap))
    if isinstance(inner, GhostExpansion):
        return DeployBlock(folded(inner.primary), DeployCheap(folded(inner.cheap)), block)
    if isinstance(inner, InvertedExpansion):
        return DeployBlock(folded(inner.convolution), None, block)
    assert isinstance(inner, AdaptiveCrossHadamard)
    # Without a mix a diagonal one takes the BatchNorm: exported, such a network is no faster than with it.
    mix = inner.mix if isinstance(inner.mix, nn.Conv2d) else one_hot(torch.arange(inner.channels), inner.channels)
    mix = fuse_conv_bn_eval(mix, inner.bn)
    return DeployBlock(mix, DeployProducts(inner, mix), block)


def layers_of(network: HadaptiveNet) -> list[nn.Module]:
    """What an image passes in eval mode, in order: convolutions, bottlenecks, and the parts of the head."""
    blocks = [module for stage in network.stages for module in stage]  # pyright: ignore[reportGeneralTypeIssues]
    head = [network.global_pool, network.conv_head, network.act_head, network.flatten, network.classifier]
    return [network.stem, *blocks, network.last, *head]


def _without_last_norm(modules: list[nn.Module]) -> list[nn.Module]:
    """Layers in a row without a BatchNorm that a linear layer further on can take: means are linear, too."""
    for n, norm in enumerate(modules):
        if not isinstance(norm, nn.BatchNorm2d):
            continue
        for layer in modules[n + 1 :]:
            if isinstance(layer, nn.Linear | nn.Conv2d):
                absorb_before(norm, layer)
                return [*modules[:n], *modules[n + 1 :]]
            pooled = isinstance(layer, SelectAdaptivePool2d) and layer.pool_type in ("", "avg")
            if not pooled and not isinstance(layer, nn.Identity | nn.Flatten):
                break
    return modules


@torch.no_grad()
def fold(network: HadaptiveNet | nn.Sequential) -> DeployNet:
    """The network in eval mode with BatchNorm in the convolutions before it and DySoft's alpha in the products.

    A last BatchNorm goes into the linear layer behind it, and stays where there is none or a pool of maxima.

    Dropout and stochastic depth are gone, as they do nothing in eval mode. The given network is left alone.

    Args:
        network: the whole, or some of its :func:`layers_of` in a row.
    """
    fused = reparameterized(network)
    network = copy.deepcopy(network).eval() if fused is network else fused
    layers: list[nn.Module] = []
    head: list[nn.Module] = []
    modules = layers_of(network) if isinstance(network, HadaptiveNet) else list(network)
    for module in _without_last_norm(modules):
        if isinstance(module, AdaptiveBottleneck):
            layers.append(_block(module))
        elif isinstance(module, ProductBlock):
            layers.append(DeployProductBlock(module))
        elif isinstance(module, PolyBlock):
            layers.append(DeployPolyBlock(module))
        elif isinstance(module, nn.Sequential):
            layers.append(folded(module))
        else:
            head.append(module)
    net = DeployNet(nn.Sequential(*layers), nn.Sequential(*head)).eval()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    return net
