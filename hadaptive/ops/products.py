"""Products of the selected channels, for expansions whose norm is PyTorch's, as the dispatcher knows them.

The plain path writes the two factors of each product to memory, keeps both for the gradient, and adds up what
comes back channel by channel. The kernels keep x alone. :mod:`hadaptive.ops.library` registers in the same manner.
"""

from typing import Any

import torch
from torch import Tensor

from hadaptive.ops import reference
from hadaptive.ops.batching import each_slice
from hadaptive.ops.layout import empty_map
from hadaptive.ops.pairs import num_pairs

_NAME = "hadaptive::selected_products"
_LIBRARY = torch.library.Library("hadaptive", "FRAGMENT")  # what it holds lives as long as it does
_TAGS = torch.Tag.pt2_compliant_tag
_LIBRARY.define("selected_products(Tensor x, Tensor index, Tensor? gate, int block=1) -> Tensor", tags=_TAGS)
_LIBRARY.define(
    "selected_products_backward(Tensor grad, Tensor x, Tensor index, Tensor? gate, int block=1)"
    " -> (Tensor, Tensor)",
    tags=_TAGS,
)
_forward = torch.ops.hadaptive.selected_products.default
_backward = torch.ops.hadaptive.selected_products_backward.default


def unsupported_reason(x: Tensor) -> str | None:
    """Why there is no kernel for x, or None if it depends on what holds for all operators."""
    return None if x.device.type == "cpu" else f"there is no kernel of bare products for {x.device.type}"


@torch.library.impl(_LIBRARY, "selected_products", "CPU")
def _(x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1) -> Tensor:
    from hadaptive.ops import cpu_launch  # Numba takes half a second to import

    return cpu_launch.products_forward(x, index, gate, block)


@torch.library.register_fake(_NAME, lib=_LIBRARY)
def _(x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1) -> Tensor:
    return empty_map(x, num_pairs(index.shape[1], block), torch.float32)


@torch.library.impl(_LIBRARY, "selected_products_backward", "CPU")
def _(grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1) -> tuple[Tensor, Tensor]:
    from hadaptive.ops import cpu_launch

    return cpu_launch.products_backward(grad, x, index, gate, block)


@torch.library.register_fake(f"{_NAME}_backward", lib=_LIBRARY)
def _(grad: Tensor, x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1) -> tuple[Tensor, Tensor]:
    return empty_map(x, x.shape[1]), x.new_empty(index.shape, dtype=torch.float32 if gate is None else gate.dtype)


def _save(ctx: Any, inputs: tuple, output: Any) -> None:
    *tensors, ctx.block = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    # With grad mode on (create_graph), these gradients may be differentiated themselves.
    function = reference.selected_products_backward if torch.is_grad_enabled() else _backward
    x, index, gate = ctx.saved_tensors  # once: checkpointing computes them anew, and gives each once
    of_x, of_gate = function(grad, x, index, gate, ctx.block)
    return of_x, None, None if gate is None else of_gate, None


def _differentiate_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    grad, x, index, gate = ctx.saved_tensors

    def plain(grad: Tensor, x: Tensor, *gates: Tensor) -> tuple[Tensor, Tensor]:
        return reference.selected_products_backward(grad, x, index, gates[0] if gates else None, ctx.block)

    given = (grad, x) if gate is None else (grad, x, gate)
    of_grad, of_x, *of_gate = torch.func.vjp(plain, *given)[1](grads)
    return of_grad, of_x, None, of_gate[0] if of_gate else None, None


torch.library.register_autograd(_NAME, _differentiate, setup_context=_save, lib=_LIBRARY)
torch.library.register_autograd(f"{_NAME}_backward", _differentiate_backward, setup_context=_save, lib=_LIBRARY)


def _batch(info: Any, in_dims: tuple, *inputs: Any) -> tuple[Tensor, int]:
    return torch.stack(each_slice(_forward, info.batch_size, in_dims, inputs)), 0


def _batch_backward(info: Any, in_dims: tuple, *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    found = zip(*each_slice(_backward, info.batch_size, in_dims, inputs), strict=True)
    return tuple(map(torch.stack, found)), (0, 0)


torch.library.register_vmap(_NAME, _batch, lib=_LIBRARY)
torch.library.register_vmap(f"{_NAME}_backward", _batch_backward, lib=_LIBRARY)


def selected_products(x: Tensor, index: Tensor, gate: Tensor | None, block: int = 1) -> Tensor:
    """Fused path of :func:`hadaptive.ops.selected_products`."""
    return _forward(x, index, gate, block)
