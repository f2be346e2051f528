"""timm's optimisers and schedules, by steps."""

import warnings
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import StepLRScheduler, create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from hadaptive.engine.config import Optimisation
from hadaptive.errors import UserError, first_line

SCHEDULES = ("cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "plateau", "none")


class Schedule:
    """The learning rate by steps, and by the validation loss where that decides it.

    Args:
        by_steps: timm's schedule; None leaves the rate as it is.
        plateau: what lowers the rate instead once `warmup` steps are done.
        warmup: steps.
    """

    def __init__(
        self, by_steps: Scheduler | None, plateau: ReduceLROnPlateau | None = None, warmup: float = 0.0
    ) -> None:
        self.by_steps, self.plateau, self.warmup = by_steps, plateau, warmup

    def after_step(self, steps: int) -> None:
        """Set the rate of the step after so many."""
        if self.by_steps is not None and (self.plateau is None or steps <= self.warmup):
            self.by_steps.step_update(steps)

    def after_epoch(self, steps: int, loss: float) -> None:
        """Take notice of the validation loss after so many steps."""
        if self.plateau is not None and steps > self.warmup:
            self.plateau.step(loss)

    def state_dict(self) -> dict[str, Any]:
        """What steps do not tell."""
        if self.plateau is None:
            return {}
        return {"best": self.plateau.best, "waited": self.plateau.num_bad_epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        if self.plateau is not None and state:
            self.plateau.best, self.plateau.num_bad_epochs = state["best"], state["waited"]


def create_optimiser(
    module: nn.Module,
    how: Optimisation,
    steps_per_epoch: int,
    *,
    scaled: bool = False,
    layer_decay: float = 1.0,
) -> tuple[Optimizer, Schedule]:
    """timm's optimiser of a module's parameters, and its schedule by steps.

    Args:
        module: on its device.
        how: settings.
        steps_per_epoch: of the optimiser.
        scaled: losses are scaled, and steps may be skipped.
        layer_decay: each layer's rate in the next one's, as timm groups a network's layers.

    Raises:
        UserError: timm has no such optimiser or schedule, or it needs what this machine does not have.
    """
    known = [str(name) for name in list_optimizers()]
    if how.opt not in known:
        raise UserError(
            f"there is no optimiser {how.opt!r}: choose one of timm's {len(known)}, {', '.join(known)}"
        )
    try:
        optimizer = create_optimizer_v2(
            module,
            opt=how.opt,
            lr=how.lr,
            weight_decay=how.weight_decay,
            **({} if layer_decay == 1 else {"layer_decay": layer_decay}),
            **({} if scaled else _fused(module, how.opt)),
        )
    except (ValueError, AssertionError, ImportError, TypeError) as error:
        cure = "choose another, such as adamw" if layer_decay == 1 else "choose another, or leave layer_decay out"
        raise UserError(f"opt {how.opt!r} cannot be used here ({first_line(error)}): {cure}") from None
    if how.sched == "none":  # every other schedule of timm's sees to it
        for group in optimizer.param_groups:
            group["lr"] *= group.get("lr_scale", 1.0)
    return optimizer, _schedule(optimizer, how, steps_per_epoch)


def _fused(module: nn.Module, opt: str) -> dict[str, Any]:
    """On a CPU PyTorch updates weight by weight unless it is told to do all at once: several times the time.

    Not where losses are scaled: accelerate then does not notice which steps were skipped. The kernel takes
    weights, gradients and state as they lie in memory: all three must have one layout, as they have here.
    """
    devices = {parameter.device.type for parameter in module.parameters()}
    kinds = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
    return {"fused": True} if devices == {"cpu"} and get_optimizer_info(opt).opt_class in kinds else {}


def _schedule(optimizer: Optimizer, how: Optimisation, steps_per_epoch: int) -> Schedule:
    if how.sched not in SCHEDULES:
        raise UserError(f"there is no schedule {how.sched!r}: choose one of {', '.join(SCHEDULES)}")
    total = how.epochs * steps_per_epoch
    warmup = how.warmup * total
    if how.sched == "none":
        return Schedule(None)
    if how.sched in ("plateau", "constant"):
        steady = StepLRScheduler(
            optimizer,
            decay_t=1,
            decay_rate=1.0,
            warmup_t=warmup,  # pyright: ignore[reportArgumentType]
            warmup_lr_init=how.warmup_lr,
            t_in_epochs=False,
        )
        if how.sched == "constant":
            return Schedule(steady)
        lower = ReduceLROnPlateau(optimizer, factor=0.1, patience=max(1, how.epochs // 10), min_lr=how.min_lr)
        return Schedule(steady, lower, warmup)
    timescale: dict[str, Any] = (
        {"stable_timescale": max(1.0, total / 10)} if how.sched == "rsqrt" and not warmup else {}
    )
    try:
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=how.sched,
            # Everything in steps: timm takes fractions of an epoch for fractions of the training.
            num_epochs=total,
            warmup_epochs=warmup,  # pyright: ignore[reportArgumentType]
            decay_epochs=max(1.0, total / 3) if how.sched == "step" else 0.2,
            decay_milestones=[total // 2, total * 3 // 4],
            warmup_lr=how.warmup_lr,
            min_lr=how.min_lr,
            step_on_epochs=False,
            updates_per_epoch=1,
            **timescale,
        )
    except (ValueError, AssertionError, TypeError) as error:
        raise UserError(f"sched {how.sched!r} does not fit the other settings: {first_line(error)}") from None
    if scheduler is None:
        raise UserError(f"sched {how.sched!r} is not in the timm that is installed: pip install -U timm")
    return Schedule(scheduler)


def is_second_order(optimizer: Any) -> bool:
    """Whether an optimiser differentiates the gradients again."""
    return bool(getattr(getattr(optimizer, "optimizer", optimizer), "is_second_order", False))


def take_step(optimizer: Any, seed: int) -> None:
    """One step of any optimiser of timm's, that hangs on nothing but its state and the seed.

    Args:
        optimizer: with accelerate around it or not.
        seed: of this step.
    """
    inner = getattr(optimizer, "optimizer", optimizer)
    if is_second_order(inner):  # it draws directions from a generator that is in no checkpoint
        inner.generator.manual_seed(seed)
        inner.seed = seed
    if "Kron" not in type(inner).__name__:
        optimizer.step()
        return
    # It compiles a function for every shape of a weight: minutes, for what takes milliseconds.
    with torch.compiler.set_stance("force_eager"):
        optimizer.step()


def backward_twice(accelerator: Any, loss: torch.Tensor) -> None:
    """A backward pass whose gradients can be differentiated again."""
    with warnings.catch_warnings():  # of a cycle that zero_grad breaks
        warnings.filterwarnings("ignore", "Using backward\\(\\) with create_graph=True")
        accelerator.backward(loss, create_graph=True)
