"""The fused expansion as PyTorch sees it: an autograd function in eager mode, a custom op under torch.compile.

CPU tensors go to :mod:`hadaptive.ops.cpu_launch` (Numba), GPU tensors to :mod:`hadaptive.ops.triton_kernels`. The
custom op compiles without a graph break; the function costs less per call, and where no gradient is wanted the
kernel is called directly, because binding its arguments costs a function as much time as a small map's products.
Nothing but the inputs is saved. A second derivative is taken through :mod:`hadaptive.ops.reference`.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hadaptive import packages
from hadaptive.ops import reference
from hadaptive.ops.layout import empty_map

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_LIBRARIES = {"cpu": ("Numba", "hadaptive.ops.cpu_launch"), "cuda": ("Triton", "hadaptive.ops.triton_kernels")}


@torch.compiler.assume_constant_result
def _unusable(device: str) -> str | None:
    """Why the kernels for this kind of device cannot be used, or None if they can."""
    return _imported(device)


@cache
def _imported(device: str) -> str | None:
    name, module = _LIBRARIES[device]
    why = packages.obstacle(module, name.lower())
    if why is None:
        return None
    if why != "is not installed":
        warnings.warn(f"{name} {why}: operators run in plain PyTorch, which is slower", stacklevel=2)
    return f"{name} {why}"


def obstacle(x: Tensor) -> str | None:
    """Why the fused kernels cannot take x, or None if they can."""
    if x.device.type not in _LIBRARIES:
        return f"there is no fused kernel for {x.device.type}"
    unusable = _unusable(x.device.type)
    if unusable is not None:
        return unusable
    if x.dtype not in DTYPES:
        return f"{x.dtype} is left to plain PyTorch"
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        return "exports and traces take plain PyTorch operators"
    if type(x) not in (Tensor, torch.nn.Parameter) and not torch.compiler.is_compiling():
        return f"{type(x).__name__} is not a plain tensor"
    return None


def describe(x: Tensor) -> str:
    """What the kernels for x, which :func:`obstacle` lets pass, are made of."""
    if x.device.type == "cuda":
        return "Triton"
    return f"Numba, on {_kernels(x).thread_library()}"


def _kernels(x: Tensor) -> Any:
    if x.device.type == "cuda":
        from hadaptive.ops import triton_kernels

        return triton_kernels
    from hadaptive.ops import cpu_launch  # Numba takes half a second to import

    return cpu_launch


def _in_order(found: tuple[Tensor, ...], gate: Tensor | None, bias: Tensor) -> tuple[Tensor | None, ...]:
    """A kernel's gradients as those of expand's arguments."""
    of_x, of_gate, of_alpha, of_weight, of_bias = found
    return of_x, None, None if gate is None else of_gate, of_alpha, of_weight, of_bias.to(bias.dtype)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor
    ) -> Tensor:
        return _kernels(x).expand_forward(x, index, gate, alpha, weight, bias)

    setup_context = staticmethod(_save)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        saved = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph: these gradients will be differentiated themselves
            wanted = [t for t, needed in zip(saved, ctx.needs_input_grad, strict=True) if needed]
            found = iter(torch.autograd.grad(reference.expand(*saved), wanted, grad, create_graph=True))
            return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)
        x, index, gate, alpha, weight, bias = saved
        found = _kernels(x).expand_backward(grad, x, index, gate, alpha, weight)
        return _in_order(found, gate, bias)

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
        """torch.func.vmap goes through plain PyTorch."""
        return torch.vmap(reference.concatenated, in_dims=in_dims)(*inputs), 0


@torch.library.custom_op("hadaptive::expand", mutates_args=(), device_types=("cpu", "cuda"))
def _expand_op(
    x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    return _kernels(x).expand_forward(x, index, gate, alpha, weight, bias)


@torch.library.custom_op("hadaptive::expand_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _expand_backward_op(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _kernels(x).expand_backward(grad, x, index, gate, alpha, weight)


@_expand_op.register_fake
def _(x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return empty_map(x, x.shape[1] + weight.shape[0])


@_expand_backward_op.register_fake
def _(
    grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    of_gate = x.new_empty(index.shape, dtype=torch.float32 if gate is None else gate.dtype)
    return (
        empty_map(x, x.shape[1]),
        of_gate,
        torch.empty_like(alpha, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
        torch.empty_like(weight, memory_format=torch.contiguous_format),
    )


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, index, gate, alpha, weight, bias = ctx.saved_tensors
    return _in_order(_expand_backward_op(grad, x, index, gate, alpha, weight), gate, bias)


_expand_op.register_autograd(_differentiate, setup_context=_save)


# Whether torch.func transforms this call; nothing public says so, and to suppose it is only slower.
_transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _wants_gradient(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def expand(x: Tensor, index: Tensor, gate: Tensor | None, alpha: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Fused path of :func:`hadaptive.ops.expand`."""
    if torch.compiler.is_compiling():
        return _expand_op(x, index, gate, alpha, weight, bias)
    if not _transformed() and not _wants_gradient(x, gate, alpha, weight, bias):
        return _kernels(x).expand_forward(x, index, gate, alpha, weight, bias)
    return _Expand.apply(x, index, gate, alpha, weight, bias)


# One product or one activation alone moves the same bytes in plain PyTorch.
cross_hadamard = reference.cross_hadamard
dysoft = reference.dysoft
