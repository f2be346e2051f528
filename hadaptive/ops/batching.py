"""How torch.vmap runs an operator whose kernels know no further dimension."""

from typing import Any


def each_slice(operator: Any, size: int, in_dims: tuple, inputs: tuple) -> list:
    """What an operator makes of each of `size` slices: tensors along their mapped dimension."""
    return [
        operator(*(t if dim is None else t.select(dim, n) for t, dim in zip(inputs, in_dims, strict=True)))
        for n in range(size)
    ]
