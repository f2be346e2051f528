"""The Adaptive Cross-Hadamard module in place of the expansions of any network of timm's.

An expansion is a 1x1 convolution or a linear layer from C to n > C channels with a projection of those n behind
it: that of an inverted residual, of an MLP, or of two branches that are multiplied (StarNet). It is found by what
runs after what, not by the names of classes.

Source: arXiv 2505.22226, section 5, where the last two blocks of four networks are replaced.
"""

import fnmatch
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hadaptive.errors import first_line
from hadaptive.nn.ach import AdaptiveCrossHadamard, CrossHadamardExpansion, k_for_width
from hadaptive.nn.plug_sites import DENSE, NORMS_OF_TORCH, Expansion, cost, find_expansions, is_depthwise, unit_of


class TokenCrossHadamard(nn.Module):
    """ACH for tokens: Linear, then the cross-Hadamard expansion. (B, N..., C) -> (B, N..., C + P).

    Args:
        channels, k: as in :class:`CrossHadamardExpansion`, and so are the options.
        bias: of the linear layer.
    """

    def __init__(self, channels: int, k: int, bias: bool = True, **options: Any) -> None:
        super().__init__()
        dd = {name: options.get(name) for name in ("device", "dtype")}
        self.mix = nn.Linear(channels, channels, bias=bias, **dd)
        self.cross_hadamard = CrossHadamardExpansion(channels, k, **options)
        self.out_channels = self.cross_hadamard.out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.cross_hadamard(self.mix(x).movedim(-1, 1)).movedim(1, -1)


class _One(nn.Module):
    """The number 1: the factor of what is not multiplied any more."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_ones(())


@dataclass(frozen=True)
class Plugged:
    """An expansion that was replaced.

    Attributes:
        name: of the layer that ACH is in place of.
        channels: C, that go in.
        before, after: how wide the expansion was and is.
        k: channels that are multiplied.
        parameters, macs: how many fewer the network has, for one image of the size that was tried; negative where
            it has more.
        products: element-wise products of ACH for that image.
    """

    name: str
    channels: int
    before: int
    after: int
    k: int
    parameters: int
    macs: int
    products: int


_OWN = ("self", "channels", "k", "device", "dtype")  # which the network says
_OPTIONS = {name for name in inspect.signature(CrossHadamardExpansion.__init__).parameters if name not in _OWN}
_NOT_HERE = (RuntimeError, TypeError, AttributeError, AssertionError, IndexError)  # what a forward pass may say


class _Change:
    """What was done to a network for one expansion, and how to take it back."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []
        self.report: Plugged | None = None

    def undo(self) -> None:
        for step in reversed(self.steps):
            step()


def plug(
    model: nn.Module,
    where: int | str | Sequence[str] = 2,
    k: int | None = None,
    *,
    input_size: tuple[int, int, int] | None = None,
    **options: Any,
) -> list[Plugged]:
    """Put ACH in place of expansions of `model`, which is changed; all other weights stay.

    What lies between the expansion and its projection, and the projection, keep the weights of as many channels as
    there are now. A norm right behind the expansion goes, as ACH has its own; the activation stays only where no
    depthwise convolution follows, as in the paper's bottleneck.

    Args:
        model: of timm, or built like its networks.
        where: the last so many expansions, or names of layers or patterns such as "blocks.3.*".
        k: channels selected; None for the largest whose products fit in the old width.
        input_size: (C, H, W) of an image to try; None for what timm's configuration says.
        options: of :class:`CrossHadamardExpansion`: norm, selection, pairing (with `k`) and others.

    Returns:
        What was replaced, in the network's order.

    Raises:
        ValueError: nothing here can be replaced, not as much as was asked for, or an option does not fit; `model`
            is as it was.
    """
    unknown = sorted(options.keys() - _OPTIONS)
    if unknown:
        raise ValueError(f"plug has no option {unknown[0]!r}; there are {', '.join(sorted(_OPTIONS))}")
    size = _input_size(model, input_size)
    weight = next(model.parameters())
    image = torch.zeros(1, *size, device=weight.device, dtype=weight.dtype)
    try:
        found = find_expansions(model, image, any_width=k is not None)
    except _NOT_HERE as error:
        raise ValueError(f"the network takes no images of {size} ({first_line(error)}): pass input_size") from None
    wanted, names = _wanted(found, where)
    changes: list[_Change] = []
    refused: list[str] = []
    spent = cost(model, image)
    for expansion in wanted:
        if isinstance(where, int) and len(changes) == where:
            break
        change = _Change()
        try:
            width, multiplied, products = _replace(model, expansion, k, options, change)
            now = cost(model, image)
        except _NOT_HERE as error:
            change.undo()
            refused.append(f"{expansion.name} ({first_line(error)})")
            continue
        except BaseException:
            for done in (change, *reversed(changes)):
                done.undo()
            raise
        channels, before = expansion.channels, expansion.width
        change.report = Plugged(
            expansion.name, channels, before, width, multiplied, spent[0] - now[0], spent[1] - now[1], products
        )
        changes.append(change)
        spent = now
    short = len(changes) < where if isinstance(where, int) else bool(refused)
    if short:
        for done in reversed(changes):
            done.undo()
        why = f"; it does not fit into {', '.join(refused)}" if refused else ""
        fitting = [change.report.name for change in changes if change.report]
        which = f"fits only into {', '.join(fitting)}" if fitting and isinstance(where, int) else "was put nowhere"
        raise ValueError(f"ACH {which} of {', '.join(names)}{why}")
    reports = [change.report for change in changes if change.report is not None]
    return reports[::-1] if isinstance(where, int) else reports


def _input_size(model: nn.Module, given: tuple[int, int, int] | None) -> tuple[int, int, int]:
    if given is not None:
        return given
    config: Any = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    size = config.get("input_size")
    if size is None:
        raise ValueError("the network does not say which images it takes: pass input_size, (C, H, W)")
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d)), None)
    return (size[0] if first is None else first.in_channels, *size[1:])


def _wanted(found: list[Expansion], where: int | str | Sequence[str]) -> tuple[list[Expansion], list[str]]:
    """The expansions to try, in order of preference, and the names of all."""
    if not found:
        raise ValueError("the network has no expansion that ACH could take the place of")
    names = [expansion.name for expansion in found]
    if isinstance(where, int):
        if isinstance(where, bool) or where < 1:
            raise ValueError(f"where must be a positive number or names of layers, got {where!r}")
        if where > len(found):
            raise ValueError(f"the network has only {len(found)} expansions: {', '.join(names)}")
        return found[::-1], names
    patterns = [where] if isinstance(where, str) else list(where)
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no expansion is called {pattern!r}; there are {', '.join(names)}")
    matching = {name for pattern in patterns for name in fnmatch.filter(names, pattern)}
    return [expansion for expansion in found if expansion.name in matching], names


def _replace(
    model: nn.Module, expansion: Expansion, k: int | None, options: dict[str, Any], change: _Change
) -> tuple[int, int, int]:
    """Put ACH in its place; how wide it is, how many channels it multiplies, and products for an image."""
    layer, n, channels = expansion.layer, expansion.width, expansion.channels
    assert expansion.project is not None
    pairs = k
    if pairs is None and options.get("pairing") == "blocks":
        raise ValueError("how many blocks there are is k: pass it, such as k=4")
    if pairs is None:
        pairs = min(k_for_width(channels, n), channels)
        if pairs < 2:
            raise RuntimeError(f"from {channels} channels to {n}, no room for a product")
    dd: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    new: Any
    if isinstance(layer, nn.Linear):
        new = TokenCrossHadamard(channels, pairs, layer.bias is not None, **options, **dd)
    else:
        new = AdaptiveCrossHadamard(channels, pairs, **options, **dd)
    new.train(layer.training)
    width = new.out_channels
    depthwise = any(is_depthwise(call.module) for call in expansion.between)
    unit, acts = _unit_behind(model, expansion)
    _put(model, unit, nn.Sequential(new, *acts) if acts and not depthwise else new, change)
    behind = True  # until something has been done to the channels
    for call in expansion.between:
        module = call.module
        if call.name.startswith(f"{unit}."):
            continue
        if behind and isinstance(module, NORMS_OF_TORCH):
            _put(model, call.name, nn.Identity() if depthwise else _activation_of(module), change)
            continue
        if behind and _is_activation(module):
            if depthwise:
                _put(model, call.name, nn.Identity(), change)
            continue
        behind = behind and not any(True for _ in module.parameters())
        _resize(module, n, width, change)
    if expansion.twin is not None:
        _put(model, unit_of(model, expansion.twin.name), _One(), change)
    _resize(expansion.project.module, n, width, change, inputs_only=True)
    inner = new.cross_hadamard
    return width, inner.k, (width - channels) * (expansion.project.input.numel() // n)


def _unit_behind(model: nn.Module, expansion: Expansion) -> tuple[str, list[nn.Module]]:
    """The outermost module of this layer, a norm and an activation, which may be fused; and its activations."""
    allowed, acts = {expansion.name}, dict[str, nn.Module]()
    for call in expansion.between:
        if isinstance(call.module, NORMS_OF_TORCH):
            act = _activation_of(call.module)
        elif _is_activation(call.module):
            act = call.module
        else:
            break
        allowed.add(call.name)
        if not isinstance(act, nn.Identity):
            acts[call.name] = act
    name = expansion.name
    while "." in name:
        parent = name.rpartition(".")[0]
        modules = model.get_submodule(parent).named_modules()
        inside = [f"{parent}.{own}" for own, module in modules if own and _does_something(module)]
        if any(not any(own == ok or own.startswith(f"{ok}.") for ok in allowed) for own in inside):
            break
        name = parent
    if name == expansion.name:
        return name, []
    return name, [act for own, act in acts.items() if own.startswith(f"{name}.")]


def _does_something(module: nn.Module) -> bool:
    return not isinstance(module, nn.Identity | nn.Dropout) and not any(True for _ in module.children())


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))


def _activation_of(norm: nn.Module) -> nn.Module:
    """The activation that a norm of timm's may have."""
    act = getattr(norm, "act", None)
    return act if isinstance(act, nn.Module) else nn.Identity()


def _put(model: nn.Module, name: str, new: nn.Module, change: _Change) -> None:
    parent, _, own = name.rpartition(".")
    owner = model.get_submodule(parent)
    old = owner.get_submodule(own)
    owner.register_module(own, new)
    change.steps.append(lambda: owner.register_module(own, old))


_SIZES = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")


def _resize(module: nn.Module, n: int, width: int, change: _Change, inputs_only: bool = False) -> None:
    """Let a layer of n channels have `width`: the first of them, or all and new ones."""
    kept = {name: getattr(module, name) for name in (*_SIZES, "normalized_shape") if hasattr(module, name)}
    parameters, buffers = dict(module._parameters), dict(module._buffers)

    def restore() -> None:
        for name, value in kept.items():
            setattr(module, name, value)
        module._parameters.update(parameters)
        module._buffers.update(buffers)

    change.steps.append(restore)
    if isinstance(module, nn.Conv2d) and is_depthwise(module) and not inputs_only:
        module.in_channels = module.out_channels = module.groups = width
        _fit(module, 0, width)
    elif isinstance(module, DENSE):
        ins, outs = ("in_features", "out_features") if isinstance(module, nn.Linear) else _SIZES[:2]
        if getattr(module, outs) == n and not inputs_only:
            setattr(module, outs, width)
            _fit(module, 0, width)
        if getattr(module, ins) == n:
            setattr(module, ins, width)
            module.weight = nn.Parameter(_fitted(module.weight, 1, width), module.weight.requires_grad)
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.num_features = width
        _fit(module, 0, width)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = (width,)
        _fit(module, 0, width)
    elif any(t is not None and n in t.shape for t in (*parameters.values(), *buffers.values())):
        raise RuntimeError(f"a {type(module).__name__} of {n} channels cannot be given {width}")


def _fit(module: nn.Module, axis: int, width: int) -> None:
    """All tensors of a layer's own."""
    for name, tensor in list(module._parameters.items()):
        if tensor is not None:
            module._parameters[name] = nn.Parameter(_fitted(tensor, axis, width), tensor.requires_grad)
    for name, tensor in list(module._buffers.items()):
        if tensor is not None and tensor.dim():
            module._buffers[name] = _fitted(tensor, axis, width)


@torch.no_grad()
def _fitted(tensor: Tensor, axis: int, width: int) -> Tensor:
    """The first `width` rows of an axis; rows that there are not are drawn from those there are."""
    rows = torch.arange(width, device=tensor.device)
    more = rows >= tensor.shape[axis]
    rows[more] = torch.randint(tensor.shape[axis], (int(more.sum()),), device=tensor.device)
    return tensor.detach().index_select(axis, rows).clone()
