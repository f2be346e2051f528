"""Expansions to try kernels on, in every memory layout."""

import warnings

import torch
from torch import Tensor

from hadaptive import ops


def arranged(x: Tensor, layout: str) -> Tensor:
    """The values of x in another memory layout."""
    if layout == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    if layout == "sliced":
        wide = x.new_full([*x.shape[:-1], 2 * x.shape[-1] + 1], float("nan"))
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if layout == "batch last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    return x.contiguous()


LAYOUTS = ("contiguous", "channels_last", "sliced", "batch last")


def problem(
    shape: tuple[int, ...],
    k: int,
    dtype: torch.dtype,
    layout: str = "contiguous",
    gated: bool = True,
    scale: float = 1,
    block: int = 1,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor, Tensor]:
    pairs = ops.num_pairs(k, block)
    x = arranged((torch.randn(shape) * scale).to(dtype), layout)
    index = torch.rand(shape[:2]).topk(k).indices
    gate = torch.rand(shape[0], k) + 0.5 if gated else None
    return x, index, gate, torch.tensor([0.7]), torch.randn(pairs), torch.randn(pairs)


def leaves(arguments: tuple, dtype: torch.dtype | None = None) -> list:
    """The arguments as leaves that want a gradient; floating ones in another dtype if one is given."""
    return [
        a
        if a is None or not a.is_floating_point()
        else (a if dtype is None else a.to(dtype)).detach().requires_grad_()
        for a in arguments
    ]


def reference_because(words: str) -> str:
    """Whether an expansion is taken by plain PyTorch for a reason with these words; what is wrong otherwise."""
    arguments = problem((2, 6, 5, 5), 4, torch.float32)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        y = ops.cross_hadamard_expand(*arguments)
    found = (*ops.explain("cross_hadamard_expand", *arguments), str(said[0].message) if said else "", y.shape[1])
    return (
        ""
        if found[0] == "reference" and words in found[1] and words in found[2] and found[3] == 12
        else str(found)
    )
