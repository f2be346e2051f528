"""What is done to a folded network before it is written: the same outputs, in a form that runtimes run faster.

Each pass changes a :class:`DeployNet` in place and says in one sentence what it did.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadaptive.errors import UserError
from hadaptive.measure.convolutions import conv_of, fill, take, take_depthwise, take_inputs
from hadaptive.measure.deploy import DeployCheap, DeployNet, DeployProducts, fold
from hadaptive.measure.deploy_products import DeployPolyBlock, DeployProductBlock
from hadaptive.measure.formats import ALIGN
from hadaptive.models import HadaptiveNet


@torch.no_grad()
def absorb(net: DeployNet) -> str:
    """Put what scales channels, DySoft's alpha and weight, into the convolutions around the products.

    The depthwise convolution is linear in each channel, and the largest scores are the same ones at any scale. A
    product's weight stays where it is next to nothing and the product is not bounded, as it is behind DySoft.
    """
    count = 0
    for block in net.blocks():
        products = block.derived
        if not isinstance(products, DeployProducts) or block.derived_depthwise is None:
            continue  # products that are added go through no convolution of their own
        if products.scale is not None and float(products.scale) > 1e-6:
            mix = products.fixed or conv_of(block.primary)
            for parameter in (mix.weight, mix.bias):
                assert parameter is not None
                parameter.data *= products.scale
            if products.fixed is None:
                conv_of(block.depthwise).weight.data /= products.scale
            products.scale = None
        weight = products.weight
        if weight is not None and products.bias is not None and (products.softsign or weight.abs().min() >= 1e-6):
            # A weight of zero would lose the bias; this one changes an output by a millionth at the most.
            weight = torch.where(weight.abs() < 1e-6, torch.full_like(weight, 1e-6), weight)
            conv_of(block.derived_depthwise).weight.data *= weight.unsqueeze(1)
            products.bias, products.weight = products.bias / weight, None
        count += 1
    return f"absorb: the constants of {count} ACH layers are in the convolutions around them"


@torch.no_grad()
def merge(net: DeployNet) -> str:
    """Make one convolution of two in a row that have no activation between them, where that is less work.

    At the input both are dense. In Ghost blocks that halve the map both are depthwise: the cheap one and the next.
    """
    layers, count, cheap = list(net.layers), 0, 0
    while len(layers) > 1 and isinstance(layers[0], nn.Conv2d):
        merged = _merged(layers[0], layers[1])
        if merged is None:
            break
        layers[:2], count = [merged], count + 1
    net.layers = nn.Sequential(*layers)
    for block in net.blocks():
        derived, following = block.derived, block.derived_depthwise
        if isinstance(derived, DeployCheap) and isinstance(derived.conv, nn.Conv2d) and following is not None:
            merged = _merged(derived.conv, following)
            if merged is not None:
                derived.conv, block.derived_depthwise, cheap = nn.Identity(), merged, cheap + 1
    return f"merge: {count} convolutions at the input and {cheap} cheap ones are part of the next one"


def _merged(first: nn.Conv2d, layer: nn.Module) -> nn.Module | None:
    """Both layers as one, or None where they are not linear between, padded between, or cheaper as two."""
    second = layer[0] if isinstance(layer, nn.Sequential) else layer
    if not isinstance(second, nn.Conv2d) or second.padding != (0, 0) or first.groups != second.groups:
        return None
    assert not isinstance(first.padding, str)
    assert first.bias is not None
    assert second.bias is not None
    stride, groups, total = first.stride[0], first.groups, second.weight.sum((2, 3))
    if groups == 1:
        weight = F.conv_transpose2d(second.weight, first.weight, stride=stride)
        bias = second.bias + total @ first.bias
    elif groups == first.in_channels == first.out_channels == second.out_channels:
        weight = F.conv_transpose2d(second.weight.transpose(0, 1), first.weight, stride=stride, groups=groups)
        weight, bias = weight.transpose(0, 1), second.bias + total.squeeze(1) * first.bias
    else:
        return None
    area = second.stride[0] ** 2  # outputs of the first per output of the second
    if weight.numel() > first.weight.numel() * area + second.weight.numel():
        return None
    conv = nn.Conv2d(
        first.in_channels,
        second.out_channels,
        weight.shape[-1],
        stride * second.stride[0],
        first.padding[0],
        groups=groups,
    ).requires_grad_(False)
    conv.weight.data, conv.bias.data = weight.contiguous(), bias  # pyright: ignore[reportOptionalMemberAccess]
    return nn.Sequential(conv, *layer[1:]) if isinstance(layer, nn.Sequential) else conv


def _fill(width: int, multiple: int) -> Tensor:
    """Rows of a width, and -1 for each channel of zeros up to the multiple."""
    return fill(width, width + -width % multiple)


@torch.no_grad()
def align(net: DeployNet, multiple: int = ALIGN) -> str:
    """Fill expanded widths up with channels of zeros to a multiple that runtimes keep in blocks.

    Raises:
        UserError: the multiple is not positive.
    """
    if multiple < 1:
        raise UserError(f"channels are aligned to a positive multiple, got {multiple}")
    added = 0
    for block in net.blocks():
        primary, derived = conv_of(block.primary), block.derived
        if primary.groups > 1:
            continue  # a channel of zeros would belong to none of them
        rows = _fill(primary.out_channels, multiple)
        products = derived if isinstance(derived, DeployProducts) and block.derived_depthwise is None else None
        if products is not None and not products.take(_fill(products.pairs, multiple)):
            continue
        added += len(rows) - primary.out_channels
        take(primary, rows)
        if block.cheap is not None:
            take_depthwise(conv_of(block.cheap), rows)
        take_depthwise(conv_of(block.depthwise), rows)
        take_inputs(block.project, rows)
        if derived is None or block.derived_depthwise is None:
            continue
        assert block.derived_project is not None
        if isinstance(derived, DeployProducts):
            added += _align_products(derived, multiple)
            rows = _fill(conv_of(block.derived_depthwise).out_channels, multiple)
            rows = rows[: derived.pairs]  # as many as there are where nothing can be added
        else:
            assert isinstance(derived, DeployCheap)
            if isinstance(derived.conv, nn.Conv2d):
                take_depthwise(derived.conv, rows)
                added += int((rows < 0).sum())
        take_depthwise(conv_of(block.derived_depthwise), rows)
        take_inputs(block.derived_project, rows)
    for layer in net.layers:
        if isinstance(layer, DeployProductBlock):
            added += _align_pairs(layer, multiple)
        elif isinstance(layer, DeployPolyBlock):
            added += _align_poly(layer, multiple)
    return f"align: {added} channels of zeros fill expanded widths up to multiples of {multiple}"


def _align_products(products: DeployProducts, multiple: int) -> int:
    """Fill the selected channels and the products up; how many products were added."""
    if products.fixed is not None:
        columns = _fill(products.k, multiple)
        take(products.fixed, columns)
        for conv in (products.left, products.right):
            if conv is not None:
                take_inputs(conv, columns)
    rows = _fill(products.pairs, multiple)
    return int((rows < 0).sum()) if products.take(rows) else 0


def _align_pairs(block: DeployProductBlock, multiple: int) -> int:
    """Fill the factors of bare products up, and the products of single channels; how many products were added."""
    pairs = block.pairs
    if pairs.norm is not None:
        return 0  # it is of so many products
    width = conv_of(pairs.factors[0]).out_channels
    own = _fill(width, multiple)
    for factor in pairs.factors:
        take(conv_of(factor), own)
    before = block.project.in_channels
    if pairs.left is not None and pairs.right is not None:
        rows = _fill(before, multiple)
        for conv in (pairs.left, pairs.right):
            take_inputs(conv, own)
            take(conv, rows)
    else:
        rows = torch.cat([torch.where(own < 0, own, own + start) for start in range(0, before, width)])
    take_inputs(block.project, rows)
    return len(rows) - before


def _align_poly(block: DeployPolyBlock, multiple: int) -> int:
    """Fill both halves of the mixed channels up; how many channels were added."""
    half = conv_of(block.mix[0]).out_channels
    rows = _fill(half, multiple)
    for n in range(2):
        take(conv_of(block.mix[n]), rows)
        for depthwise in (block.wide[n], block.narrow[n]):
            take_depthwise(conv_of(depthwise), rows)
    take_inputs(block.project, torch.cat([rows, torch.where(rows < 0, rows, rows + half)]))
    return 2 * int((rows < 0).sum())


def prepare(network: HadaptiveNet | nn.Sequential, multiple: int = ALIGN) -> tuple[DeployNet, list[str]]:
    """Fold a network, or layers of one in a row, and run every pass on it; a multiple of 1 aligns nothing.

    Returns:
        The deployed network, and a sentence for each pass.
    """
    net = fold(network)
    kept = any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    norms = "no BatchNorm but the last, which nothing behind it can take" if kept else "no BatchNorm"
    left = f"{norms}, no dropout, and no concatenation but of whole blocks is left"
    said = [f"fold: {left}", absorb(net), merge(net)]
    if multiple > 1:
        said.append(align(net, multiple))
    return net, said
