"""Blocks of bare products as they are deployed, and what the norms of products are made of."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadaptive.measure.convolutions import conv_of, folded, one_hot, scaled_by, take, take_depthwise
from hadaptive.nn import BatchNorm, DySoft, PolyBlock, ProductBlock
from hadaptive.ops import pair_indices


def constants_of(norm: nn.Module) -> tuple[Tensor | None, Tensor | None, Tensor | None, nn.Module | None]:
    """What a norm of products is made of: alpha of its softsign, weight and bias behind, or itself.

    Returns:
        alpha (1,), None without a softsign; weight and bias (P,), None where there are none; the norm or None.
    """
    if isinstance(norm, DySoft):
        return norm.alpha.detach().clone(), norm.weight.detach().clone(), norm.bias.detach().clone(), None
    if isinstance(norm, BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
        weight = (norm.running_var + norm.eps).rsqrt() * (norm.weight if norm.affine else 1)
        bias = (norm.bias if norm.affine else 0) - norm.running_mean * weight
        return None, weight.detach().clone(), bias.detach().clone(), None
    return None, None, None, None if isinstance(norm, nn.Identity) else copy.deepcopy(norm)


def softsign(x: Tensor, by_parts: bool = False) -> Tensor:
    """x / (1 + |x|), as one operator or, where a runtime has none, by three that nothing takes for one again."""
    return x * torch.reciprocal(1 + x.abs()) if by_parts else F.softsign(x)


class DeployPairs(nn.Module):
    """Factors by 1x1 convolutions and their products: (B, C, H, W) -> (B, P, H, W).

    Attributes:
        factors: a convolution for each block of channels; of single channels one puts out all.
        left, right: from single channels to the two factors of each product; None for wider blocks.
        act: of the lower factor, None for none.
        alpha: of the softsign behind the products where no convolution has taken it, (1,), else None.
        softsign: whether products pass through it.
        by_parts: that as a product, where a runtime has no operator for it.
        norm: of the products where it is none that is made of constants, else None.
    """

    alpha: Tensor | None

    def __init__(self, block: ProductBlock, alpha: Tensor | None, norm: nn.Module | None) -> None:
        super().__init__()
        k, width = block.products.k, block.products.width
        self.act = None if block.products.bare else copy.deepcopy(block.products.act)
        self.factors = nn.ModuleList(copy.deepcopy(block.factors) for _ in range(1 if width == 1 else k))
        for n, factor in enumerate(self.factors if width > 1 else ()):
            assert isinstance(factor, nn.Conv2d)
            take(factor, torch.arange(n * width, (n + 1) * width))
        self.left: nn.Conv2d | None = None
        self.right: nn.Conv2d | None = None
        if width == 1:
            self.left, self.right = (one_hot(rows, k) for rows in pair_indices(k))
        self.softsign, self.norm, self.by_parts = alpha is not None, norm, False
        if alpha is not None and self.act is None:  # both factors have a root of it
            for parameter in self.factors.parameters():
                parameter.data *= alpha.sqrt()
            alpha = None
        self.register_buffer("alpha", alpha)

    def convolutions(self) -> list[nn.Conv2d]:
        """What there is to quantise."""
        return [m for m in self.modules() if isinstance(m, nn.Conv2d)]

    def forward(self, x: Tensor) -> Tensor:
        parts = [factor(x) for factor in self.factors]
        if self.left is not None and self.right is not None:
            q = self.left(parts[0] if self.act is None else self.act(parts[0])) * self.right(parts[0])
        else:
            lowers = parts if self.act is None else [self.act(part) for part in parts[:-1]]
            pairs = [lowers[i] * other for i in range(len(parts) - 1) for other in parts[i + 1 :]]
            q = pairs[0] if len(pairs) == 1 else torch.cat(pairs, dim=1)
        if self.softsign:
            q = softsign(q if self.alpha is None else q * self.alpha, self.by_parts)
        return q if self.norm is None else self.norm(q)


class DeployProductBlock(nn.Module):
    """A block of bare products: (B, C, H, W) -> (B, C, H, W).

    Attributes:
        depthwise, project, after: convolutions; the last may be None.
        pairs: the products, of which the projection has the weight and the bias.
    """

    def __init__(self, block: ProductBlock) -> None:
        super().__init__()
        self.depthwise = conv_of(folded(block.depthwise))
        self.project = conv_of(folded(block.project))
        self.after = conv_of(folded(block.after)) if isinstance(block.after, nn.Sequential) else None
        scaled_by(self.project if self.after is None else self.after, block.scale)
        alpha, weight, bias, norm = constants_of(block.norm)
        if weight is not None and bias is not None:
            assert self.project.bias is not None
            self.project.bias.data += self.project.weight.flatten(1) @ bias
            self.project.weight.data *= weight.reshape(1, -1, 1, 1)
        if alpha is not None:
            self.project.weight.data *= alpha.sign()  # softsign is odd
            alpha = alpha.abs()
        self.pairs = DeployPairs(block, alpha, norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.pairs(self.depthwise(x)))
        return x + (y if self.after is None else self.after(y))


class DeployPolyBlock(nn.Module):
    """One product of two depthwise convolutions: (B, C, H, W) -> (B, C, H, W).

    Each half of the mixed channels has convolutions of its own, so that nothing is left to rearrange.

    Attributes:
        mix, wide, narrow: of each half.
        act: of the 3x3 factor, None for none.
        project: of both halves' products.
    """

    def __init__(self, block: PolyBlock) -> None:
        super().__init__()
        halves = (torch.arange(block.shift), torch.arange(block.shift, 2 * block.shift))

        def split(layers: nn.Sequential, depthwise: bool) -> nn.ModuleList:
            convs = [conv_of(folded(layers)) for _ in halves]
            for conv, rows in zip(convs, halves, strict=True):
                (take_depthwise if depthwise else take)(conv, rows)
            return nn.ModuleList(convs)

        self.mix = split(block.mix, depthwise=False)
        self.wide, self.narrow = (split(layers, depthwise=True) for layers in (block.wide, block.narrow))
        self.act = None if isinstance(block.act, nn.Identity) else copy.deepcopy(block.act)
        self.project = scaled_by(conv_of(folded(block.project)), block.scale)

    def forward(self, x: Tensor) -> Tensor:
        halves = [mix(x) for mix in self.mix]
        factors = [narrow(half) for narrow, half in zip(self.narrow, halves, strict=True)]
        if self.act is not None:
            factors = [self.act(factor) for factor in factors]
        pairs = zip(self.wide, halves, reversed(factors), strict=True)
        return x + self.project(torch.cat([wide(half) * factor for wide, half, factor in pairs], dim=1))
