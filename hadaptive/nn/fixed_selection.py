"""Selections that are the same for every sample: frozen ones, the first k channels, and a random draw."""

import torch
import torch.fx
from torch import Tensor, nn
from torch.types import Device


@torch.fx.wrap
def _for_each_sample(index: Tensor, x: Tensor) -> Tensor:
    return index.expand(x.shape[0], -1)


@torch.fx.wrap
def _first(k: int, x: Tensor) -> Tensor:
    return torch.arange(k, device=x.device).expand(x.shape[0], -1)


class FixedSelection(nn.Module):
    """The same k channels for every sample, whatever it holds.

    Args:
        index: (k,) int64.
        device: of the buffer that keeps it; None for index's own.
        dtype: taken as other layers take it, and without effect.

    Shape:
        anything (B, ...) -> index (B, k) int64, None.
    """

    index: Tensor

    def __init__(self, index: Tensor, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.register_buffer("index", index.to(device, copy=True))

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        return _for_each_sample(self.index, x), None


class StaticSelection(FixedSelection):
    """The first k channels of every sample; it has no parameters and no state.

    After a layer that mixes channels it can express any fixed selection, because the mix learns which they are.

    Args:
        k: channels to select.
        device, dtype: taken as other layers take them, and without effect.

    Shape:
        anything (B, ...) -> index (B, k) int64, None.
    """

    def __init__(self, k: int, device: Device = None, dtype: torch.dtype | None = None) -> None:
        nn.Module.__init__(self)
        self.k = k

    @property
    def index(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(k,) int64, on the CPU. No buffer: one that is not saved is lost with weights made on "meta"."""
        return torch.arange(self.k, device="cpu")

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        return _first(self.k, x), None

    def extra_repr(self) -> str:
        return f"k={self.k}"


def random_selection(channels: int, k: int, seed: int, device: Device = None) -> FixedSelection:
    """k of the channels drawn once, in ascending order; the same for the same seed, whatever the device."""
    generator = torch.Generator("cpu").manual_seed(seed)
    index = torch.randperm(channels, generator=generator, device="cpu")[:k].sort()[0]
    return FixedSelection(index, torch.get_default_device() if device is None else device)
