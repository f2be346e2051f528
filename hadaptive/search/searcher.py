"""The search: weights and architecture learn in turns, each from its own part of the training images.

Source: arXiv 2505.22226, section 4; how the architecture learns is in :mod:`hadaptive.search.estimators`. The
expected latency is a sum as in ProxylessNAS (arXiv 1812.00332); what is added to the loss is its
distance from the target, |E/T - 1|, as in TuNAS (arXiv 2008.11507): a bound from above alone leaves
young weights to vote for skipping everything.
Deviations from the published search: the test part is never read; running statistics come from weight steps alone;
architecture steps are in training mode; the architecture's optimiser is saved with the rest.

As in training, everything random is a function of (seed, epoch, step), so a resumed search is exact.
"""

import copy
import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hadaptive.data import derive_seed
from hadaptive.engine.finite import NonFiniteLossError
from hadaptive.engine.loop import Rows
from hadaptive.engine.processes import on_main
from hadaptive.errors import UserError
from hadaptive.metrics import Evaluation, share_text
from hadaptive.search.base import SearchEngine
from hadaptive.search.doubts import (
    collapsed,
    far_from_target,
    few_turns,
    misses,
    no_better_than_chance,
    undecided,
)
from hadaptive.search.estimators import common_noise, frozen_statistics, gdas, rloo, without_dropout
from hadaptive.search.folder import SearchFolder
from hadaptive.search.labels import label
from hadaptive.search.outcome import most_confident, relative_entropy
from hadaptive.search.plots import draw_network, plot_confidence, plot_search
from hadaptive.search.space import Choice
from hadaptive.search.supernet import Supernet

TRIES = 3  # networks that are measured until one is within the target


class Searcher(SearchEngine):
    """One search in progress: supernet, both optimisers, and where in the schedule it stands.

    Args:
        config: every setting.
        space: the candidates.
        accelerator: devices and processes.
        batches: of the images, with some for the architecture.
        quiet: print nothing.
    """

    def set_up(self) -> None:
        config, space, batches = self.config, self.space, self.batches
        assert batches.alpha is not None
        if space.varies:
            raise UserError(
                f"{space.name} has networks of several widths or alternatives, which no gradient compares: use "
                "--method evolution, or a space of one of each"
            )
        self.alpha_batches = batches.alpha
        in_chans = config.preprocessing.in_chans
        supernet = Supernet(space, self.num_classes, in_chans, self.drop_rate)
        self.supernet = self.learn(supernet, supernet.candidates())
        self.alpha = list(self.supernet.alpha)
        how = config.architecture
        self.first = how.weights_first * self.epochs * self.steps_per_epoch  # step of the architecture
        alpha_steps = self.epochs * self.alpha_batches.steps * (1 - how.weights_first)
        way = 2.0 if how.estimator == "gdas" else 10.0  # a single path's gradient is mostly chance
        lr = how.alpha_lr or max(3e-4, way / max(1.0, alpha_steps))
        self.alpha_optimizer = torch.optim.AdamW(self.alpha, lr=lr, weight_decay=how.alpha_weight_decay)
        self.alpha_step = self.alpha_count = 0
        self.alpha_loss = 0.0

    # -- state ------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        return {
            "supernet": self.supernet.state_dict(),
            "alpha_optimizer": self.alpha_optimizer.state_dict(),
            "alpha_step": self.alpha_step,
            "alpha_count": self.alpha_count,
            "alpha_loss": self.alpha_loss,
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.supernet.load_state_dict(state["supernet"])
        self.alpha_optimizer.load_state_dict(state["alpha_optimizer"])
        self.alpha_step, self.alpha_count = state["alpha_step"], state["alpha_count"]
        self.alpha_loss = state["alpha_loss"]

    def tau(self) -> float:
        """Temperature of the Gumbel softmax now: a cosine from start to end over the architecture's steps."""
        total = self.epochs * self.steps_per_epoch
        done = min(1.0, max(0.0, (self.updates - self.first) / max(1.0, total - 1 - self.first)))
        start, end = self.config.architecture.tau_start, self.config.architecture.tau_end
        return end + (start - end) * (1 + math.cos(math.pi * done)) / 2

    # -- steps ------------------------------------------------------------------------------------------------

    def begin_epoch(self) -> None:
        self.alpha_batches.set_epoch(self.epoch)
        self.architecture = iter(self.rest_of(self.alpha_batches.loader, self.alpha_step))

    def micro_step(self, images: Tensor, targets: Tensor, number: int) -> float:
        generator, even = self._generator(2), self.updates < self.first
        choice = self.space.random(generator) if even else self.supernet.sample(self.tau(), generator).choice
        return self.weight_step(images, targets, choice)

    def between_steps(self) -> None:
        # Spread evenly where there are fewer architecture steps than weight steps.
        due = (self.step + 1) * self.alpha_batches.steps // self.steps_per_epoch
        if due <= self.alpha_step:
            return
        images, targets, unreadable = next(self.architecture)
        self.note_unreadable("alpha", unreadable[unreadable >= 0].tolist())
        self.alpha_step += 1
        if self.updates >= self.first:
            self.alpha_loss += self._alpha_step(*self.ready(images, targets))
            self.alpha_count += 1

    def _generator(self, kind: int) -> torch.Generator:
        """Of this step's paths, the same on every process: kind 2 for weights, 3 for the architecture."""
        seed = derive_seed(self.config.execution.seed, kind, self.epoch, self.step)
        return torch.Generator().manual_seed(seed)

    def _alpha_step(self, images: Tensor, targets: Tensor) -> float:
        how, net, generator = self.config.architecture, self.supernet, self._generator(3)

        def of_logits(logits: Tensor) -> Tensor:
            return self.criterion(logits.float(), targets)

        weights = net.weights()
        for weight in weights:
            weight.requires_grad_(False)
        try:
            # Past DistributedDataParallel, which would wait for the weights' gradients. Paths are to differ in
            # their candidates alone, not in what chance does to them.
            noise = common_noise(net, self._noise(5))
            with frozen_statistics(net), without_dropout(net), noise, self.accelerator.autocast():
                if how.estimator == "gdas":
                    loss, entropy = gdas(net, images, of_logits, self.tau(), generator)
                else:
                    loss, entropy = rloo(net, images, of_logits, how.paths, generator)
            value = self._finite(entropy)
            if self.table is not None and self.target is not None:
                expected = self.table.expected([torch.softmax(a.float(), 0) for a in self.alpha])
                loss = loss + self.config.latency.latency_weight * (expected / self.target - 1).abs()
            gradients = torch.autograd.grad(loss, self.alpha)
        finally:
            for weight in weights:
                weight.requires_grad_(True)
        for alpha, gradient in zip(self.alpha, gradients, strict=True):
            alpha.grad = self.accelerator.reduce(gradient, "mean")  # pyright: ignore[reportAttributeAccessIssue]
        norm = torch.nn.utils.clip_grad_norm_(self.alpha, how.alpha_clip)
        if not math.isfinite(norm):  # one step with it, and no candidate is the most confident one
            raise NonFiniteLossError(
                f"the architecture's gradient is {float(norm)} in epoch {self.epoch + 1}, step {self.step + 1}: "
                "try a lower lr"
            )
        self.alpha_optimizer.step()
        self.alpha_optimizer.zero_grad(set_to_none=True)
        return value

    # -- an epoch, and the end --------------------------------------------------------------------------------

    def evaluate(self, choice: Choice) -> Evaluation:
        return self._validate(copy.deepcopy(self.supernet.subnet(choice)))

    def summarise_epoch(self, folder: SearchFolder) -> tuple[Rows, str]:
        confidence = [p.cpu() for p in self.supernet.confidence()]
        validation = self.timed(lambda: self.evaluate(most_confident(confidence, self.table, self.target)))
        self.note_unreadable("validation", validation.unreadable)
        self.require_images(validation, "validation", folder)
        expected = "" if self.table is None else round(float(self.table.expected(confidence)), 4)
        row = {
            "epoch": self.epoch,
            "tau": self.tau(),
            "lr": self.optimizer.param_groups[0]["lr"],
            "weight_loss": self.loss_sum / self.steps_per_epoch,
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
        line = (
            f"epoch {self.epoch + 1}/{self.epochs}: training loss {row['weight_loss']:.4f}, "
            f"relative entropy {row['entropy']:.2f}, expected latency {expected or 'not asked'}, "
            f"validation accuracy of the most confident path {share_text(validation.correct, validation.total)}"
        )
        self.scheduler.after_epoch(self.updates, validation.loss)
        self.alpha_step = self.alpha_count = 0
        self.alpha_loss = 0.0
        return {folder.metrics: [row], folder.confidence: table}, line

    def draw(self, folder: SearchFolder) -> None:
        plot_search(folder)
        plot_confidence(folder)

    def conclude(self, folder: SearchFolder) -> dict[str, Any]:
        confidence = [p.cpu() for p in self.supernet.confidence()]
        choice, measured = on_main(self.accelerator, lambda: self._within(confidence))
        found = self.space.build(choice, name=f"{self.space.name}-found-seed{self.config.execution.seed}")

        def write() -> None:
            found.save(folder.found)
            draw_network(found, folder.strip)

        on_main(self.accelerator, write)
        validation = self.evaluate(choice)
        doubts = [
            *collapsed(self.space, choice),
            *undecided(choice, confidence),
            *no_better_than_chance("what was found", validation, validation.total, self.num_classes),
            *few_turns(max(self.space.counts), self.epochs, self.steps_per_epoch),
            *misses((measured or {}).get("found"), self.target),
        ]
        if self.table is not None and self.target is not None:
            doubts += far_from_target(float(self.table.expected(confidence)), self.target)
        return {
            **self.describe(choice),
            "confidence": [round(float(p[c]), 4) for p, c in zip(confidence, choice, strict=True)],
            "entropy": relative_entropy(confidence),
            "measured_ms": measured,
            "warnings": doubts,
        }

    def _within(self, confidence: list[Tensor]) -> tuple[Choice, dict[str, float] | None]:
        """The most confident network within the target when it is measured, and what was measured, ms.

        Where one is slower than predicted, the table is taken to be wrong by as much for all, and asked again.
        """
        table = self.table
        for left in reversed(range(TRIES)):
            choice = most_confident(confidence, table, self.target)
            measured = self._measure({"found": self.space.build(choice)})
            if not left or measured is None or self.target is None or measured["found"] <= self.target:
                break
            assert table is not None
            wrong = measured["found"] / table.predict(choice)
            slower = replace(table, slope=wrong * table.slope, offset=wrong * table.offset)
            if wrong <= 1 or slower.range()[0] > self.target:
                break
            table = slower
        return choice, measured  # pyright: ignore[reportPossiblyUnboundVariable]
