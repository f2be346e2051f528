"""What the products are like while a network learns: their size, their tails, and the gradients that come back."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hadaptive.nn.ach import CrossHadamardExpansion, expansions
from hadaptive.nn.recorder import Recorder


@dataclass(frozen=True)
class ProductReport:
    """One layer's products since the recorder was last reset.

    Attributes:
        layer: qualified module name.
        scale: root mean square of the products, before their norm.
        kurtosis: of the products, in excess of a normal distribution's, 0; heavy tails have more.
        largest: the largest magnitude, over `scale`.
        normed_scale, normed_largest: root mean square, and largest magnitude, behind the norm.
        gradient: root mean square of the loss's gradient there.
        finite: whether all of it was finite.
    """

    layer: str
    scale: float
    kurtosis: float
    largest: float
    normed_scale: float
    normed_largest: float
    gradient: float
    finite: bool


class _Sums:
    """Of one layer, in float64."""

    def __init__(self) -> None:
        self.count = self.first = self.second = self.third = self.fourth = self.most = 0.0
        self.normed = self.normed_most = self.gradients = self.gradient_count = 0.0
        self.finite = True

    def add(self, products: Tensor, normed: Tensor) -> None:
        q = products.detach().double()
        self.finite = self.finite and bool(q.isfinite().all()) and bool(normed.isfinite().all())
        self.count += q.numel()
        self.first += float(q.sum())
        self.second += float(q.square().sum())
        self.third += float(q.pow(3).sum())
        self.fourth += float(q.pow(4).sum())
        self.most = max(self.most, float(q.abs().max()))
        d = normed.detach().double()
        self.normed += float(d.square().sum())
        self.normed_most = max(self.normed_most, float(d.abs().max()))

    def add_gradient(self, grad: Tensor) -> None:
        self.gradients += float(grad.detach().double().square().sum())
        self.gradient_count += grad.numel()

    def report(self, layer: str) -> ProductReport:
        mean, *raw = (total / self.count for total in (self.first, self.second, self.third, self.fourth))
        variance = raw[0] - mean**2
        fourth = raw[2] - 4 * mean * raw[1] + 6 * mean**2 * raw[0] - 3 * mean**4
        scale = math.sqrt(raw[0])
        return ProductReport(
            layer,
            scale,
            fourth / variance**2 - 3 if variance > 0 else math.nan,
            self.most / scale if scale > 0 else math.nan,
            math.sqrt(self.normed / self.count),
            self.normed_most,
            math.sqrt(self.gradients / self.gradient_count) if self.gradient_count else math.nan,
            self.finite,
        )


class ProductRecorder(Recorder):
    """Records the products of every ACH in a model while it is attached.

    The layers run unfused meanwhile, as whatever looks at their norms makes them. Use it as a context manager, or
    call :meth:`close`.

    Args:
        model: any module that contains ACH expansions.
        every: record one forward pass in `every`.
        training: whether it is in training that they are recorded, or in eval mode.
    """

    def __init__(self, model: nn.Module, every: int = 1, *, training: bool = True) -> None:
        self.layers = expansions(model)
        self.every = max(1, every)
        self.training = training
        self._sums = {name: _Sums() for name in self.layers}
        self._calls = dict.fromkeys(self.layers, 0)
        self._handles = [
            layer.norm.register_forward_hook(self._hook(name, layer)) for name, layer in self.layers.items()
        ]

    def _hook(self, name: str, layer: CrossHadamardExpansion) -> Any:
        def record(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            # A copy of the network has the hook as well.
            if module is not layer.norm or module.training != self.training:
                return
            self._calls[name] += 1
            if (self._calls[name] - 1) % self.every:
                return
            sums = self._sums[name]
            sums.add(args[0], output)
            if output.requires_grad:
                output.register_hook(sums.add_gradient)

        return record

    def reports(self) -> list[ProductReport]:
        """One report per layer that has run since the last reset, in the model's order."""
        return [sums.report(name) for name, sums in self._sums.items() if sums.count]

    def reset(self) -> None:
        """Forget what was recorded and go on recording."""
        self._sums = {name: _Sums() for name in self.layers}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """What was recorded so far, as plain numbers, for a checkpoint in the middle of an epoch."""
        return {name: {**vars(sums), "calls": self._calls[name]} for name, sums in self._sums.items()}

    def load_state_dict(self, state: dict[str, dict[str, Any]]) -> None:
        """Go on from :meth:`state_dict`."""
        for name, sums in self._sums.items():
            found = dict(state[name])
            self._calls[name] = found.pop("calls")
            vars(sums).update(found)
