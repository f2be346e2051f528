"""The training loop: the same weights whether a run is interrupted or not.

Nothing random depends on what happened before: images are seeded by (seed, epoch, image), steps by (seed, epoch,
step, process). So a checkpoint holds no generator states, and one taken in the middle of an epoch is exact.
"""

import dataclasses
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hadaptive.data import derive_seed
from hadaptive.errors import UserError, first_line
from hadaptive.files import write_json
from hadaptive.metrics import Evaluation, evaluate_model
from hadaptive.nn import SelectionRecorder, update_temperatures
from hadaptive.provenance import provenance
from hadaptive.runs import RunFolder
from hadaptive.train.config import TrainConfig
from hadaptive.train.finite import NonFiniteLossError, first_non_finite
from hadaptive.train.plots import plot_curves
from hadaptive.train.processes import on_main
from hadaptive.train.progress import Progress
from hadaptive.train.setup import (
    begun_network,
    create_accelerator,
    create_data,
    create_optimizer,
    starting_network,
)
from hadaptive.train.stopping import StopRequest, TrainingInterruptedError

RECORD_EVERY = 10  # steps between recorded selections; a step in ten is enough for shares and costs nothing


def default_output(config: TrainConfig) -> Path:
    """A new folder's name under runs/, from the time, the model and the data."""
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{Path(config.model).stem}-{Path(config.data).name}"
    return Path("runs") / stem


def train(config: TrainConfig, *, quiet: bool = False, test: bool = True) -> dict[str, Any]:
    """Train a network from scratch and leave a run folder.

    Args:
        config: every setting; ``config.output`` is the folder to make.
        quiet: print nothing.
        test: measure on the test part at the end, where there is one.

    Returns:
        The summary that is also in the folder, with its path under "run".

    Raises:
        UserError: a setting, the data or the model do not fit; the folder exists; the loss became non-finite.
        TrainingInterruptedError: stopped by a signal, after a checkpoint was written.
    """
    accelerator = create_accelerator(config)
    output = config.output or default_output(config)
    # Every mistake in the settings shows here, before there is a folder.
    trainer = Trainer(config, accelerator, quiet=quiet, test=test)

    def create() -> Path:
        run = RunFolder.create(output)
        write_json(run.config, dataclasses.replace(config, output=output).to_dict())
        write_json(run.card, trainer.card.to_dict())
        return output

    return trainer.fit(RunFolder(on_main(accelerator, create)))


def resume(path: str | Path, *, quiet: bool = False, test: bool = True) -> dict[str, Any]:
    """Continue an interrupted run exactly where its last checkpoint left it.

    Raises:
        UserError: `path` is no run, is finished, or is damaged.
    """
    run = RunFolder.open(path)
    if run.summary.is_file():
        raise UserError(f"{path} is finished: there is nothing to resume")
    config = TrainConfig.from_dict(run.read_json(run.config))
    trainer = Trainer(config, create_accelerator(config), quiet=quiet, test=test, run=run)
    if run.checkpoint.is_file():
        trainer.load(run)
    return trainer.fit(run)


def train_or_resume(config: TrainConfig, *, quiet: bool = False, test: bool = True) -> dict[str, Any]:
    """The summary of the run in ``config.output``: read if it is finished, resumed if begun, else trained.

    Raises:
        UserError: as :func:`train` and :func:`resume`; the folder holds a run of other settings.
    """
    if config.output is None or not config.output.is_dir():
        return train(config, quiet=quiet, test=test)
    run = RunFolder.open(config.output)
    settings = [
        {**data, "output": "", "model": Path(data["model"]).name, "init": Path(data["init"] or "").name}
        for data in (TrainConfig.from_dict(run.read_json(run.config)).to_dict(), config.to_dict())
    ]
    if settings[0] != settings[1]:
        raise UserError(f"{config.output} is a run with other settings: move it away")
    return run.read_json(run.summary) if run.summary.is_file() else resume(config.output, quiet=quiet, test=test)


class Trainer:
    """One run in progress: the network, its optimiser, and where in the schedule it stands."""

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        *,
        quiet: bool = False,
        test: bool = True,
        run: RunFolder | None = None,
    ) -> None:
        self.config = config
        self.accelerator = accelerator
        self.show = accelerator.is_main_process and not quiet
        self.data = create_data(config, accelerator)
        if not test:
            self.data.test = None
        self.num_classes = len(self.data.classes)
        if run is not None and config.init is not None and run.checkpoint.is_file():
            # What the run started from may be gone; the checkpoint holds it all.
            network, self.card = begun_network(run, config)
        else:
            network, self.card = starting_network(config, self.data.classes)
        self.network = network.to(accelerator.device)
        self.ema = ModelEmaV3(self.network, decay=config.ema, use_warmup=True) if config.ema else None
        self.recorder = SelectionRecorder(self.network, every=RECORD_EVERY)
        optimizer, scheduler = create_optimizer(self.network, config, self.data.steps_per_epoch)
        self.scheduler = scheduler
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.mixup = None
        if config.mixup or config.cutmix:
            self.mixup = Mixup(
                config.mixup,
                config.cutmix,
                label_smoothing=config.label_smoothing,
                num_classes=self.num_classes,
            )
        self.criterion = nn.CrossEntropyLoss(label_smoothing=0.0 if self.mixup else config.label_smoothing)

        self.epoch = 0  # epochs finished
        self.step = 0  # steps finished in the current epoch
        self.loss_sum = 0.0
        self.seconds = 0.0
        self.best_accuracy = -1.0
        self.best_loss = float("inf")
        self.best_epoch = -1
        self.unreadable: set[str] = set()
        self.stopping = StopRequest(accelerator)

    # -- state ------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs, as tensors and plain data."""
        scaler = self.accelerator.scaler
        return {
            "model": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "scaler": None if scaler is None else scaler.state_dict(),
            "selection": self.recorder.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "loss_sum": self.loss_sum,
            "seconds": self.seconds,
            "best_accuracy": self.best_accuracy,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "unreadable": sorted(self.unreadable),
        }

    def load(self, run: RunFolder) -> None:
        """Continue from the run's checkpoint.

        Raises:
            UserError: the checkpoint is damaged or does not fit the run's config.
        """
        state = run.load_checkpoint()
        try:
            self.network.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            if self.accelerator.scaler is not None and state["scaler"] is not None:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.recorder.load_state_dict(state["selection"])
            self.epoch, self.step = state["epoch"], state["step"]
            self.loss_sum, self.seconds = state["loss_sum"], state["seconds"]
            self.best_accuracy, self.best_loss = state["best_accuracy"], state["best_loss"]
            self.best_epoch = state["best_epoch"]
            self.unreadable = set(state["unreadable"])
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise UserError(f"{run.checkpoint} does not fit {run.config}: {first_line(error)}") from None
        self.scheduler.step_update(self.updates)

    @property
    def updates(self) -> int:
        """Optimiser steps taken so far."""
        return self.epoch * self.data.steps_per_epoch + self.step

    def checkpoint(self, run: RunFolder) -> None:
        """Write the resumable state (main process)."""
        if self.accelerator.is_main_process:
            run.save_checkpoint(self.state())
        self.accelerator.wait_for_everyone()

    # -- the run ----------------------------------------------------------------------------------------------

    def fit(self, run: RunFolder) -> dict[str, Any]:
        """Train to the end, test once, and return the summary."""
        config, main = self.config, self.accelerator.is_main_process
        if main:
            run.truncate_rows(self.epoch)
        self.progress = Progress(config.epochs * self.data.steps_per_epoch, self.updates, self.show)
        self.progress.say(
            f"{self.card.model}, {sum(p.numel() for p in self.network.parameters()):,} parameters, "
            f"{self.num_classes} classes; {self.data.train_images:,} training images; writing to {run.path}"
        )
        for note in self.data.notes:
            self.progress.say(note)
        try:
            with self.stopping.listening():
                while self.epoch < config.epochs:
                    self._run_epoch(run)
        finally:
            self.progress.close()
        return self._finish(run)

    def _run_epoch(self, run: RunFolder) -> None:
        config, started = self.config, time.monotonic()
        self.data.set_epoch(self.epoch)
        loader = self.data.train
        if self.step:
            loader = self.accelerator.skip_first_batches(loader, self.step * config.accumulate)
        self.model.train()
        micro = self.step * config.accumulate
        for images, targets, unreadable in loader:
            if micro >= self.data.steps_per_epoch * config.accumulate:
                break
            if images.device != self.accelerator.device:
                images, targets = images.to(self.accelerator.device), targets.to(self.accelerator.device)
            set_seed(derive_seed(config.seed, 1, self.epoch, micro, self.accelerator.process_index) % 2**32)
            loss = self._micro_step(images, targets)
            self.loss_sum += loss
            self._note_unreadable("train", unreadable[unreadable >= 0].tolist())
            micro += 1
            if micro % config.accumulate:
                continue
            self.step += 1
            self.scheduler.step_update(self.updates)
            if self.ema is not None:
                self.ema.update(self.network, step=self.updates)
            seen = (self.updates - self.progress.first) * config.batch_size
            self.progress.step(self.epoch, config.epochs, loss, seen)
            stop = self.stopping.agreed()
            due = config.checkpoint_every and self.step % config.checkpoint_every == 0
            if stop or (due and self.step < self.data.steps_per_epoch):
                self.seconds += time.monotonic() - started
                started = time.monotonic()
                self.checkpoint(run)
            if stop:
                raise TrainingInterruptedError(str(run.path))
        self.seconds += time.monotonic() - started
        self._end_epoch(run)

    def _micro_step(self, images: Tensor, targets: Tensor) -> float:
        config, accelerator = self.config, self.accelerator
        if config.channels_last:
            images = images.to(memory_format=torch.channels_last)
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        with accelerator.accumulate(self.model):
            loss = self.criterion(self.model(images).float(), targets)
            value = loss.item()
            if not abs(value) < float("inf"):
                where = first_non_finite(self.network, images)
                raise NonFiniteLossError(
                    f"the loss is {value} in epoch {self.epoch + 1}, step {self.step + 1}: {where}. "
                    "Try a lower lr, --clip-grad 1, or --mixed-precision no"
                )
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                accelerator.unscale_gradients()
                update_temperatures(self.network)
                if config.clip_grad:
                    accelerator.clip_grad_norm_(self.network.parameters(), config.clip_grad)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return value

    def _note_unreadable(self, part: str, indices: list[int]) -> None:
        source = self.data.names.get(part)
        self.unreadable.update(source.name(i) if source is not None else f"{part} #{i}" for i in indices)

    def _evaluate(self, loader: Any) -> Evaluation:
        module = self.model if self.ema is None else self.ema.module
        return evaluate_model(
            module,
            loader,
            self.num_classes,
            accelerator=self.accelerator,
            channels_last=self.config.channels_last,
        )

    def _end_epoch(self, run: RunFolder) -> None:
        steps, started = self.data.steps_per_epoch, time.monotonic()
        validation = self._evaluate(self.data.validation)
        self._note_unreadable("validation", validation.unreadable)
        self.seconds += time.monotonic() - started
        # A small validation part often ties; its loss tells more.
        improved = (validation.accuracy, -validation.loss) > (self.best_accuracy, -self.best_loss)
        if improved:
            self.best_accuracy, self.best_loss, self.best_epoch = validation.accuracy, validation.loss, self.epoch
        row = {
            "epoch": self.epoch,
            "updates": self.updates,
            "lr": self.optimizer.param_groups[0]["lr"],
            "train_loss": self.loss_sum / (steps * self.config.accumulate),
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
            "seconds": round(self.seconds, 2),
            "skipped_images": len(self.unreadable),
        }
        layers = [
            {
                "epoch": self.epoch,
                "layer": report.layer,
                "samples": report.samples,
                "temperature": report.temperature,
                "alpha": report.alpha,
                "agreement": report.agreement,
                "entropy": report.entropy,
                "most_selected": " ".join(map(str, report.most_selected())),
            }
            for report in self.recorder.reports()
        ]
        self.recorder.reset()
        self.progress.say(
            f"epoch {self.epoch + 1}/{self.config.epochs}: train loss {row['train_loss']:.4f}, "
            f"validation loss {validation.loss:.4f}, accuracy {validation.accuracy:.2%}"
        )
        self.epoch, self.step, self.loss_sum = self.epoch + 1, 0, 0.0
        if self.accelerator.is_main_process:
            module = self.network if self.ema is None else self.ema.module
            run.save_weights(module, "last")
            if improved:
                run.save_weights(module, "best")
            run.append_rows(run.metrics, [row])
            run.append_rows(run.selection, layers)
            plot_curves(run)
        # Last, so that a kill before it repeats the epoch and one after it does not.
        self.checkpoint(run)
        if self.stopping.agreed() and self.epoch < self.config.epochs:
            raise TrainingInterruptedError(str(run.path))

    def _finish(self, run: RunFolder) -> dict[str, Any]:
        """Test once, with the weights validation chose, and write the summary."""
        self.accelerator.wait_for_everyone()
        chosen, _ = run.load_model(self.config.select)
        module = self.network if self.ema is None else self.ema.module
        module.load_state_dict(chosen.state_dict())
        test = None
        if self.data.test is not None:
            test = self._evaluate(self.data.test)
            self._note_unreadable("test", test.unreadable)
        summary = {
            "run": str(run.path),
            "model": self.card.model,
            "data": self.config.data,
            "recipe": self.config.recipe,
            "seed": self.config.seed,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "train_images": self.data.train_images,
            "epochs": self.config.epochs,
            "weights": self.config.select,
            "best_epoch": self.best_epoch,
            "validation_accuracy": self.best_accuracy,
            "test": None if test is None else test.summary(),
            "train_seconds": round(self.seconds, 1),
            "skipped_images": len(self.unreadable),
            "processes": self.accelerator.num_processes,
            **provenance(str(self.accelerator.device)),
        }
        if self.accelerator.is_main_process:
            if self.unreadable:
                run.skipped.write_text("\n".join(sorted(self.unreadable)) + "\n")
            write_json(run.summary, summary)
            run.checkpoint.unlink(missing_ok=True)
        self.accelerator.wait_for_everyone()
        if self.show:
            self._report(run, summary)
        return summary

    def _report(self, run: RunFolder, summary: dict[str, Any]) -> None:
        test = summary["test"]
        print(f"best validation accuracy {self.best_accuracy:.2%} in epoch {self.best_epoch + 1}")
        if test is None:
            print("no test part was measured")
        else:
            print(
                f"test accuracy {test['accuracy']:.2%} (95% interval {test['accuracy_low']:.2%} to "
                f"{test['accuracy_high']:.2%}) on {test['images']:,} images, {self.config.select} weights"
            )
        if self.unreadable:
            print(f"{len(self.unreadable)} images could not be read and were skipped; listed in {run.skipped}")
        print(f"run folder: {run.path}")
