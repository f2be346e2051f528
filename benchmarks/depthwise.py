"""The gradients of depthwise convolutions: PyTorch's, PyTorch's by way of a turned kernel, and ours.

Every variant is first checked against PyTorch's in float64; what computes something else is an error, not a row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hadaptive.bench.networks import LAYOUTS
from hadaptive.console import console
from hadaptive.errors import UserError
from hadaptive.files import append_csv
from hadaptive.measure.timing import interleaved, quartiles, threads
from hadaptive.ops.convolution import kernel_is_faster
from hadaptive.provenance import provenance

NETWORKS = ("hadaptive_net_s", "hadaptive_net_m", "hadaptive_net_l")
# What the rule says more than the networks need: channels, side, kernel, stride, padding, dilation; batch.
SWEEP = (
    *((128, 14, (k, k), 1, k // 2, 1, 8) for k in (1, 2, 3, 4, 5, 7, 9, 15)),
    *((64, 56, (k, k), 2, k // 2, 1, 4) for k in (3, 4, 5, 7)),
    *((128, 28, kernel, 1, 1, 1, 8) for kernel in ((1, 3), (3, 1), (1, 5), (5, 1), (3, 5))),
    *((128, 28, (3, 3), 1, padding, 1, 8) for padding in (0, 2, 3)),
    *((128, 28, (3, 3), 1, dilation, dilation, 8) for dilation in (2, 3)),
    *((32, side, (k, k), 1, k // 2, 1, 1) for side in (112, 224, 256, 512) for k in (3, 7)),
    *((channels, 28, (k, k), 1, k // 2, 1, 8) for channels in (8, 17) for k in (3, 5)),
    *((128, side, (k, k), 1, k // 2, 1, 1) for side in (7, 14) for k in (3, 5)),
)
TOLERANCE = 1e-4  # relative to the largest value
Shape = tuple[int, int, tuple[int, int], int, int, int, int]


@dataclass(frozen=True)
class DepthwiseConfig:
    """Time the gradients of the depthwise convolutions of our networks, or those that the rule was made of.

    Attributes:
        results: CSV file that the rows are appended to.
        sweep: time other kernels, paddings and sizes in place of the networks' own.
        batch: of the networks' convolutions.
        input_size: H = W of the networks' images.
        rounds: timed rounds; every variant runs once in each.
        warmup: rounds before those.
        threads: PyTorch threads; default as PyTorch chooses.
    """

    results: Path = Path("benchmarks/results/depthwise.csv")
    sweep: bool = False
    batch: int = 16
    input_size: int = 224
    rounds: int = 25
    warmup: int = 3
    threads: int | None = None


@torch.no_grad()
def convolutions(network: str, batch: int, input_size: int) -> list[Shape]:
    """Shapes of a network's depthwise convolutions, each once, in the order in which an image passes them."""
    found: dict[Shape, None] = {}
    model = timm.create_model(network).eval()

    def note(conv: nn.Module, arguments: tuple[Tensor], y: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        assert not isinstance(conv.padding, str)
        first, second = conv.kernel_size
        sizes = (conv.stride[0], conv.padding[0], conv.dilation[0])
        found[(conv.in_channels, arguments[0].shape[2], (first, second), *sizes, batch)] = None

    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.register_forward_hook(note)
    model(torch.zeros(1, 3, input_size, input_size))
    return list(found)


def _turned(grad: Tensor, weight: Tensor, padding: list[int], dilation: list[int]) -> Tensor:
    """x's gradient at stride 1 as the convolution of y's with the kernel turned round."""
    rest = [d * (k - 1) - p for d, k, p in zip(dilation, weight.shape[2:], padding, strict=True)]
    return F.conv2d(grad, weight.flip(2, 3), None, 1, rest, dilation, groups=len(weight))


def _check_same(name: str, found: Tensor, true: Tensor) -> None:
    error = float((found.double() - true).abs().max() / true.abs().max().clamp(min=1e-30))
    if not error < TOLERANCE:
        raise UserError(f"{name} does not compute what PyTorch computes (relative error {error:.1e}): no row")


def bench_shape(shape: Shape, layout: str, config: DepthwiseConfig) -> list[dict[str, Any]]:
    """A row for the forward pass and for each way to each gradient."""
    from hadaptive.ops.cpu_depthwise_launch import depthwise_backward

    channels, side, kernel, stride, padding, dilation, batch = shape
    # A kernel with a side of one is padded along the other side alone.
    pads = [min(padding, dilation * (k - 1)) if 1 in kernel else padding for k in kernel]
    torch.manual_seed(0)
    x = torch.randn(batch, channels, side, side).contiguous(memory_format=LAYOUTS[layout])
    weight = torch.randn(channels, 1, *kernel)
    strides, dilations = [stride] * 2, [dilation] * 2

    def forward() -> Tensor:
        return F.conv2d(x, weight, None, strides, pads, dilations, groups=channels)

    grad = torch.randn_like(forward())

    def theirs(*wanted: bool) -> tuple[Tensor, ...]:
        sizes = (strides, pads, dilations, False, [0, 0], channels)
        return torch.ops.aten.convolution_backward(grad, x, weight, None, *sizes, [*wanted, False])

    def ours(*wanted: bool) -> tuple[Tensor, ...]:
        return depthwise_backward(grad, x, weight, strides, pads, dilations, wanted)

    variants: dict[str, Callable[[], Any]] = {"forward, PyTorch": forward}
    for name, wanted in (("x", (True, False)), ("weight", (False, True)), ("both", (True, True))):
        variants[f"gradient of {name}, PyTorch"] = partial(theirs, *wanted)
        variants[f"gradient of {name}, ours"] = partial(ours, *wanted)
    if stride == 1 and all(p <= dilation * (k - 1) for p, k in zip(pads, kernel, strict=True)):
        variants["gradient of x, kernel turned"] = lambda: _turned(grad, weight, pads, dilations)
    sizes = (strides, pads, dilations, False, [0, 0], channels)
    wide = (t.double().contiguous() for t in (grad, x, weight))
    true = torch.ops.aten.convolution_backward(*wide, None, *sizes, [True, True, False])
    for a, b, name in zip(ours(True, True), true, ("x", "weight"), strict=False):
        _check_same(f"our gradient of {name}", a, b)
    if "gradient of x, kernel turned" in variants:
        _check_same("the turned kernel's", variants["gradient of x, kernel turned"](), true[0])
    times = interleaved(variants, config.warmup, config.rounds)
    chosen = kernel_is_faster(layout == "channels_last", x.shape, kernel, strides, pads, dilations)
    return [
        {
            "channels": channels,
            "side": side,
            "kernel": "x".join(map(str, kernel)),
            "stride": stride,
            "padding": "x".join(map(str, pads)),
            "dilation": dilation,
            "batch": batch,
            "layout": layout,
            "variant": name,
            "rule": "ours" if chosen else "PyTorch",
            **quartiles(ms),
            **provenance(),
        }
        for name, ms in times.items()
    ]


def bench_depthwise(config: DepthwiseConfig) -> list[dict[str, Any]]:
    """Check, time, print and append the rows; returns them.

    Raises:
        UserError: a variant computes something else than PyTorch in float64.
    """
    shapes = dict.fromkeys(
        SWEEP
        if config.sweep
        else (shape for name in NETWORKS for shape in convolutions(name, config.batch, config.input_size))
    )
    rows: list[dict[str, Any]] = []
    with threads(config.threads):
        for shape in shapes:
            for layout in LAYOUTS:
                new = bench_shape(shape, layout, config)
                config.results.parent.mkdir(parents=True, exist_ok=True)
                append_csv(config.results, new)
                rows += new
                _print(new)
    return rows


def _print(rows: list[dict[str, Any]]) -> None:
    """One line: milliseconds of each gradient, PyTorch's and ours, and what the rule says."""
    time = {row["variant"]: row["median_ms"] for row in rows}
    first = rows[0]
    where = "{channels} x {side}, {kernel} by {stride}, padding {padding}, dilation {dilation}, {layout}"
    pairs = (
        f"{name} {time[f'gradient of {name}, PyTorch']:.2f} / {time[f'gradient of {name}, ours']:.2f}"
        for name in ("x", "weight", "both")
    )
    console().print(f"{where.format(**first)}: {', '.join(pairs)} ms; rule: {first['rule']}", soft_wrap=True)
