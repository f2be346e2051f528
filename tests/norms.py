"""Maps to normalise, and PyTorch's batch normalisation in float64 to compare with."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import arranged
from tolerances import TOLERANCES
from torch import Tensor

from hadaptive import ops
from hadaptive.ops import reference
from hadaptive.ops.reference import ACTS

DENSE = ("contiguous", "channels_last")
each_layout = pytest.mark.parametrize("layout", DENSE)
each_act = pytest.mark.parametrize("act", ACTS)
CLOSE = TOLERANCES[torch.float32]


def problem(
    shape: tuple[int, ...], layout: str = "contiguous", mean: float = 0.5, std: float = 2.0, affine: bool = True
) -> list[Any]:
    """x, running mean, running variance, weight, bias."""
    channels = shape[1]
    x = arranged(torch.randn(shape) * std + mean, layout).requires_grad_()
    weight, bias = (torch.randn(channels).requires_grad_() if affine else None for _ in range(2))
    return [x, torch.randn(channels), torch.rand(channels), weight, bias]


def in_float64(arguments: list[Any]) -> list[Any]:
    return [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in arguments]


def laid_out(x: Tensor) -> tuple[bool, bool]:
    return x.is_contiguous(), x.movedim(1, -1).is_contiguous()


def near(found: Tensor, expected: Tensor) -> None:
    """Within float32's tolerance of the largest number."""
    room = max(1.0, float(expected.detach().abs().max()))
    torch.testing.assert_close(found.detach().double() / room, expected.detach() / room, **CLOSE)


def check(arguments: list[Any], act: str, layout_of_gradient: str = "contiguous") -> None:
    """The kernel's values, gradients and statistics against PyTorch's in float64, but where acts have kinks."""
    true = in_float64(arguments)
    x = arguments[0]
    assert x is not None
    y = ops.batch_norm_act(*arguments, True, 0.3, 1e-3, act, backend="fused")
    expected = reference.batch_norm_act(*true, True, 0.3, 1e-3, act)
    assert y.dtype == x.dtype
    assert laid_out(y) == laid_out(x)
    near(y, expected)
    for mine, theirs in zip(arguments[1:3], true[1:3], strict=True):
        if mine is not None and theirs is not None:
            near(mine, theirs)
    grad = torch.randn(y.shape)
    z = F.batch_norm(true[0], None, None, true[3], true[4], True, 0.0, 1e-3)
    for kink in {"none": (), "relu": (0,), "relu6": (0, 6), "hardswish": (-3, 3)}[act]:
        grad[(z - kink).abs() < 1e-4] = 0
    grad = arranged(grad, layout_of_gradient)
    wanted = [n for n in (0, 3, 4) if arguments[n] is not None]
    found = torch.autograd.grad(y, [arguments[n] for n in wanted], grad)
    truth = torch.autograd.grad(expected, [true[n] for n in wanted], grad.double())
    for a, b in zip(found, truth, strict=True):
        near(a, b)
    assert laid_out(found[0]) == laid_out(x)
