"""What is done to a folded network before it is written: the same outputs, in a form that runtimes run faster.

Each pass changes a :class:`DeployNet` in place and says in one sentence what it did.
"""

import torch
from torch import Tensor, nn

from hadaptive.export.deploy import DeployBlock, DeployGhost, DeployHadamard, DeployNet, fold
from hadaptive.models import HadaptiveNet
from hadaptive.ops import num_pairs


def _conv(module: nn.Module) -> nn.Conv2d:
    """The convolution of a folded layer, with or without an activation after it."""
    conv = module[0] if isinstance(module, nn.Sequential) else module
    assert isinstance(conv, nn.Conv2d)
    return conv


def _take(conv: nn.Conv2d, rows: Tensor) -> None:
    """Let a convolution put out these of its channels, in this order; -1 is a channel of zeros."""
    zero = rows < 0
    for parameter in (conv.weight, conv.bias):
        assert parameter is not None
        data = parameter.data[rows.clamp(min=0)]
        data[zero] = 0
        parameter.data = data
    conv.out_channels = len(rows)
    if conv.groups > 1:
        conv.groups = conv.in_channels = len(rows)


def _take_inputs(conv: nn.Conv2d, columns: Tensor) -> None:
    """Let a 1x1 convolution read channels that were rearranged so; -1 is a channel of zeros."""
    data = conv.weight.data[:, columns.clamp(min=0)]
    data[:, columns < 0] = 0
    conv.weight.data, conv.in_channels = data, len(columns)


def _rearrange(block: DeployBlock, channels: Tensor) -> None:
    """The expansion now puts out these channels: the convolutions after it follow."""
    _take(_conv(block.depthwise), channels)
    _take_inputs(block.project, channels)


@torch.no_grad()
def absorb(net: DeployNet) -> str:
    """Put what scales channels, DySoft's alpha and weight, into the convolutions around the products.

    The depthwise convolution is linear in each channel, and the largest scores are the same ones at any scale.
    """
    count = 0
    for block in net.blocks():
        ach = block.expansion
        if not isinstance(ach, DeployHadamard):
            continue
        depthwise = _conv(block.depthwise)
        width = ach.width
        if ach.scale is not None and float(ach.scale) > 1e-6:
            rows = slice(0, ach.k) if ach.turned else slice(0, width)
            for parameter in (ach.mix.weight, ach.mix.bias):
                assert parameter is not None
                parameter.data[rows] *= ach.scale
            depthwise.weight.data[rows] /= ach.scale
            ach.scale = None
        if ach.weight is not None and ach.bias is not None:
            # A weight of zero would lose the bias; this one changes an output by a millionth at the most.
            weight = torch.where(ach.weight.abs() < 1e-6, torch.full_like(ach.weight, 1e-6), ach.weight)
            depthwise.weight.data[width:] *= weight.unsqueeze(1)
            ach.bias, ach.weight = ach.bias / weight, None
        count += 1
    return f"absorb: the constants of {count} ACH layers are in the convolutions around them"


@torch.no_grad()
def reorder(net: DeployNet) -> str:
    """Order channels and products so that fixed selections are slices: nothing is gathered any more."""
    count = 0
    for block in net.blocks():
        ach = block.expansion
        if not isinstance(ach, DeployHadamard) or ach.index is None or ach.norm is not None:
            continue  # a norm that is not made of constants has an order of its own
        k, pairs = ach.k, num_pairs(ach.k)
        chosen = ach.index.tolist()
        first = [*chosen, *(c for c in range(ach.width) if c not in set(chosen))]
        place = {(i, j): p for p, (i, j) in enumerate(ach.pairs.T.tolist())}
        turns = [(a, (a + d) % k) for d in range(1, k // 2 + 1) for a in range(k)][:pairs]
        products = torch.tensor([place[min(pair), max(pair)] for pair in turns])
        _take(ach.mix, torch.tensor(first))
        for name in ("weight", "bias"):
            value = getattr(ach, name)
            setattr(ach, name, None if value is None else value[products])
        _rearrange(block, torch.cat([torch.tensor(first), ach.width + products]))
        ach.pairs = torch.tensor(turns).T.contiguous()
        ach.index, ach.turned = None, True
        count += 1
    return f"reorder: {count} fixed selections are slices"


def _padding(width: int, multiple: int) -> int:
    return -width % multiple


@torch.no_grad()
def align(net: DeployNet, multiple: int = 16) -> str:
    """Fill expanded widths up with channels of zeros to a multiple that runtimes keep in blocks.

    Raises:
        ValueError: the multiple is not positive.
    """
    if multiple < 1:
        raise ValueError(f"channels are aligned to a positive multiple, got {multiple}")
    added = 0
    for block in net.blocks():
        inner = block.expansion
        if isinstance(inner, DeployGhost):
            half = _conv(inner.primary).out_channels
            pad = _padding(half, multiple)
            rows = torch.cat([torch.arange(half), torch.full((pad,), -1)])
            _take(_conv(inner.primary), rows)
            _take(_conv(inner.cheap), rows)
            _rearrange(block, torch.cat([rows, torch.where(rows < 0, -1, rows + half)]))
            added += 2 * pad
            continue
        if isinstance(inner, DeployHadamard):
            width, total = inner.width, inner.width + num_pairs(inner.k)
            conv = inner.mix
        else:
            conv = _conv(inner)
            width = total = conv.out_channels
        pad = _padding(total, multiple)
        zeros = torch.full((pad,), -1)
        _take(conv, torch.cat([torch.arange(width), zeros]))
        _rearrange(block, torch.cat([torch.arange(width), zeros, torch.arange(width, total)]))
        added += pad
    return f"align: {added} channels of zeros fill expanded widths up to multiples of {multiple}"


def prepare(network: HadaptiveNet, multiple: int) -> tuple[DeployNet, list[str]]:
    """Fold a network and run every pass on it; a multiple of 1 aligns nothing.

    Returns:
        The deployed network, and a sentence for each pass.
    """
    net = fold(network)
    said = ["fold: no BatchNorm and no dropout is left", absorb(net), reorder(net)]
    if multiple > 1:
        said.append(align(net, multiple))
    return net, said
