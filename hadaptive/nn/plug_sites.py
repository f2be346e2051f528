"""Where ACH can take the place of an expansion: found by what runs after what, not by the names of classes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

NORMS_OF_TORCH = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm)
DENSE = (nn.Conv2d, nn.Linear)


@dataclass
class Call:
    """A layer without children, as it ran."""

    name: str
    module: nn.Module
    input: Tensor
    output: Tensor


@dataclass
class Expansion:
    """What is found: the layers in the order in which they ran."""

    name: str
    layer: nn.Conv2d | nn.Linear
    channels: int
    width: int
    between: list[Call] = field(default_factory=list)
    project: Call | None = None
    twin: Call | None = None


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[Call]]:
    """Inside, what runs in `model`, in order, of layers without children."""
    calls: list[Call] = []

    def hook(name: str) -> Any:
        def record(module: nn.Module, args: tuple, output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                calls.append(Call(name, module, args[0], output))

        return record

    handles, whole = [], ""
    for name, module in model.named_modules():
        if whole and name.startswith(whole):
            continue  # the activation of a norm that has its own: the norm is the layer
        if isinstance(module, NORMS_OF_TORCH) or not any(True for _ in module.children()):
            handles.append(module.register_forward_hook(hook(name)))
            whole = f"{name}."
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def _run(model: nn.Module, image: Tensor) -> list[Call]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with _watched(model) as calls:
            model(image)
    finally:
        for module in training:  # each its own: a frozen norm may be in eval mode while the rest is not
            module.training = True
    return calls


def cost(model: nn.Module, image: Tensor) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of convolutions and linear layers for the image."""
    macs = 0
    for call in _run(model, image):
        layer = call.module
        if isinstance(layer, nn.Conv2d):
            macs += layer.weight.numel() * call.output[0, 0].numel()
        elif isinstance(layer, nn.Linear):
            macs += layer.weight.numel() * (call.output.numel() // layer.out_features)
    return sum(p.numel() for p in model.parameters()), macs


def _widths(layer: nn.Module) -> tuple[int, int] | None:
    """Channels in and out of a dense 1x1 convolution or linear layer; None of anything else."""
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == layer.stride == (1, 1) and layer.groups == 1:
        return layer.in_channels, layer.out_channels
    return None


def is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels > 1


def find_expansions(model: nn.Module, image: Tensor, any_width: bool) -> list[Expansion]:
    """Those of the network, in order; layers that do not widen as well if `any_width`."""
    calls = _run(model, image)
    count: dict[int, int] = {}
    for call in calls:
        count[id(call.module)] = count.get(id(call.module), 0) + 1
    found: list[Expansion] = []
    twins: set[str] = set()
    for place, call in enumerate(calls):
        widths = _widths(call.module)
        if widths is None or call.name in twins or count[id(call.module)] > 1:
            continue
        axis = -1 if isinstance(call.module, nn.Linear) else 1
        if widths[1] < widths[0] + (not any_width) or call.input.numel() == call.input.shape[axis]:
            continue  # it does not widen, or is of pooled maps: a head, or part of a squeeze-and-excite
        assert isinstance(call.module, nn.Conv2d | nn.Linear)
        expansion = Expansion(call.name, call.module, *widths)
        if _follow(expansion, call, calls[place + 1 :]) and _multiplies(model, image, expansion):
            found.append(expansion)
            if expansion.twin is not None:
                twins.add(expansion.twin.name)
    return found


def _multiplies(model: nn.Module, image: Tensor, expansion: Expansion) -> bool:
    """Whether a second branch is multiplied with the first, if there is one: without it nothing is left."""
    if expansion.twin is None:
        return True
    assert expansion.project is not None
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0)).to(image)
    branch = model.get_submodule(unit_of(model, expansion.twin.name))

    def silence(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    handle = branch.register_forward_hook(silence)
    try:
        calls = _run(model, noise)
    finally:
        handle.remove()
    return all(not call.input.any() for call in calls if call.name == expansion.project.name)


def unit_of(model: nn.Module, name: str) -> str:
    """The outermost module that holds this layer and nothing else that is dense."""
    while "." in name:
        parent = name.rpartition(".")[0]
        dense = [m for m in model.get_submodule(parent).modules() if isinstance(m, DENSE)]
        if len(dense) > 1:
            break
        name = parent
    return name


def _follow(expansion: Expansion, first: Call, later: list[Call]) -> bool:
    """Add what runs behind an expansion, as far as its projection; whether all of it is understood."""
    n, axis = expansion.width, -1 if isinstance(expansion.layer, nn.Linear) else 1
    for call in later:
        layer, widths = call.module, _widths(call.module)
        if call.input is first.input and widths == (expansion.channels, n) and expansion.twin is None:
            expansion.twin = call
            continue
        pooled = call.input.numel() == call.input.shape[axis] < first.output.numel()
        if widths is not None and widths[0] == n and not pooled:
            expansion.project = call
            return True
        if isinstance(layer, DENSE) and not pooled and not (is_depthwise(layer) and layer.in_channels == n):
            return False
        expansion.between.append(call)
    return False
