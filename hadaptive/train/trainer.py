"""What training adds to the engine: its step, its state, and what an epoch and the end leave in the run folder."""

import math
from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from hadaptive import ops
from hadaptive.cards import ModelCard
from hadaptive.data import derive_seed
from hadaptive.engine.batches import Batches
from hadaptive.engine.finite import NonFiniteLossError, first_non_finite
from hadaptive.engine.loop import Engine, Rows
from hadaptive.engine.optimiser import backward_twice, create_optimiser, is_second_order, take_step
from hadaptive.engine.processes import on_main
from hadaptive.errors import UserError
from hadaptive.files import write_json
from hadaptive.metrics import Evaluation, logits_of, told
from hadaptive.multi_label import MultiLabelEvaluation, calibration, evaluate_network
from hadaptive.nn import SelectionRecorder, adapt_temperatures, learns_by_score_function, score_function_term
from hadaptive.nn.temperature import watched
from hadaptive.runs import RunFolder
from hadaptive.train.config import TrainConfig
from hadaptive.train.criterion import Criterion
from hadaptive.train.outcome import say_outcome
from hadaptive.train.plots import plot_curves
from hadaptive.train.teacher import Lessons, Said, Teacher
from hadaptive.train.weights import classifier_of

SMALLEST_SCALE = 2.0**-14  # of an fp16 loss: the gradients are not finite for another reason than its size
RECORD_EVERY = 10  # steps between recorded selections; a step in ten is enough for shares and costs nothing


def _rank(score: float, loss: float) -> tuple[bool, float, float]:
    """What makes weights better than others; those whose loss is no number are worse than any whose is one."""
    finite = math.isfinite(loss)
    # No score, where no image has a class, leaves it to the loss.
    return finite, score if math.isfinite(score) else 0.0, -loss if finite else 0.0


class Trainer(Engine):
    """One training in progress.

    Args:
        config: every setting.
        accelerator: devices and processes.
        batches: of the images.
        network: in training mode, as it starts.
        card: what it is.
        teacher: that it learns from besides; None where there is none, or all it says is in the folder.
        quiet: print nothing.
    """

    command = "train"

    def __init__(
        self,
        config: TrainConfig,
        accelerator: Accelerator,
        batches: Batches,
        network: nn.Module,
        card: ModelCard,
        *,
        teacher: Teacher | None = None,
        quiet: bool = False,
    ) -> None:
        super().__init__(config, accelerator, batches, accumulate=config.accumulate, quiet=quiet)
        self.config = config
        self.card = card
        if config.execution.channels_last:
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.network = network.to(accelerator.device)
        self.learns = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        self.ema = ModelEmaV3(self.network, decay=config.ema, use_warmup=True) if config.ema else None
        self.recorder = SelectionRecorder(self.network, every=RECORD_EVERY)
        optimizer, self.scheduler = create_optimiser(
            self.network,
            config.optimisation,
            self.steps_per_epoch,
            scaled=accelerator.scaler is not None,
            layer_decay=config.layer_decay,
        )
        self.second_order = is_second_order(optimizer)
        if self.second_order:
            self._check_second_order()
        adapt_temperatures(optimizer, self.network)
        if config.clip_grad:  # after the temperatures, which learn from the gradients as they are
            watched(optimizer).register_step_pre_hook(self._clip)
        self.model, self.optimizer = accelerator.prepare(self.network, optimizer)
        self.lessons = None if config.teaching.teacher is None else Lessons(config, teacher, self.network)
        self.by_score_function = learns_by_score_function(self.network)
        self.criterion = Criterion(config, batches, accelerator.device)
        self.best_accuracy = -1.0  # or mean average precision, of images of several classes
        self.best_loss = float("inf")
        self.best_epoch = -1
        self.improved = False  # in the last epoch
        self.skipped = False  # the last step: its gradients were not finite, and fp16's scale is lowered
        self.figures: dict[str, dict[str, Any]] = {}  # validation of the best and the last weights
        self.extended: list[dict[str, Any]] = []  # where the run stood when it was given more epochs

    def _check_second_order(self) -> None:
        """Raise one clear UserError where gradients cannot be differentiated again."""
        config = self.config
        without = {
            "--compile": config.compile,
            "--clip-grad": bool(config.clip_grad),
            f"--mixed-precision {config.execution.mixed_precision}": self.accelerator.scaler is not None,
            "several processes": self.accelerator.num_processes > 1,
            "--freeze-backbone": config.freeze_backbone > 0,
        }
        for name, there in without.items():
            if there:
                raise UserError(
                    f"opt {config.optimisation.opt!r} takes second derivatives, which do not go with {name}: "
                    "leave it out, or choose another optimiser"
                )

    @property
    def averaged(self) -> nn.Module:
        """The weights that are evaluated and saved: their moving average where there is one."""
        return self.network if self.ema is None else self.ema.module

    # -- state ------------------------------------------------------------------------------------------------

    def own_state(self) -> dict[str, Any]:
        return {
            "model": self.network.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "selection": self.recorder.state_dict(),
            "best_accuracy": self.best_accuracy,
            "best_loss": self.best_loss,
            "best_epoch": self.best_epoch,
            "figures": self.figures,
            "extended": self.extended,
        }

    def load_own_state(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.module.load_state_dict(state["ema"])
        self.recorder.load_state_dict(state["selection"])
        self.best_accuracy, self.best_loss = state["best_accuracy"], state["best_loss"]
        self.best_epoch = state["best_epoch"]
        # Older versions did not keep them.
        self.figures, self.extended = state.get("figures", {}), state.get("extended", [])

    # -- a step -----------------------------------------------------------------------------------------------

    def micro_step(self, images: Tensor, targets: Tensor, number: int) -> float:
        config, accelerator = self.config, self.accelerator
        seed = derive_seed(config.execution.seed, 1, self.epoch, number, accelerator.process_index)
        set_seed(seed % 2**32)
        numbers = None
        if self.lessons is not None and config.teaching.teacher_sees == "image":
            numbers, targets = targets // self.batches.labels, targets % self.batches.labels
        images, targets = self.criterion.mixed(images, targets)
        # The fused kernels have no second derivative.
        backend = ops.backend("reference") if self.second_order else nullcontext()
        with accelerator.accumulate(self.model), backend:
            output = self.model(images)
            # A network distilled by a token answers twice while it learns.
            logits, to_teacher = (each.float() for each in (output if isinstance(output, tuple) else [output] * 2))
            loss = self.criterion(logits, targets)
            said = None
            if self.lessons is not None:
                said = self.lessons.said(images, numbers)
                loss = self.lessons.loss(loss, to_teacher, said)
            value = loss.item()
            if not abs(value) < float("inf"):
                raise self._non_finite(f"the loss is {value}", first_non_finite(self.network, images))
            if self.by_score_function:
                loss = loss + self._score_function_term(logits, to_teacher, targets, said)
            if self.second_order:
                backward_twice(accelerator, loss)
            else:
                accelerator.backward(loss)
            take_step(self.optimizer, seed)
            if accelerator.sync_gradients:
                self.skipped = accelerator.optimizer_step_was_skipped
            self.optimizer.zero_grad()
        scaler = accelerator.scaler
        if self.skipped and scaler is not None and scaler.get_scale() < SMALLEST_SCALE:
            raise self._non_finite(
                "the gradients are not finite", "however little the loss is scaled up, fp16 cannot hold them"
            )
        return value

    def _score_function_term(
        self, logits: Tensor, to_teacher: Tensor, targets: Tensor, said: Said | None
    ) -> Tensor:
        losses = self.criterion.each(logits.detach(), targets)
        if self.lessons is not None and said is not None:
            losses = self.lessons.loss(losses, to_teacher.detach(), said).detach()
        return score_function_term(self.network, losses)

    def _clip(self, *_: Any) -> None:
        """Before the optimiser's step, whose gradients are unscaled by then."""
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip_grad)

    def _non_finite(self, what: str, where: str) -> NonFiniteLossError:
        """The error that names what helps and was not done yet."""
        config = self.config
        cures = ["a lower lr"]
        if not config.clip_grad:
            cures.append("--clip-grad 1")
        if config.execution.mixed_precision != "no":
            cures.append("--mixed-precision no")
        return NonFiniteLossError(
            f"{what} in epoch {self.epoch + 1}, step {self.step + 1}: {where}. Try {', or '.join(cures)}"
        )

    def fit(self, folder: RunFolder) -> dict[str, Any]:
        if self.lessons is not None:
            lessons, batches, device = self.lessons, self.batches, self.accelerator.device

            def ask() -> None:
                if self.config.teaching.teacher_sees == "image" and not folder.answers.is_file():
                    train, show = batches.parts["train"], self.show
                    lessons.prepare(folder, train, in_memory=batches.in_memory, device=device, show=show)

            on_main(self.accelerator, ask)
            lessons.begin(folder, batches.train.images, device)
        summary = super().fit(folder)
        on_main(self.accelerator, lambda: folder.answers.unlink(missing_ok=True))
        return summary

    def rehearse(self) -> float:
        """Be ready for steps that leave nothing behind, as when all of the network learns.

        Returns:
            Seconds that asking a teacher about every image would take.
        """
        if self.config.freeze_backbone < self.epochs:
            self.epoch = self.config.freeze_backbone
        return 0.0 if self.lessons is None else self.lessons.rehearse(self.batches, self.accelerator.device)

    def begin_epoch(self) -> None:
        if not self.config.freeze_backbone:
            return
        frozen = self.epoch < self.config.freeze_backbone
        heads = classifier_of(self.network)
        learning = {id(parameter) for head in heads for parameter in head.parameters()}
        for parameter in self.learns:
            parameter.requires_grad_(not frozen or id(parameter) in learning)
        if frozen:  # statistics and dropout, too, stay as they are in use
            for module in self.network.children():
                module.eval()
            for head in heads:
                head.train()

    def enough(self) -> str:
        # While the classifier learns alone nothing is decided, and a run that goes on begins to count anew.
        again = [extension["epoch"] for extension in self.extended if extension["finished"]]
        since = self.epoch - 1 - max(self.best_epoch, self.config.freeze_backbone - 1, *(n - 1 for n in again))
        if not self.config.patience or self.best_epoch < 0 or since < self.config.patience:
            return ""
        return f"ended after {self.epoch} epochs of {self.epochs}: for {since} validation was not better"

    def after_step(self) -> None:
        if self.ema is not None and not self.skipped:
            self.ema.update(self.network, step=self.updates)

    # -- an epoch, and the end --------------------------------------------------------------------------------

    def greet(self, folder: RunFolder) -> str:
        return (
            f"{self.card.model}, {sum(p.numel() for p in self.network.parameters()):,} parameters, "
            f"{self.num_classes} classes; {self.batches.train.images:,} training images; writing to {folder.path}"
        )

    def _calibrate(self, folder: RunFolder) -> dict[str, Any]:
        """Find how sure the chosen weights should be, on the validation part, and write it into the folder."""
        module = self.model if self.ema is None else self.ema.module
        channels_last = self.config.execution.channels_last
        logits, targets, _ = logits_of(
            module, self.batches.validation, accelerator=self.accelerator, channels_last=channels_last
        )
        found = calibration(logits, targets, self.batches.sets)
        known = {"weights": folder.choice(), **found, "images": len(targets)}
        on_main(self.accelerator, lambda: write_json(folder.calibration, known))
        return found

    def _evaluate(self, part: str, loader: Any, **calibrated: Any) -> Evaluation | MultiLabelEvaluation:
        module = self.model if self.ema is None else self.ema.module
        evaluation = evaluate_network(
            module,
            loader,
            self.num_classes,
            self.batches.sets,
            accelerator=self.accelerator,
            channels_last=self.config.execution.channels_last,
            **calibrated,
        )
        self.note_unreadable(part, evaluation.unreadable)
        return evaluation

    def summarise_epoch(self, folder: RunFolder) -> tuple[Rows, str]:
        validation = self.timed(lambda: self._evaluate("validation", self.batches.validation))
        self.require_images(validation, "validation", folder)
        # A small validation part often ties; its loss tells more.
        self.improved = _rank(validation.score, validation.loss) > _rank(self.best_accuracy, self.best_loss)
        figures = {"epoch": self.epoch + 1, "correct": validation.correct, **validation.summary()}
        self.figures["last"] = figures
        if self.improved:
            self.best_accuracy, self.best_loss, self.best_epoch = validation.score, validation.loss, self.epoch
            self.figures["best"] = figures
        row = {
            "epoch": self.epoch,
            "updates": self.updates,
            "lr": max(group["lr"] for group in self.optimizer.param_groups),
            "train_loss": self.loss_sum / (self.steps_per_epoch * self.accumulate),
            "val_loss": validation.loss,
            "val_accuracy": validation.accuracy,
            "seconds": round(self.seconds, 2),
            "skipped_images": len(self.unreadable),
        }
        if "mean_average_precision" in figures:
            row["val_average_precision"] = figures["mean_average_precision"]
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
        self.scheduler.after_epoch(self.updates, validation.loss)
        line = (
            f"epoch {self.epoch + 1}/{self.epochs}: train loss {row['train_loss']:.4f}, "
            f"validation loss {validation.loss:.4f}, {told(figures)}"
        )
        return {folder.metrics: [row], folder.selection: layers}, line

    def save_epoch(self, folder: RunFolder) -> None:
        folder.save_weights(self.averaged, "last")
        if self.improved:
            folder.save_weights(self.averaged, "best")

    def draw(self, folder: RunFolder) -> None:
        plot_curves(folder)

    def conclude(self, folder: RunFolder) -> dict[str, Any]:
        """Test once, with the weights that the run's choice names."""
        chosen, _ = folder.load_model()
        self.averaged.load_state_dict(chosen.state_dict())
        found = self._calibrate(folder)
        test = None if self.batches.test is None else self._evaluate("test", self.batches.test, **found)
        if test is not None:
            self.require_images(test, "test", folder)
        figures = self.figures.get(self.config.select)
        if figures is None or self.batches.sets is not None:  # whose classes count from thresholds of now
            again = self._evaluate("validation", self.batches.validation, **found)
            epoch = None if figures is None else figures["epoch"]
            figures = {"epoch": epoch, "correct": again.correct, **again.summary()}
            self.figures[self.config.select] = figures
        return {
            "model": self.card.model,
            "data": self.config.data.data,
            "recipe": self.config.recipe,
            "seed": self.config.execution.seed,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "train_images": self.batches.train.images,
            "images": self.batches.fingerprint,
            "epochs": self.epoch,
            "extended": self.extended,
            "weights": self.config.select,
            "best_epoch": self.best_epoch,
            "best_validation_accuracy": self.figures.get("best", {"accuracy": self.best_accuracy})["accuracy"],
            "validation_accuracy": figures["accuracy"],
            "validation": figures,
            "test": None if test is None else test.summary(),
            "train_seconds": round(self.seconds, 1),
        }

    def report(self, folder: RunFolder, summary: dict[str, Any]) -> None:
        say_outcome(self.figures, self.config.select, summary)
