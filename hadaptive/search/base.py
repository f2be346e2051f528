"""What every search has: a supernet whose paths are evaluated, a latency table, and a folder."""

import math
from abc import abstractmethod
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from hadaptive.data import derive_seed
from hadaptive.engine.batches import Batches
from hadaptive.engine.finite import NonFiniteLossError
from hadaptive.engine.loop import Engine
from hadaptive.engine.optimiser import create_optimiser, is_second_order, take_step
from hadaptive.errors import UserError
from hadaptive.metrics import Evaluation, evaluate_model
from hadaptive.models import NetSpec
from hadaptive.nn import adapt_temperatures
from hadaptive.search.config import SearchConfig
from hadaptive.search.folder import SearchFolder
from hadaptive.search.latency import LatencyTable, measure_networks, references
from hadaptive.search.report import print_search
from hadaptive.search.space import Choice, SearchSpace

Net = TypeVar("Net", bound=nn.Module)

CALIBRATION_BATCHES = 20  # for the running statistics of a path that is evaluated


class SearchEngine(Engine):
    """One search in progress.

    Args:
        config: every setting.
        space: the candidates.
        accelerator: devices and processes.
        batches: of the images.
        quiet: print nothing.

    Raises:
        UserError: a setting does not fit the method.
    """

    command = "search"

    def __init__(
        self,
        config: SearchConfig,
        space: SearchSpace,
        accelerator: Accelerator,
        batches: Batches,
        *,
        quiet: bool = False,
    ) -> None:
        super().__init__(config, accelerator, batches, quiet=quiet)
        self.config, self.space = config, space
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.optimisation.label_smoothing)
        self.table: LatencyTable | None = None
        self.target: float | None = None
        torch.manual_seed(config.execution.seed)
        self.set_up()

    @abstractmethod
    def set_up(self) -> None:
        """Make the supernet and let it :meth:`learn`; the last of what a new search does.

        Raises:
            UserError: a setting does not fit the method.
        """

    @property
    def drop_rate(self) -> float:
        """Dropout before the classifier."""
        return 0.3 if self.config.drop_rate is None else self.config.drop_rate

    def learn(self, supernet: Net, learnt: nn.Module) -> Net:
        """Put a supernet where it learns, and give it an optimiser of what `learnt` holds.

        Raises:
            UserError: the optimiser takes second derivatives.
        """
        supernet.to(self.accelerator.device)
        if self.config.execution.channels_last:
            supernet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        how, scaled = self.config.optimisation, self.accelerator.scaler is not None
        optimizer, self.scheduler = create_optimiser(learnt, how, self.steps_per_epoch, scaled=scaled)
        if is_second_order(optimizer):
            raise UserError(f"opt {how.opt!r} takes second derivatives, a search does not: choose another")
        adapt_temperatures(optimizer, supernet)
        self.model, self.optimizer = self.accelerator.prepare(supernet, optimizer)
        return supernet

    def weight_step(self, images: Tensor, targets: Tensor, choice: Choice) -> float:
        """Let the weights of one path learn from a batch; its loss."""
        self._seed_noise(4)
        with self.accelerator.autocast():
            logits = self.model(images, choice)
        loss = self.criterion(logits.float(), targets)
        value = self._finite(loss)
        self.accelerator.backward(loss)
        take_step(self.optimizer, self._noise(4))
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def describe(self, choice: Choice) -> dict[str, Any]:
        """What the summary of any search says of itself and of what it found."""
        return {
            "space": self.space.name,
            "data": self.config.data.data,
            "recipe": self.config.recipe,
            "seed": self.config.execution.seed,
            "images": self.batches.fingerprint,
            "choice": list(choice),
            "target_ms": self.target,
            "predicted_ms": None if self.table is None else self.table.predict(choice),
            "num_classes": self.num_classes,
            "device_type": self.accelerator.device.type,
            "search_seconds": round(self.seconds, 1),
        }

    def use(self, table: LatencyTable | None) -> None:
        """Search under the config's target with this latency table."""
        text = self.config.latency.latency_target
        self.table = table
        self.target = None if table is None or text is None else table.target(text)

    def greet(self, folder: SearchFolder) -> str:
        goal = "no latency target" if self.target is None else f"target {self.target:.2f} ms"
        return (
            f"{self.space.name}, {self.space.size:.3g} choices at {len(self.space.positions)} positions, {goal}; "
            f"{self.batches.train.images:,} images for the weights; writing to {folder.path}"
        )

    def report(self, folder: SearchFolder, summary: dict[str, Any]) -> None:
        print_search(folder, self.config, self.space, summary)

    @abstractmethod
    def evaluate(self, choice: Choice) -> Evaluation:
        """Validation of one path with the supernet's weights, its running statistics estimated anew."""

    def _noise(self, kind: int) -> int:
        """The seed of this step's noise, another one for each process."""
        process = self.accelerator.process_index
        return derive_seed(self.config.execution.seed, kind, self.epoch, self.step, process) % 2**32

    def _seed_noise(self, kind: int) -> None:
        set_seed(self._noise(kind))

    def _finite(self, loss: Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss is {value} in epoch {self.epoch + 1}, step {self.step + 1}: try a lower lr"
            )
        return value

    def _validate(self, network: nn.Module, batches: int = CALIBRATION_BATCHES) -> Evaluation:
        """Validation of a network whose running statistics are those of so many batches, the same for all."""
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of the batches
        set_seed(derive_seed(self.config.execution.seed, 6, self.epoch) % 2**32)
        self.batches.train.set_epoch(self.epoch)  # of which accelerate's loader may have gone on to the next
        network.train()
        with torch.no_grad():
            for count, (images, targets, _) in enumerate(self.batches.train.loader):
                if count == batches:
                    break
                network(self.ready(images, targets)[0])
        for norm in norms:  # the mean over the processes
            for name in ("running_mean", "running_var"):
                setattr(norm, name, self.accelerator.reduce(getattr(norm, name), "mean"))
        return evaluate_model(
            network,
            self.batches.validation,
            self.num_classes,
            accelerator=self.accelerator,
            channels_last=self.config.execution.channels_last,
        )

    def _measure(self, found: dict[str, NetSpec]) -> dict[str, float] | None:
        """Latency of networks and of the published ones, in turns, ms; None where it cannot be had."""
        if self.table is None or not self.table.is_of_this_machine:
            return None
        published = references(self.config.stem_strides)  # others are known by their names
        known = {name: published.get(name, name) for name in self.table.references}
        return measure_networks({**found, **known}, self.table.setting)
