"""Which channels a trained network multiplies with which, and how much its decisions hang on each product."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from hadaptive.nn.ach import expansions
from hadaptive.nn.product_block import BlockProducts
from hadaptive.nn.recorder import Recorder
from hadaptive.ops import pair_indices


@dataclass(frozen=True)
class PairReport:
    """One layer's products on some images.

    Attributes:
        layer: qualified module name.
        samples: images seen.
        frequency: (C,) float64, how often each channel was selected, in [0, 1].
        pairs: (C, C) float64, above the diagonal: how often the two channels were multiplied, in [0, 1].
        effect: (C, C) float64, above the diagonal: how far the product moves the lead of the likeliest class over
            the next, in logits, to first order and on average over all images.
        weight: (C, C) float64, above the diagonal: magnitude of the norm's weight for the product, on average over
            the images that have it; NaN where there is none, or the norm has no weights.
        share: of the products in the effect of all channels behind the layer, in [0, 1]; NaN where there are
            products alone, or nothing has an effect.
    """

    layer: str
    samples: int
    frequency: Tensor
    pairs: Tensor
    effect: Tensor
    weight: Tensor
    share: float

    @property
    def fixed(self) -> bool:
        """Whether every image had the same channels."""
        return bool(((self.frequency == 0) | (self.frequency == 1)).all())

    def strongest(self, n: int) -> list[tuple[int, int]]:
        """The n pairs of largest effect that were met, largest first."""
        met = self.pairs.flatten().nonzero().flatten()
        order = met[torch.sort(self.effect.flatten()[met], descending=True, stable=True)[1][:n]]
        return [divmod(int(place), len(self.frequency)) for place in order]

    def half(self) -> int:
        """How many pairs, the strongest first, have half of all the effect."""
        sums = torch.sort(self.effect.flatten(), descending=True)[0].cumsum(0)
        return 1 + int((sums < sums[-1] / 2).sum())


class _Sums:
    """Of one layer, on the CPU."""

    def __init__(self, channels: int) -> None:
        self.samples = 0
        self.index: Tensor | None = None
        self.chosen = torch.zeros(channels, dtype=torch.float64)
        self.pairs, self.effect, self.weight = torch.zeros(3, channels * channels, dtype=torch.float64)
        self.own = 0.0


class PairRecorder(Recorder):
    """Records the products of a network in eval mode while it is attached, and what their gradients say of them.

    The effect of a channel is the sum over its positions of its value times its gradient, as a magnitude: what
    leaving it out would change to first order. Source: arXiv 1906.10771.

    Args:
        model: with ACH expansions, or blocks of products alone; others tell nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers: dict[str, tuple[int, int, nn.Module]] = {}  # channels, block, norm
        self._sums: dict[str, _Sums] = {}
        self._handles = []
        for name, layer in expansions(model).items():
            self._add(name, layer.channels, layer.block, layer.norm)
            self._handles += [
                layer.select.register_forward_hook(partial(self._select, name)),
                layer.register_forward_hook(partial(self._ran, name, layer.channels)),
            ]
        for name, layer in model.named_modules():
            if isinstance(layer, BlockProducts):
                norm = getattr(model.get_submodule(name.rpartition(".")[0]), "norm", nn.Identity())
                self._add(name, layer.k * layer.width, layer.width, norm)
                self._handles.append(layer.register_forward_hook(partial(self._ran, name, 0)))

    def _add(self, name: str, channels: int, block: int, norm: nn.Module) -> None:
        self.layers[name] = channels, block, norm
        self._sums[name] = _Sums(channels)

    def _select(self, name: str, module: nn.Module, args: object, output: tuple[Tensor, Tensor | None]) -> None:
        self._sums[name].index = output[0].detach().cpu()

    def _ran(self, name: str, own: int, module: nn.Module, args: object, output: Tensor) -> None:
        """After a layer whose first `own` channels are no products."""
        sums, (channels, block, norm) = self._sums[name], self.layers[name]
        index = torch.arange(channels).expand(len(output), -1) if sums.index is None else sums.index
        value = output.detach()

        def record(gradient: Tensor) -> None:
            effect = (gradient * value).flatten(2).sum(2).abs().double().cpu()
            first, second = (index[:, places] for places in pair_indices(index.shape[1], block=block))
            low, high = torch.minimum(first, second), torch.maximum(first, second)
            place, products = (low * channels + high).flatten(), effect[:, own:]
            weight = getattr(norm, "weight", None)
            weights = torch.full_like(products, torch.nan) if weight is None else weight.detach().abs().cpu()
            sums.samples += len(index)
            sums.chosen += torch.bincount(index.flatten(), minlength=channels)
            sums.pairs += torch.bincount(place, minlength=channels**2)
            sums.effect.index_add_(0, place, products.flatten())
            sums.weight.index_add_(0, place, weights.double().expand_as(products).flatten())
            sums.own += float(effect[:, :own].sum()) if own else torch.nan

        if output.requires_grad:
            output.register_hook(record)

    def reports(self) -> list[PairReport]:
        """One report for each layer that gradients came back to, in the model's order."""
        found = []
        for name, sums in self._sums.items():
            if not sums.samples:
                continue
            shape = (len(sums.chosen), len(sums.chosen))
            total = float(sums.effect.sum())
            found.append(
                PairReport(
                    layer=name,
                    samples=sums.samples,
                    frequency=sums.chosen / sums.samples,
                    pairs=(sums.pairs / sums.samples).reshape(shape),
                    effect=(sums.effect / sums.samples).reshape(shape),
                    weight=(sums.weight / sums.pairs).reshape(shape),
                    share=total / (total + sums.own) if total + sums.own else torch.nan,
                )
            )
        return found


def record_pairs(model: nn.Module, batches: Iterable[Tensor]) -> list[PairReport]:
    """What :class:`PairRecorder` says of a network, which is left as it was.

    Args:
        model: in eval mode, (B, C, H, W) -> (B, classes).
        batches: of images.
    """
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in learning:
            parameter.requires_grad_(False)
        with PairRecorder(model) as recorder, torch.enable_grad():
            for images in batches if recorder.layers else ():
                logits = model(images.clone().requires_grad_())
                leading = logits.topk(min(2, logits.shape[1]), dim=1).values
                (leading[:, 0] - leading[:, 1:].sum(1)).sum().backward()
        return recorder.reports()
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
