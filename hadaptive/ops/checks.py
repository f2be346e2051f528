"""What the door asks of every operator's arguments: each raises ValueError or TypeError with one sentence.

A trace would take the sizes that these look at for constants, and warn of each: it is not asked.
"""

from typing import Any

import torch
from torch import Tensor


def _check_tensor(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_map(x: Tensor, name: str, channels: int = 0) -> None:
    if torch.jit.is_tracing():
        return
    _check_tensor(name, x)
    if x.layout is not torch.strided or x.is_nested:
        raise ValueError(f"{name} must be a dense tensor, got {'a nested one' if x.is_nested else x.layout}")
    if x.dim() < 2:
        raise ValueError(f"{name} must have shape (B, C, S...), got {tuple(x.shape)}")
    if x.shape[1] < channels:
        raise ValueError(f"{name} must have at least {channels} channels to form a pair, got {x.shape[1]}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {x.dtype}")


def check_beside(x: Tensor, name: str, other: Tensor) -> None:
    """Whether another argument, floating unless it is the index, can be read where x lies."""
    _check_tensor(name, other)
    if other.device != x.device:
        raise ValueError(f"{name} is on {other.device} and the map on {x.device}; move one to the other")
    if other.layout is not torch.strided or other.is_nested:
        raise ValueError(f"{name} must be a dense tensor")
    if name != "index" and not other.is_floating_point():
        raise ValueError(f"{name} must be a floating-point tensor, got {other.dtype}")


def check_affine(x: Tensor, alpha: Tensor, weight: Tensor, bias: Tensor, channels: int) -> None:
    if torch.jit.is_tracing():
        return
    for name, tensor in (("alpha", alpha), ("weight", weight), ("bias", bias)):
        check_beside(x, name, tensor)
    if alpha.numel() != 1 or alpha.dim() > x.dim():  # more dims would be the result's
        raise ValueError(f"alpha must hold one number, shape (1,), got shape {tuple(alpha.shape)}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.shape != (channels,):
            raise ValueError(f"{name} must have shape ({channels},), got {tuple(tensor.shape)}")


def check_selection(x: Tensor, index: Tensor, gate: Tensor | None, channels: int = 0) -> None:
    if torch.jit.is_tracing():
        return
    check_map(x, "x")
    check_beside(x, "index", index)
    if gate is not None:
        check_beside(x, "gate", gate)
    if index.dim() != 2 or index.shape[0] != x.shape[0]:
        raise ValueError(f"index must have shape (B, k) with B = {x.shape[0]}, got {tuple(index.shape)}")
    if index.dtype != torch.int64:
        raise ValueError(f"index must be int64, got {index.dtype}")
    if index.shape[1] > x.shape[1]:
        raise ValueError(f"index selects k = {index.shape[1]} of only {x.shape[1]} channels")
    if gate is not None and gate.shape != index.shape:
        raise ValueError(f"gate must have index's shape {tuple(index.shape)}, got {tuple(gate.shape)}")
    if index.shape[1] < channels:
        raise ValueError(f"index must select at least {channels} channels, got k = {index.shape[1]}")


def check_block(index: Tensor, block: int) -> None:
    """Whether whole blocks of so many channels can be multiplied."""
    if torch.jit.is_tracing() or (type(block) is int and block == 1):
        return
    if isinstance(block, bool) or not isinstance(block, int | torch.SymInt) or block < 1:
        raise ValueError(f"block must be a positive whole number, got {block!r}")
    k = index.shape[1]
    if k % block or k < 2 * block:
        raise ValueError(f"k = {k} selected channels are not two or more whole blocks of {block}")
