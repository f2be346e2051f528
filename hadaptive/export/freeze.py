"""Fixed selections: the channels that calibration images choose most, for every image."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hadaptive.errors import UserError
from hadaptive.nn import ChannelSelection, FixedSelection, expansions
from hadaptive.nn.selection_stats import selection_entropy


@dataclass(frozen=True)
class Calibration:
    """What one ACH layer selected in eval mode.

    Attributes:
        frequency: (C,) float64, share of the images that selected each channel.
        place: (C,) float64, mean place among the selected; NaN for channels never selected.
        index: (k,) int64, the channels selected most, in the order a fixed selection keeps them.
    """

    frequency: Tensor
    place: Tensor
    index: Tensor

    @property
    def agreement(self) -> float:
        """Share of an image's selection that the fixed one holds, on average."""
        return float(self.frequency[self.index].mean())

    @property
    def entropy(self) -> float:
        """Entropy of the frequencies relative to an even choice's: 1 spreads, log k / log C is fixed."""
        return selection_entropy(self.frequency)

    def summary(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {"channels": self.index.tolist(), "agreement": self.agreement, "entropy": self.entropy}


@torch.no_grad()
def calibrate(network: nn.Module, batches: Iterable[Tensor]) -> dict[str, Calibration]:
    """Run images (B, C, H, W) through a network in eval mode and watch every dynamic selection.

    Among equals the lower channel is fixed. With ``order="rank"`` the fixed channels stand in the order of their
    mean rank, so that weights meet the products they were trained with; else in the order of their numbers.

    Returns:
        By the qualified name of each ACH expansion.

    Raises:
        UserError: there are no images.
    """
    layers = {n: m for n, m in expansions(network).items() if isinstance(m.select, ChannelSelection)}
    counts, places = (
        {n: torch.zeros(m.channels, dtype=torch.float64, device="cpu") for n, m in layers.items()}
        for _ in range(2)
    )
    images = 0

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: tuple[Tensor, Any]) -> None:
            index = output[0].cpu()
            place = torch.arange(index.shape[1], dtype=torch.float64, device="cpu").expand(index.shape[0], -1)
            counts[name] += torch.bincount(index.flatten(), minlength=len(counts[name]))
            places[name].index_add_(0, index.flatten(), place.flatten())

        return hook

    handles = [layer.select.register_forward_hook(watch(name)) for name, layer in layers.items()]
    was_training = network.training
    network.eval()
    try:
        for batch in batches:
            network(batch)
            images += len(batch)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    if not images:
        raise UserError("selections cannot be fixed without calibration images")
    result = {}
    for name, layer in layers.items():
        place = places[name] / counts[name]
        assert isinstance(layer.select, ChannelSelection)
        index = layer.select.most(counts[name], place)
        result[name] = Calibration(counts[name] / images, place, index)
    return result


def freeze(network: nn.Module, calibration: dict[str, Calibration]) -> nn.Module:
    """A copy of the network whose ACH layers select the calibrated channels, whatever the image.

    Raises:
        UserError: the calibration is of another network.
    """
    frozen = copy.deepcopy(network)
    for name, layer in expansions(frozen).items():
        if isinstance(layer.select, FixedSelection):
            continue
        if name not in calibration:
            raise UserError(f"the calibration knows no layer {name}: it is of another network")
        layer.freeze(calibration[name].index)
    return frozen
