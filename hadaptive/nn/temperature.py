"""Temperatures of the selections, as training goes on."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from hadaptive.nn.ach import CrossHadamardExpansion, expansions

WRAPPED = ("optimizer", "_base_optimizer")  # where accelerate, Lightning and timm's Lookahead keep what they wrap


def update_temperatures(model: nn.Module) -> None:
    """Adapt the temperature of every ACH in `model`; call it once after each backward pass.

    It reads the gradients of the scores, so call it before they are zeroed, after they have been unscaled
    (fp16) and, if you accumulate, once per optimiser step. Under DistributedDataParallel every rank holds the
    same gradients and so reaches the same temperature. :func:`adapt_temperatures` sees to all of it.
    """
    for module in model.modules():
        if isinstance(module, CrossHadamardExpansion):
            module.update_temperature()


def adapt_temperatures(optimizer: Any, model: nn.Module) -> RemovableHandle:
    """Adapt the temperatures of `model` in every step of its optimiser from now on, whoever calls it.

        adapt_temperatures(optimizer, model)  # once, and then train as ever

    Each temperature is updated once per step, before the weights are, from the gradients that the step uses: with
    accumulation those of all batches, under GradScaler (fused optimisers too) the unscaled ones, and not at all in
    a step that it skips. Where ``step`` is given a closure, as Lightning does, they are those of its first call.
    If you clip them before the step, temperatures see the clipped ones.

    Args:
        optimizer: of PyTorch or timm, or what accelerate or Lightning make of it.
        model: its temperatures are updated whose scores the optimiser trains; there need not be any ACH in it.

    Returns:
        a handle, whose ``remove()`` ends it. It is not part of the optimiser's state: call this again when you
        make the optimiser anew.

    Raises:
        TypeError: this is no optimiser whose steps PyTorch can watch.
        ValueError: the model selects channels, but the optimiser trains none of its scores, or it adapts their
            temperatures already.
    """
    inner = watched(optimizer)
    layers = _trained_by(inner, model)
    if not layers and any(list(expansion.score.parameters()) for expansion in expansions(model).values()):
        raise ValueError(
            "the optimiser trains none of the model's scores, so that no temperature would ever change: "
            "pass the one that does, and the model that its parameters are of"
        )
    for hook in getattr(inner, "_optimizer_step_pre_hooks", {}).values():
        if isinstance(hook, _Adapting) and not set(layers).isdisjoint(_trained_by(inner, hook.model)):
            raise ValueError("the optimiser adapts these temperatures already: remove() the handle of that first")
    return inner.register_step_pre_hook(_Adapting(model))


class _Adapting:
    """A hook of an optimiser that adapts the temperatures of `model` before each step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self.update(optimizer)
            return None
        followed = _followed_once(closure, lambda: self.update(optimizer))
        if "closure" in kwargs:
            return args, {**kwargs, "closure": followed}
        return (args[0], followed, *args[2:]), kwargs

    def update(self, optimizer: Optimizer) -> None:
        # What a fused optimiser is told by a GradScaler, and sees to itself.
        scale, skipped = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        for layer in _trained_by(optimizer, self.model):
            layer.update_temperature(scale, skipped)


def watched(optimizer: Any) -> Optimizer:
    """The optimiser whose steps PyTorch's hooks see: itself, or the one it wraps.

    Raises:
        TypeError: there is none.
    """
    inner = optimizer
    while inner is not None:
        if isinstance(inner, Optimizer) and getattr(type(inner).step, "hooked", False):
            return inner
        inner = next((value for name in WRAPPED if (value := getattr(inner, name, None)) is not None), None)
    raise TypeError(f"{type(optimizer).__name__} is no optimiser whose steps PyTorch can watch")


def _trained_by(optimizer: Optimizer, model: nn.Module) -> list[CrossHadamardExpansion]:
    """The layers that select channels by scores of which the optimiser has the weights."""
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    layers = expansions(model).values()
    return [layer for layer in layers if any(id(parameter) in trained for parameter in layer.score.parameters())]


def _followed_once(closure: Callable[[], Any], then: Callable[[], None]) -> Callable[[], Any]:
    """`closure`, and `then` after the first time it is called."""
    due = [then]

    def followed() -> Any:
        result = closure()
        if due:
            due.pop()()
        return result

    return followed
