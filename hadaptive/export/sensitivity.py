"""What int8 costs, layer by layer: each is quantised alone.

In PyTorch, with weights rounded per output channel and activations per tensor, as ONNX Runtime and OpenVINO do.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hadaptive.errors import UserError
from hadaptive.export.proof import Right, one_class
from hadaptive.measure.deploy import DeployNet, DeployProducts
from hadaptive.measure.deploy_products import DeployPairs

LEVELS = 255

Weighted = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class LayerCost:
    """What int8 does to a network when it quantises one layer alone.

    Attributes:
        layer: qualified name in the deployed network; products are one layer with their factors.
        low, high: range of what the layer reads, of its result for products, over the calibration images.
        noise: root mean square change of the logits over their root mean square.
        lost: accuracy in points; negative where rounding happens to help.
    """

    layer: str
    low: float
    high: float
    noise: float
    lost: float

    def to_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return asdict(self)


def fake_quantise(x: Tensor, low: float, high: float) -> Tensor:
    """Round to the 256 levels of an asymmetric range that holds zero."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max(high - low, 1e-12) / LEVELS
    zero = round(-low / scale)
    return (torch.clamp(torch.round(x / scale) + zero, 0, LEVELS) - zero) * scale


def rounded_weight(weight: Tensor) -> Tensor:
    """Round to int8, symmetric, with a scale for each output channel."""
    scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True).clamp(min=1e-12) / 127
    return torch.round(weight / scale) * scale


def layers(net: DeployNet) -> dict[str, list[Weighted]]:
    """What is quantised together, by name: a convolution or linear layer alone, or all the parts of products."""
    products = {name: m for name, m in net.named_modules() if isinstance(m, DeployProducts | DeployPairs)}
    found: dict[str, list[Weighted]] = {}
    for name, module in net.named_modules():
        if name in products:
            found[name] = list(products[name].convolutions())
        elif isinstance(module, Weighted) and not any(name.startswith(f"{p}.") for p in products):
            found[name] = [module]
    return found


@torch.no_grad()
def sensitivity(
    net: DeployNet,
    calibration: Sequence[Tensor],
    images: Sequence[Tensor],
    targets: Tensor,
    right_of: Right = one_class,
) -> list[LayerCost]:
    """Quantise one layer after another, each alone, and see what it costs.

    Args:
        net: deployed, float32, on the CPU.
        calibration: batches (B, C, H, W) that give the ranges.
        images: batches that accuracy is measured on.
        targets: (N,) of theirs.
        right_of: which images some logits get right.

    Returns:
        A row for each layer, in the network's order.
    """
    ranges = _ranges(net, calibration)
    expected = torch.cat([net(batch) for batch in images])
    right = right_of(expected, targets).float().mean()
    rows = []
    for name, parts in layers(net).items():
        with _quantised(net, name, parts, ranges):
            found = torch.cat([net(batch) for batch in images])
        noise = (found - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-12)
        lost = 100 * (right - right_of(found, targets).float().mean())
        rows.append(LayerCost(name, *ranges[name], float(noise), float(lost)))
    return rows


def _points(net: DeployNet, name: str, parts: list[Weighted]) -> dict[str, tuple[nn.Module, bool]]:
    """Where a layer's activations are rounded: a module by name, and whether its result or what it reads."""
    owner = net.get_submodule(name)
    if not isinstance(owner, DeployProducts | DeployPairs):
        return {name: (owner, False)}
    points: dict[str, tuple[nn.Module, bool]] = {name: (owner, True)}
    for number, part in enumerate(parts):
        points[f"{name}.{number}<"], points[f"{name}.{number}>"] = (part, False), (part, True)
    return points


def _ranges(net: DeployNet, calibration: Sequence[Tensor]) -> dict[str, tuple[float, float]]:
    found: dict[str, tuple[float, float]] = {}

    def watch(point: str, x: Tensor) -> Tensor:
        low, high = found.get(point, (float("inf"), -float("inf")))
        found[point] = (min(low, float(x.min())), max(high, float(x.max())))
        return x

    handles = []
    for name, parts in layers(net).items():
        for point, (module, result) in _points(net, name, parts).items():
            handles.append(_attach(module, result, lambda x, point=point: watch(point, x)))
    try:
        for batch in calibration:
            net(batch)
    finally:
        for handle in handles:
            handle.remove()
    if not found:
        raise UserError("a network cannot be quantised without calibration images")
    return found


def _attach(module: nn.Module, result: bool, change: Callable[[Any], Tensor]) -> Any:
    """Pass a module's result, or what it reads first, through a function."""
    if result:
        return module.register_forward_hook(lambda m, args, output: change(output))
    return module.register_forward_pre_hook(lambda m, args: (change(args[0]), *args[1:]))


@contextmanager
def _quantised(
    net: DeployNet, name: str, parts: list[Weighted], ranges: dict[str, tuple[float, float]]
) -> Iterator[None]:
    """One layer rounded to int8, inside."""
    weights = [part.weight.data for part in parts]
    handles = [
        _attach(module, result, lambda x, point=point: fake_quantise(x, *ranges[point]))
        for point, (module, result) in _points(net, name, parts).items()
    ]
    try:
        for part, weight in zip(parts, weights, strict=True):
            part.weight.data = rounded_weight(weight)
        yield
    finally:
        for part, weight in zip(parts, weights, strict=True):
            part.weight.data = weight
        for handle in handles:
            handle.remove()
