"""Every operator that has kernels, as PyTorch's dispatcher knows it: one schema each, and all that belongs to it.

An operator is defined once and has an implementation for the CPU (Numba) and for CUDA (Triton), a shape function
for fake tensors, a gradient and a batching rule. Eager calls, autograd, ``torch.compile``, ``make_fx``, profilers
and dispatch modes all meet the same schema. Gradients save nothing but the inputs; where they are themselves
differentiated they are taken in plain PyTorch. What no registration can express (forward-mode derivatives, the
transforms of ``torch.func``) the door hands to plain PyTorch.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hadaptive import packages
from hadaptive.ops import convolution, norm, products, reference
from hadaptive.ops.batching import each_slice, transformed
from hadaptive.ops.layout import empty_map

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_PACKAGES = {"cpu": ("Numba", "hadaptive.ops.cpu_launch"), "cuda": ("Triton", "hadaptive.ops.triton_launch")}


@torch.compiler.assume_constant_result
def _unusable(device: str) -> str | None:
    """Why the kernels for this kind of device cannot be used, or None if they can."""
    return _imported(device)


@cache
def _imported(device: str) -> str | None:
    name, module = _PACKAGES[device]
    why = packages.obstacle(module, name.lower())
    if why is None:
        return None
    if why != "is not installed":
        warnings.warn(f"{name} {why}: operators run in plain PyTorch, which is slower", stacklevel=2)
    return f"{name} {why}"


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether a forward-mode derivative runs through one of these: a kernel would drop its tangent in silence."""
    forward_mode = torch.autograd.forward_ad
    return any(t is not None and forward_mode.unpack_dual(t).tangent is not None for t in tensors)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a gradient can be asked for of what these go into."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def unsupported_reason(operator: str, x: Tensor, *others: Tensor | None) -> str | None:
    """Why the kernels of `operator` cannot take these tensors, or None if they can."""
    if operator == "batch_norm_act":
        return norm.unsupported_reason(x, *others)
    if operator == "depthwise":
        reason = convolution.unsupported_reason(x, *others)
        if reason is not None:
            return reason
    if operator == "selected_products":
        reason = products.unsupported_reason(x)
        if reason is not None:
            return reason
    if x.device.type not in _PACKAGES:
        return f"there is no fused kernel for {x.device.type}"
    unusable = _unusable(x.device.type)
    if unusable is not None:
        return unusable
    if x.dtype not in DTYPES:
        return f"{x.dtype} is left to plain PyTorch"
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "exports and traces take plain PyTorch operators"
    if transformed():
        return "transforms of torch.func run through plain PyTorch"
    if torch.compiler.is_compiling():
        if not wants_gradient(x, *others):
            return "without gradients a compiler makes faster code of plain PyTorch"
        return None
    if type(x) not in (Tensor, torch.nn.Parameter):
        return f"{type(x).__name__} is not a plain tensor"
    if has_tangent(x, *others):
        return "forward-mode derivatives are taken in plain PyTorch"
    return None


def describe(x: Tensor) -> str:
    """What the kernels for x, which :func:`unsupported_reason` lets pass, are made of."""
    if x.device.type == "cuda":
        return "Triton"
    from hadaptive.ops import cpu_run

    return f"Numba, on {cpu_run.thread_library()}"


# The expansion: select, multiply, DySoft, append.

_NAME = "hadaptive::cross_hadamard_expand"
_LIBRARY = torch.library.Library("hadaptive", "DEF")  # what it holds lives as long as it does
_EXPAND = "(Tensor x, Tensor index, Tensor? gate, Tensor alpha, Tensor weight, Tensor bias, int block=1) -> Tensor"
_EXPAND_BACKWARD = (
    "(Tensor grad, Tensor x, Tensor index, Tensor? gate, Tensor alpha, Tensor weight, int block=1)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(f"cross_hadamard_expand{_EXPAND}", tags=torch.Tag.pt2_compliant_tag)
_LIBRARY.define(f"cross_hadamard_expand_backward{_EXPAND_BACKWARD}", tags=torch.Tag.pt2_compliant_tag)
_expand = torch.ops.hadaptive.cross_hadamard_expand.default
_expand_backward = torch.ops.hadaptive.cross_hadamard_expand_backward.default


@torch.library.impl(_LIBRARY, "cross_hadamard_expand", "CPU")
def _(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor, block: int = 1
) -> Tensor:
    from hadaptive.ops import cpu_launch  # Numba takes half a second to import

    return cpu_launch.expand_forward(x, index, gate, alpha, weight, bias, block)


@torch.library.impl(_LIBRARY, "cross_hadamard_expand", "CUDA")
def _(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor, block: int = 1
) -> Tensor:
    from hadaptive.ops import triton_launch

    return triton_launch.expand_forward(x, index, gate, alpha, weight, bias, block)


@torch.library.register_fake(_NAME, lib=_LIBRARY)
def _(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor, block: int = 1
) -> Tensor:
    return empty_map(x, x.shape[1] + weight.shape[0])


@torch.library.impl(_LIBRARY, "cross_hadamard_expand_backward", "CPU")
def _(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, block: int = 1
) -> tuple[Tensor, ...]:
    from hadaptive.ops import cpu_launch

    return cpu_launch.expand_backward(grad, x, index, gate, alpha, weight, block)


@torch.library.impl(_LIBRARY, "cross_hadamard_expand_backward", "CUDA")
def _(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, block: int = 1
) -> tuple[Tensor, ...]:
    from hadaptive.ops import triton_launch

    return triton_launch.expand_backward(grad, x, index, gate, alpha, weight, block)


@torch.library.register_fake(f"{_NAME}_backward", lib=_LIBRARY)
def _(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, block: int = 1
) -> tuple[Tensor, ...]:
    contiguous = torch.contiguous_format
    return (
        empty_map(x, x.shape[1]),
        x.new_empty(index.shape, dtype=torch.float32 if gate is None else gate.dtype),
        torch.empty_like(alpha, memory_format=contiguous),
        torch.empty_like(weight, memory_format=contiguous),
        torch.empty_like(weight, memory_format=contiguous),
    )


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    *tensors, ctx.block = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_expand(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, index, gate, alpha, weight, bias = ctx.saved_tensors
    # With grad mode on (create_graph, torch.func), these gradients may be differentiated themselves.
    function = reference.cross_hadamard_expand_backward if torch.is_grad_enabled() else _expand_backward
    of_x, of_gate, of_alpha, of_weight, of_bias = function(grad, x, index, gate, alpha, weight, ctx.block)
    return of_x, None, None if gate is None else of_gate, of_alpha, of_weight, of_bias.to(bias.dtype), None


torch.library.register_autograd(_NAME, _differentiate_expand, setup_context=_save, lib=_LIBRARY)


def _differentiate_expand_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    places = [n for n, t in enumerate(saved) if t is not None and n != 2]  # 2 is index

    def plain(*tensors: Tensor) -> tuple[Tensor, ...]:
        arguments = [*saved, ctx.block]
        for n, t in zip(places, tensors, strict=True):
            arguments[n] = t
        return reference.cross_hadamard_expand_backward(*arguments)

    found = torch.func.vjp(plain, *(saved[n] for n in places))[1](grads)
    gradients: list[Tensor | None] = [None] * len(saved)
    for n, t in zip(places, found, strict=True):
        gradients[n] = t
    return (*gradients, None)


torch.library.register_autograd(
    f"{_NAME}_backward", _differentiate_expand_backward, setup_context=_save, lib=_LIBRARY
)


def _map_expand(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
    return torch.stack(each_slice(_expand, info.batch_size, in_dims, inputs)), 0


def _map_expand_backward(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    found = zip(*each_slice(_expand_backward, info.batch_size, in_dims, inputs), strict=True)
    return tuple(map(torch.stack, found)), (0,) * 5


torch.library.register_vmap(_NAME, _map_expand, lib=_LIBRARY)
torch.library.register_vmap(f"{_NAME}_backward", _map_expand_backward, lib=_LIBRARY)


def cross_hadamard_expand(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor, block: int = 1
) -> Tensor:
    """Fused path of :func:`hadaptive.ops.cross_hadamard_expand`."""
    return _expand(x, index, gate, alpha, weight, bias, block)


# Depthwise convolutions: PyTorch's, with gradients of ours.

_SIZES = "SymInt[2] stride, SymInt[2] padding, SymInt[2] dilation"
_LIBRARY.define(
    f"depthwise(Tensor x, Tensor weight, Tensor? bias, {_SIZES}) -> Tensor", tags=torch.Tag.pt2_compliant_tag
)
_LIBRARY.define(
    f"depthwise_backward(Tensor grad, Tensor x, Tensor weight, {_SIZES}, bool[2] wanted) -> (Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_depthwise = torch.ops.hadaptive.depthwise.default
_depthwise_backward = torch.ops.hadaptive.depthwise_backward.default

torch.library.impl(_LIBRARY, "depthwise", "CPU")(reference.depthwise)
torch.library.register_fake("hadaptive::depthwise", reference.depthwise, lib=_LIBRARY)


@torch.library.impl(_LIBRARY, "depthwise_backward", "CPU")
def _(grad: Tensor, x: Tensor, weight: Tensor, *sizes: Any) -> tuple[Tensor, Tensor]:
    from hadaptive.ops import cpu_depthwise_launch

    return cpu_depthwise_launch.depthwise_backward(grad, x, weight, *sizes)


@torch.library.register_fake("hadaptive::depthwise_backward", lib=_LIBRARY)
def _(
    grad: Tensor, x: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, wanted: Any
) -> tuple[Tensor, Tensor]:
    of_x = empty_map(x, x.shape[1]) if wanted[0] else x.new_empty(0)
    return of_x, weight.new_empty(weight.shape if wanted[1] else 0)


def _save_depthwise(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.sizes = inputs[3:]


def _differentiate_depthwise(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    *wanted, wants_bias = ctx.needs_input_grad[:3]
    function: Any = reference.depthwise_backward if torch.is_grad_enabled() else _depthwise_backward
    found = function(grad, *ctx.saved_tensors, *ctx.sizes, wanted) if any(wanted) else (grad, grad)
    of_bias = grad.sum((0, 2, 3)) if wants_bias else None
    return (*(t if yes else None for t, yes in zip(found, wanted, strict=True)), of_bias, None, None, None)


torch.library.register_autograd(
    "hadaptive::depthwise", _differentiate_depthwise, setup_context=_save_depthwise, lib=_LIBRARY
)


def _save_depthwise_backward(ctx: Any, inputs: tuple, output: Any) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _differentiate_depthwise_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    def plain(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return reference.depthwise_backward(grad, x, weight, *ctx.rest)

    return (*torch.func.vjp(plain, *ctx.saved_tensors)[1](grads), None, None, None, None)


torch.library.register_autograd(
    "hadaptive::depthwise_backward",
    _differentiate_depthwise_backward,
    setup_context=_save_depthwise_backward,
    lib=_LIBRARY,
)


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, *sizes: convolution.Size) -> Tensor:
    """:func:`hadaptive.ops.depthwise` with gradients of ours."""
    return _depthwise(x, weight, bias, *map(convolution.both, sizes))


selected_products = products.selected_products
batch_norm_act = norm.batch_norm_act  # in training

# One product or one activation alone moves the same bytes in plain PyTorch.
cross_hadamard = reference.cross_hadamard
dysoft = reference.dysoft
