"""timm's optimisers and schedules, by steps."""

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from hadaptive.engine.config import Optimisation
from hadaptive.errors import UserError


def create_optimiser(module: nn.Module, how: Optimisation, steps_per_epoch: int) -> tuple[Optimizer, Scheduler]:
    """timm's optimiser of a module's parameters, and its schedule by steps.

    Raises:
        UserError: timm has no such optimiser or schedule.
    """
    try:
        optimizer = create_optimizer_v2(module, opt=how.opt, lr=how.lr, weight_decay=how.weight_decay)
        scheduler, _ = create_scheduler_v2(
            optimizer,
            sched=how.sched,
            num_epochs=how.epochs,
            warmup_epochs=how.warmup * how.epochs,  # pyright: ignore[reportArgumentType]
            warmup_lr=how.warmup_lr,
            min_lr=how.min_lr,
            step_on_epochs=False,
            updates_per_epoch=steps_per_epoch,
        )
    except (ValueError, AssertionError, KeyError) as error:
        raise UserError(f"opt {how.opt!r} or sched {how.sched!r} is not one timm has: {error}") from None
    assert scheduler is not None
    return optimizer, scheduler
