"""Convolutions of a network that is deployed: folded with the BatchNorm behind them, rows and columns chosen."""

import copy

import torch
from timm.layers import LayerScale2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def conv_of(module: nn.Module) -> nn.Conv2d:
    """The convolution of a folded layer, with or without an activation after it."""
    conv = module[0] if isinstance(module, nn.Sequential) else module
    assert isinstance(conv, nn.Conv2d)
    return conv


def take(conv: nn.Conv2d, rows: Tensor) -> None:
    """Let a convolution put out these of its channels, in this order; -1 is a channel of zeros."""
    zero = rows < 0
    for name in ("weight", "bias"):
        parameter = getattr(conv, name)
        if parameter is not None:
            data = parameter.data[rows.clamp(min=0)].clone()
            data[zero] = 0
            parameter.data = data
    conv.out_channels = len(rows)


def take_depthwise(conv: nn.Conv2d, rows: Tensor) -> None:
    """Let a depthwise convolution work on these of its channels, in this order; -1 is a channel of zeros."""
    take(conv, rows)
    conv.groups = conv.in_channels = len(rows)


def take_inputs(conv: nn.Conv2d, columns: Tensor) -> None:
    """Let a 1x1 convolution read channels that were rearranged so; -1 is a channel of zeros."""
    data = conv.weight.data[:, columns.clamp(min=0)].clone()
    data[:, columns < 0] = 0
    conv.weight.data, conv.in_channels = data, len(columns)


def fill(width: int, total: int) -> Tensor:
    """Rows of a width, and -1 for each channel of zeros up to the total."""
    return torch.cat([torch.arange(width), torch.full((total - width,), -1)])


def one_hot(rows: Tensor, channels: int) -> nn.Conv2d:
    """1x1 convolution that puts out these of its input's channels."""
    conv = nn.Conv2d(channels, len(rows), 1, bias=False).eval()
    conv.weight.data = torch.eye(channels)[rows].reshape(len(rows), channels, 1, 1)
    return conv


def folded(layers: nn.Sequential) -> nn.Module:
    """Convolution (+ BatchNorm) (+ activation) as a convolution with bias (+ activation)."""
    conv, *behind = copy.deepcopy(list(layers))
    assert isinstance(conv, nn.Conv2d)
    rest = []
    for layer in behind:
        if isinstance(layer, nn.BatchNorm2d):
            conv = fuse_conv_bn_eval(conv, layer)
        else:
            rest.append(layer)
    return nn.Sequential(conv, *rest) if rest else conv


def scaled_by(conv: nn.Conv2d, scale: nn.Module) -> nn.Conv2d:
    """A convolution with a bias that takes in the learnt scale of a residual branch, where there is one."""
    if isinstance(scale, LayerScale2d):
        assert conv.bias is not None
        conv.weight.data *= scale.gamma.data.reshape(-1, 1, 1, 1)
        conv.bias.data *= scale.gamma.data
    return conv


def absorb_before(norm: nn.BatchNorm2d, layer: nn.Linear | nn.Conv2d) -> None:
    """Put a BatchNorm in eval mode into the linear layer, or 1x1 convolution, that reads what it puts out."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var + norm.eps).rsqrt() * norm.weight
    shift = norm.bias - norm.running_mean * scale
    matrix = layer.weight.data
    bias = matrix.flatten(1) @ shift + (0 if layer.bias is None else layer.bias)
    layer.bias = nn.Parameter(bias.detach())
    matrix *= scale.detach().reshape(1, -1, *[1] * (matrix.dim() - 2))
