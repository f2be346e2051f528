"""One channel of each of k groups, for each sample: output slots keep their meaning, gates their scale."""

import torch
import torch.fx
from torch import Tensor
from torch.types import Device

from hadaptive.nn.selection import ChannelSelection, perturbed, straight_through


def group_starts(channels: int, k: int, device: torch.device) -> Tensor:
    """Where k contiguous groups of nearly equal size begin, and then the number of channels: (k + 1,) int64."""
    return torch.arange(k + 1, device=device) * channels // k


def _in_groups(values: Tensor, k: int) -> Tensor:
    """(B, C) -> (B, k, largest group); what a smaller group lacks is -inf."""
    batch, channels = values.shape
    if not torch.jit.is_tracing() and channels % k == 0:
        return values.reshape(batch, k, -1)
    starts = group_starts(channels, k, values.device)
    places = starts[:-1].unsqueeze(1) + torch.arange(-(-channels // k), device=values.device)
    places = torch.where(places < starts[1:].unsqueeze(1), places, channels)
    padded = torch.nn.functional.pad(values, (0, 1), value=-float("inf"))
    return padded.index_select(1, places.flatten()).reshape(batch, k, -1)


def best_of_groups(scores: Tensor, k: int) -> Tensor:
    """The channel of the largest score in each group; among equals the lower one. (B, C) -> (B, k) int64.

    NaN comes before every number, as in :func:`hadaptive.nn.top_k_channels`.
    """
    groups = _in_groups(torch.where(scores.isnan(), float("inf"), scores), k)
    inner = torch.arange(groups.shape[2], device=scores.device)
    # Not argmax: which of equals that takes depends on the device.
    place = torch.where(groups == groups.amax(2, keepdim=True), inner, groups.shape[2]).amin(2)
    return place + group_starts(scores.shape[1], k, scores.device)[:-1]


@torch.fx.wrap
def _selected(
    scores: Tensor, k: int, temperature: Tensor, training: bool, generator: torch.Generator | None, noise: float
) -> tuple[Tensor, Tensor | None]:
    if not training:
        return best_of_groups(scores, k), None
    logits = perturbed(scores, noise, generator) / temperature.clone()
    index = best_of_groups(logits.detach(), k)
    groups = torch.softmax(_in_groups(logits, k), dim=2)
    place = index - group_starts(scores.shape[1], k, scores.device)[:-1]
    soft = groups.gather(2, place.unsqueeze(2)).squeeze(2)
    return index, straight_through(soft)


class GroupedSelection(ChannelSelection):
    """Select one channel of each of k contiguous groups per sample: Gumbel-max while training, plain in eval mode.

    A softmax over a group sums to 1, as the one-hot mask it stands for does, so that the straight-through gradient
    needs no scale. A slot is always filled from the same group.

    Args:
        k: groups.
        device: of the buffers.
        dtype: taken as other layers take it, and without effect.
        noise, temperature: as in :class:`ChannelSelection`.

    Shape:
        scores (B, C), C >= k -> index (B, k) int64, gate (B, k) float32 or None (eval mode: all ones).
    """

    def __init__(
        self,
        k: int,
        device: Device = None,
        dtype: torch.dtype | None = None,
        *,
        noise: float = 1.0,
        temperature: float | None = None,
    ) -> None:
        super().__init__(k, "index", "softmax", device, dtype, noise=noise, temperature=temperature)

    def forward(self, scores: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        index, gate = _selected(scores, self.k, self.temperature, self.training, generator, self.noise)
        return index, gate

    def best(self, scores: Tensor) -> Tensor:
        return best_of_groups(scores, self.k)

    def most(self, frequency: Tensor, place: Tensor) -> Tensor:
        return best_of_groups(frequency.unsqueeze(0), self.k)[0]

    def margins(self, scores: Tensor) -> Tensor:
        groups = _in_groups(scores, self.k)
        if groups.shape[2] < 2:
            return torch.full_like(scores[:, 0], torch.inf)
        first, second = groups.topk(2, dim=2).values.unbind(2)
        return (first - second).amin(1)
