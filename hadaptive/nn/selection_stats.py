"""What the selections do, on request: nothing is recorded, and nothing is paid, until a recorder is attached."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hadaptive.nn.ach import CrossHadamardExpansion, expansions
from hadaptive.nn.normalisation import DySoft
from hadaptive.nn.recorder import Recorder
from hadaptive.nn.selection import ChannelSelection


def _name_in_version_1(layer: str) -> str:
    """What recorded states called a layer before ``expansion`` became ``cross_hadamard``."""
    return layer.removesuffix("cross_hadamard") + "expansion"


def selection_entropy(frequency: Tensor) -> float:
    """Entropy of selection frequencies (C,) relative to the uniform's, in [0, 1]."""
    p = frequency / frequency.sum().clamp(min=1e-12)
    return float(torch.special.entr(p).sum()) / math.log(max(2, len(p)))


@dataclass
class SelectionReport:
    """One layer's selections since the recorder was last reset.

    Attributes:
        layer: qualified module name.
        samples: number of samples seen.
        frequency: (C,) float32, how often each channel was selected, in [0, 1].
        agreement: share of the selected channels that the noiseless scores would have selected too,
            in [0, 1]; 1 in eval mode.
        temperature: the current one.
        alpha: DySoft's alpha, or NaN under another norm.
    """

    layer: str
    samples: int
    frequency: Tensor
    agreement: float
    temperature: float
    alpha: float

    @property
    def entropy(self) -> float:
        """Entropy of the selection frequencies relative to the uniform's: 1 spreads, log k / log C is fixed."""
        return selection_entropy(self.frequency)

    def most_selected(self, n: int = 8) -> list[int]:
        """The n channels selected most often, most frequent first."""
        return torch.sort(self.frequency, descending=True, stable=True)[1][:n].tolist()


class _LayerCounts:
    """Sums of one layer: tensors that change in place, for torch.compile compiles anew for each number."""

    def __init__(self, channels: int) -> None:
        self.counts = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self.agreed = torch.zeros((), dtype=torch.float64, device="cpu")
        self.samples = torch.zeros((), dtype=torch.int64, device="cpu")

    def tensors(self) -> dict[str, Tensor]:
        return {"counts": self.counts, "agreed": self.agreed, "samples": self.samples}

    def to(self, device: torch.device) -> None:
        if self.counts.device != device:
            for name, tensor in self.tensors().items():
                setattr(self, name, tensor.to(device))


class SelectionRecorder(Recorder):
    """Records the selections of every ACH in a model while it is attached; fixed ones tell nothing.

    Use it as a context manager, or call :meth:`close`::

        with SelectionRecorder(model) as recorder:
            model(images)
        for report in recorder.reports(): print(report.layer, report.agreement)

    Args:
        model: any module that contains ACH expansions.
        every: record one forward pass in `every`, to make the recording cheaper; under torch.compile it costs
            little, and all are recorded.
    """

    def __init__(self, model: nn.Module, every: int = 1) -> None:
        layers = expansions(model)
        self.layers = {n: m for n, m in layers.items() if isinstance(m.select, ChannelSelection)}
        self.every = max(1, every)
        self._counts = {name: _LayerCounts(layer.channels) for name, layer in self.layers.items()}
        self._calls: dict[str, int] = {}
        self._handles = [
            layer.select.register_forward_hook(self._hook(name, layer)) for name, layer in self.layers.items()
        ]

    def _hook(self, name: str, layer: CrossHadamardExpansion):
        def record(module: ChannelSelection, args: tuple, output: tuple[Tensor, Tensor | None]) -> None:
            if module is not layer.select:  # a copy of the network, made meanwhile, has the hook as well
                return
            if not torch.compiler.is_compiling():
                calls = self._calls.get(name, 0)
                self._calls[name] = calls + 1
                if calls % self.every:
                    return
            scores, index = args[0].detach(), output[0]
            state = self._counts[name]
            state.to(scores.device)
            chosen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device).scatter_(1, index, True)
            noiseless = torch.zeros_like(chosen).scatter_(1, module.best(scores), True)
            state.counts += chosen.sum(0)
            state.agreed += (chosen & noiseless).sum()
            state.samples += len(scores)

        return record

    def reports(self) -> list[SelectionReport]:
        """One report per layer that has run since the last reset, in the model's order."""
        result = []
        for name, layer in self.layers.items():
            state = self._counts[name]
            samples = int(state.samples)
            if not samples:
                continue
            result.append(
                SelectionReport(
                    layer=name,
                    samples=samples,
                    frequency=(state.counts / samples).float().cpu(),
                    agreement=float(state.agreed) / (samples * layer.k),
                    temperature=float(layer.select.get_buffer("temperature")),
                    alpha=float(layer.norm.alpha.detach()) if isinstance(layer.norm, DySoft) else float("nan"),
                )
            )
        return result

    def reset(self) -> None:
        """Forget what was recorded and go on recording."""
        for counts in self._counts.values():
            for tensor in counts.tensors().values():
                tensor.zero_()
        self._calls.clear()

    def state_dict(self) -> dict[str, Tensor]:
        """What was recorded so far, as plain tensors, for a checkpoint in the middle of an epoch."""
        state: dict[str, Tensor] = {}
        for name, counts in self._counts.items():
            state |= {f"{name}.{key}": tensor.to("cpu", copy=True) for key, tensor in counts.tensors().items()}
        for name, calls in self._calls.items():
            state[f"{name}.calls"] = torch.tensor(calls)
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`."""
        self.reset()
        for layer, counts in self._counts.items():
            name = layer if f"{layer}.counts" in state else _name_in_version_1(layer)
            if f"{name}.calls" in state:
                self._calls[layer] = int(state[f"{name}.calls"])
            if f"{name}.counts" in state:
                for key, tensor in counts.tensors().items():
                    tensor.copy_(state[f"{name}.{key}"])
