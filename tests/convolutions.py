"""Depthwise convolutions to try kernels on, and who computes their gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from problems import arranged
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hadaptive.nn import Layers
from hadaptive.ops import convolution

KERNEL = "hadaptive.depthwise_backward.default"


def take_the_smallest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels whatever the size: in tests it is small."""
    monkeypatch.setattr(convolution, "MIN_PRODUCTS", 0)
    monkeypatch.setattr(convolution, "MIN_NUMBERS", 0)


class Seen(TorchDispatchMode):
    """The operators that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


def runs_kernel(function: Callable[[], Tensor]) -> bool:
    """Whether the gradients of what the function computes come from our kernel."""
    with Seen() as seen:
        function().sum().backward()
    return KERNEL in seen.names


def small(layout: str = "contiguous", dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:
    """x, weight, bias, stride, padding, dilation of a convolution that has a kernel in every layout."""
    x = arranged(torch.randn(2, 5, 6, 7, dtype=dtype), layout).requires_grad_()
    weight, bias = torch.randn(5, 1, 4, 5, dtype=dtype), torch.randn(5, dtype=dtype)
    return x, weight.requires_grad_(), bias.requires_grad_(), (1, 1), (2, 1), (1, 1)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None, *sizes: Any) -> Tensor:
    return F.conv2d(x, weight, bias, *sizes, groups=x.shape[1])


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def layers(kernel: int = 5, channels: int = 6, cls: type[nn.Sequential] = Layers, **options: Any) -> Any:
    """A depthwise convolution with a norm and an activation; the same numbers for every class."""
    torch.manual_seed(1)
    conv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels, bias=False, **options)
    return cls(conv, nn.BatchNorm2d(channels), nn.Hardswish())


def image(layout: str = "contiguous") -> Tensor:
    return arranged(torch.randn(3, 6, 7, 9), layout)
