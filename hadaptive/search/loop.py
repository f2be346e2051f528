"""The search: weights and architecture learn in turns, each from its own part of the training images.

Source: arXiv 2505.22226, section 4; how the architecture learns is in :mod:`hadaptive.search.estimators`. The
expected latency is a sum as in ProxylessNAS (arXiv 1812.00332); what is added to the loss is its
distance from the target, |E/T - 1|, as in TuNAS (arXiv 2008.11507): a bound from above alone leaves
young weights to vote for skipping everything.
Deviations from the published search: the test part is never read; running statistics come from weight steps alone;
architecture steps are in training mode; the architecture's optimiser is saved with the rest.

As in training, everything random is a function of (seed, epoch, step), so a resumed search is exact.
"""

import contextlib
import copy
import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn

from hadaptive.data import derive_seed
from hadaptive.errors import UserError, first_line
from hadaptive.files import write_json
from hadaptive.metrics import evaluate_model
from hadaptive.models import NetSpec
from hadaptive.nn import update_temperatures
from hadaptive.provenance import provenance
from hadaptive.search.config import SearchConfig
from hadaptive.search.estimators import gdas, rloo
from hadaptive.search.folder import SearchFolder
from hadaptive.search.latency import LatencyTable, measure_networks, references
from hadaptive.search.outcome import most_confident, relative_entropy, warnings_of
from hadaptive.search.plots import draw_network, plot_confidence, plot_search
from hadaptive.search.space import SearchSpace, label
from hadaptive.search.supernet import Supernet
from hadaptive.train.finite import NonFiniteLossError
from hadaptive.train.progress import Progress
from hadaptive.train.setup import create_data, create_optimizer
from hadaptive.train.stopping import StopRequest, TrainingInterruptedError

CALIBRATION_BATCHES = 20  # for the running statistics of a path that is evaluated


@contextlib.contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm normalise with its batch, as in training, and leave its running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    counts = [norm.num_batches_tracked for norm in norms]
    moments = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, count, momentum in zip(norms, counts, moments, strict=True):
            norm.num_batches_tracked, norm.momentum = count, momentum


class Searcher:
    """One search in progress: supernet, both optimisers, and where in the schedule it stands."""

    def __init__(
        self, config: SearchConfig, space: SearchSpace, accelerator: Accelerator, *, quiet: bool = False
    ) -> None:
        self.config, self.space, self.accelerator = config, space, accelerator
        self.show = accelerator.is_main_process and not quiet
        self.data = create_data(config, accelerator, config.alpha_fraction)
        self.num_classes = len(self.data.classes)
        torch.manual_seed(config.seed)
        drop = 0.3 if config.drop_rate is None else config.drop_rate
        self.supernet = Supernet(space, self.num_classes, config.in_chans, drop).to(accelerator.device)
        if config.channels_last:
            self.supernet.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.alpha = list(self.supernet.alpha)
        optimizer, scheduler = create_optimizer(self.supernet.candidates(), config, self.data.steps_per_epoch)
        self.scheduler = scheduler
        self.model, self.optimizer = accelerator.prepare(self.supernet, optimizer)
        alpha_steps = config.epochs * self.data.alpha_steps_per_epoch * (1 - config.weights_first)
        lr = config.alpha_lr or max(3e-4, 10.0 / max(1.0, alpha_steps))
        self.alpha_optimizer = torch.optim.AdamW(self.alpha, lr=lr, weight_decay=config.alpha_weight_decay)
        self.criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self.use(None)
        self.epoch = self.step = self.alpha_step = self.alpha_count = 0
        self.weight_loss = self.alpha_loss = self.seconds = 0.0
        self.stopping = StopRequest(accelerator)

    def use(self, table: LatencyTable | None) -> None:
        """Search under the config's target with this latency table."""
        text = self.config.latency_target
        self.table = table
        self.target = None if table is None or text is None else table.target(text)

    # -- state ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a resumed search needs, as tensors and plain data."""
        keys = ("epoch", "step", "alpha_step", "alpha_count", "weight_loss", "alpha_loss", "seconds")
        return {
            "supernet": self.supernet.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            **{key: getattr(self, key) for key in keys},
        }

    def load(self, run: SearchFolder) -> None:
        """Continue from the folder's checkpoint.

        Raises:
            UserError: the checkpoint is damaged or does not fit the search's config.
        """
        state = run.load_checkpoint()
        try:
            self.supernet.load_state_dict(state.pop("supernet"))
            self.optimizer.load_state_dict(state.pop("optimizer"))
            self.alpha_optimizer.load_state_dict(state.pop("alpha_optimizer"))
            for key in ("epoch", "step", "alpha_step", "alpha_count", "weight_loss", "alpha_loss", "seconds"):
                setattr(self, key, state[key])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{run.checkpoint} does not fit {run.config}: {first_line(error)}") from None
        self.scheduler.step_update(self.updates)

    @property
    def updates(self) -> int:
        """Weight steps taken so far."""
        return self.epoch * self.data.steps_per_epoch + self.step

    def tau(self) -> float:
        """Temperature of the Gumbel softmax now: a cosine from start to end over the architecture's steps."""
        total = self.config.epochs * self.data.steps_per_epoch
        first = self.config.weights_first * total
        done = min(1.0, max(0.0, (self.updates - first) / max(1.0, total - 1 - first)))
        start, end = self.config.tau_start, self.config.tau_end
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2

    def checkpoint(self, run: SearchFolder) -> None:
        """Write the resumable state (main process)."""
        if self.accelerator.is_main_process:
            run.save_checkpoint(self.state())
        self.accelerator.wait_for_everyone()

    # -- the search -------------------------------------------------------------------------------------------

    def fit(self, run: SearchFolder) -> dict[str, Any]:
        """Search to the end and return the summary."""
        config = self.config
        if self.accelerator.is_main_process:
            run.truncate_rows(self.epoch)
        self.progress = Progress(config.epochs * self.data.steps_per_epoch, self.updates, self.show)
        goal = "no latency target" if self.target is None else f"target {self.target:.2f} ms"
        self.progress.say(
            f"{self.space.name}, {self.space.size:.3g} choices at {len(self.space.positions)} positions, {goal}; "
            f"{self.data.train_images:,} images for the weights; writing to {run.path}"
        )
        try:
            with self.stopping.listening():
                while self.epoch < config.epochs:
                    self._run_epoch(run)
        finally:
            self.progress.close()
        return self._finish(run)

    def _run_epoch(self, run: SearchFolder) -> None:
        config, started, data = self.config, time.monotonic(), self.data
        data.set_epoch(self.epoch)
        train, alpha = data.train, data.alpha
        assert alpha is not None
        if self.step:
            train = self.accelerator.skip_first_batches(train, self.step)
        if self.alpha_step:
            alpha = self.accelerator.skip_first_batches(alpha, self.alpha_step)
        architecture = iter(alpha)
        self.model.train()
        for images, targets, _ in train:
            loss = self._weight_step(*self._ready(images, targets))
            self.weight_loss += loss
            # Spread evenly where there are fewer architecture steps than weight steps.
            due = (self.step + 1) * data.alpha_steps_per_epoch // data.steps_per_epoch
            if due > self.alpha_step:
                images, targets, _ = next(architecture)
                self.alpha_step += 1
                if self.updates >= config.weights_first * config.epochs * data.steps_per_epoch:
                    self.alpha_loss += self._alpha_step(*self._ready(images, targets))
                    self.alpha_count += 1
            self.step += 1
            self.scheduler.step_update(self.updates)
            self.progress.step(
                self.epoch, config.epochs, loss, (self.updates - self.progress.first) * config.batch_size
            )
            stop = self.stopping.agreed()
            every = config.checkpoint_every and self.step % config.checkpoint_every == 0
            if (stop or every) and self.step < data.steps_per_epoch:
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self.checkpoint(run)
                if stop:
                    raise TrainingInterruptedError(str(run.path), "search")
            if self.step == data.steps_per_epoch:
                break
        self.seconds += time.monotonic() - started
        self._end_epoch(run)

    def _ready(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        images, targets = images.to(self.accelerator.device), targets.to(self.accelerator.device)
        return (images.to(memory_format=torch.channels_last) if self.config.channels_last else images), targets

    def _generator(self, kind: int) -> torch.Generator:
        """Of this step's paths, the same on every process: kind 2 for weights, 3 for the architecture."""
        return torch.Generator().manual_seed(derive_seed(self.config.seed, kind, self.epoch, self.step))

    def _seed_noise(self, kind: int) -> None:
        process = self.accelerator.process_index
        set_seed(derive_seed(self.config.seed, kind, self.epoch, self.step, process) % 2**32)

    def _finite(self, loss: Tensor) -> float:
        value = loss.item()
        if not math.isfinite(value):
            raise NonFiniteLossError(
                f"the loss is {value} in epoch {self.epoch + 1}, step {self.step + 1}: try a lower lr"
            )
        return value

    def _weight_step(self, images: Tensor, targets: Tensor) -> float:
        self._seed_noise(4)
        generator = self._generator(2)
        first = self.config.weights_first * self.config.epochs * self.data.steps_per_epoch
        even = self.updates < first
        choice = self.space.random(generator) if even else self.supernet.sample(self.tau(), generator).choice
        with self.accelerator.autocast():
            logits = self.model(images, choice)
        loss = self.criterion(logits.float(), targets)
        value = self._finite(loss)
        self.accelerator.backward(loss)
        update_temperatures(self.supernet)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return value

    def _alpha_step(self, images: Tensor, targets: Tensor) -> float:
        self._seed_noise(5)
        generator = self._generator(3)

        def of_logits(logits: Tensor) -> Tensor:
            return self.criterion(logits.float(), targets)

        weights = self.supernet.weights()
        for weight in weights:
            weight.requires_grad_(False)
        try:
            # Past DistributedDataParallel, which would wait for the weights' gradients.
            with frozen_statistics(self.supernet), self.accelerator.autocast():
                if self.config.estimator == "gdas":
                    loss, entropy = gdas(self.supernet, images, of_logits, self.tau(), generator)
                else:
                    loss, entropy = rloo(self.supernet, images, of_logits, self.config.paths, generator)
            value = self._finite(entropy)
            if self.table is not None and self.target is not None:
                expected = self.table.expected([torch.softmax(a.float(), 0) for a in self.alpha])
                loss = loss + self.config.latency_weight * (expected / self.target - 1).abs()
            gradients = torch.autograd.grad(loss, self.alpha)
        finally:
            for weight in weights:
                weight.requires_grad_(True)
        for alpha, gradient in zip(self.alpha, gradients, strict=True):
            alpha.grad = self.accelerator.reduce(gradient, "mean")  # pyright: ignore[reportAttributeAccessIssue]
        torch.nn.utils.clip_grad_norm_(self.alpha, self.config.alpha_clip)
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)
        return value

    def evaluate(self, choice: tuple[int, ...]) -> Any:
        """Validation of one path with the supernet's weights, its running statistics estimated anew."""
        network = copy.deepcopy(self.supernet.subnet(choice))
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean of the batches
        set_seed(derive_seed(self.config.seed, 6, self.epoch) % 2**32)
        network.train()
        with torch.no_grad():
            for count, (images, targets, _) in enumerate(self.data.train):
                if count == CALIBRATION_BATCHES:
                    break
                network(self._ready(images, targets)[0])
        for norm in norms:  # the mean over the processes
            for name in ("running_mean", "running_var"):
                setattr(norm, name, self.accelerator.reduce(getattr(norm, name), "mean"))
        return evaluate_model(
            network,
            self.data.validation,
            self.num_classes,
            accelerator=self.accelerator,
            channels_last=self.config.channels_last,
        )

    def _end_epoch(self, run: SearchFolder) -> None:
        confidence = [p.cpu() for p in self.supernet.confidence()]
        started = time.monotonic()
        validation = self.evaluate(most_confident(confidence, self.table, self.target))
        self.seconds += time.monotonic() - started
        expected = "" if self.table is None else round(float(self.table.expected(confidence)), 4)
        row = {
            "epoch": self.epoch,
            "tau": self.tau(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "weight_loss": self.weight_loss / self.data.steps_per_epoch,
            "alpha_loss": self.alpha_loss / self.alpha_count if self.alpha_count else "",
            "expected_ms": expected,
            "entropy": relative_entropy(confidence),
            "val_accuracy": validation.accuracy,
            "seconds": round(self.seconds, 2),
        }
        table = [
            {
                "epoch": self.epoch,
                "position": number,
                "candidate": label(candidate),
                "alpha": float(alpha),
                "confidence": float(p),
            }
            for number, (position, alphas, ps) in enumerate(
                zip(self.space.positions, self.alpha, confidence, strict=True), start=1
            )
            for candidate, alpha, p in zip(position, alphas.detach().cpu(), ps, strict=True)
        ]
        self.progress.say(
            f"epoch {self.epoch + 1}/{self.config.epochs}: training loss {row['weight_loss']:.4f}, "
            f"relative entropy {row['entropy']:.2f}, expected latency {expected or 'not asked'}, "
            f"validation accuracy of the most confident path {validation.accuracy:.2%}"
        )
        self.epoch += 1
        self.step = self.alpha_step = self.alpha_count = 0
        self.weight_loss = self.alpha_loss = 0.0
        if self.accelerator.is_main_process:
            run.append_rows(run.metrics, [row])
            run.append_rows(run.confidence, table)
            plot_search(run)
            plot_confidence(run)
        # Last, so that a kill before it repeats the epoch and one after it does not.
        self.checkpoint(run)
        if self.stopping.agreed() and self.epoch < self.config.epochs:
            raise TrainingInterruptedError(str(run.path), "search")

    def _finish(self, run: SearchFolder) -> dict[str, Any]:
        confidence = [p.cpu() for p in self.supernet.confidence()]
        choice = most_confident(confidence, self.table, self.target)
        found = self.space.build(choice, name=f"{self.space.name}-found-seed{self.config.seed}")
        if self.accelerator.is_main_process:
            found.save(run.found)
            draw_network(found, run.strip)
        summary = {
            "run": str(run.path),
            "space": self.space.name,
            "data": self.config.data,
            "recipe": self.config.recipe,
            "seed": self.config.seed,
            "choice": list(choice),
            "confidence": [round(float(p[c]), 4) for p, c in zip(confidence, choice, strict=True)],
            "entropy": relative_entropy(confidence),
            "target_ms": self.target,
            "predicted_ms": None if self.table is None else self.table.predict(choice),
            "measured_ms": self._measure(found),
            "num_classes": self.num_classes,
            "device_type": self.accelerator.device.type,
            "warnings": warnings_of(self.space, choice, confidence),
            "search_seconds": round(self.seconds, 1),
            "processes": self.accelerator.num_processes,
            **provenance(str(self.accelerator.device)),
        }
        if self.accelerator.is_main_process:
            write_json(run.summary, summary)
            run.checkpoint.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        return summary

    def _measure(self, found: NetSpec) -> dict[str, float] | None:
        """Latency of the network found and of the published ones, in turns, ms; None where it cannot be had."""
        if self.table is None or not self.table.is_of_this_machine or not self.accelerator.is_main_process:
            return None
        specs = references(self.config.stem_strides)
        known = {name: specs[name] for name in self.table.references if name in specs}
        return measure_networks({"found": found, **known}, self.table.setting)
