"""Transforms of torch.func: whether one runs, and how torch.vmap runs kernels that know no further dimension."""

from typing import Any

import torch

# Whether torch.func transforms this call; nothing public says so, and to suppose it is only slower.
transformed = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def each_slice(operator: Any, size: int, in_dims: tuple, inputs: tuple) -> list:
    """What an operator makes of each of `size` slices: tensors along their mapped dimension."""
    return [
        operator(*(t if dim is None else t.select(dim, n) for t, dim in zip(inputs, in_dims, strict=True)))
        for n in range(size)
    ]
