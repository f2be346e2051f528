"""Memory layouts of feature maps: positions side by side, or channels side by side."""

import torch
from torch import Tensor


def channels_contiguous(x: Tensor) -> bool:
    """Whether x (B, C, S...) has its channels side by side, as channels_last and transposed tokens have."""
    if x.dim() == 4:  # the same, for less than a tenth of the time
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def arranged(x: Tensor, cols: bool) -> Tensor:
    """x with its channels (`cols`) or its positions side by side; copied only if it must be."""
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if cols else x.contiguous()


def dense(x: Tensor, cols: bool) -> Tensor:
    """The same, detached."""
    return arranged(x.detach(), cols)


def empty_map(like: Tensor, channels: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised (B, channels, S...) in the layout of a result for `like`, and its dtype by default."""
    if channels_contiguous(like):
        return like.new_empty([like.shape[0], *like.shape[2:], channels], dtype=dtype).movedim(-1, 1)
    return like.new_empty([like.shape[0], channels, *like.shape[2:]], dtype=dtype)
