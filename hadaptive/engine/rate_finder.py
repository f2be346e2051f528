"""A learning rate that suits: the loss while the rate grows from step to step, on training images alone.

Source: the range test of Smith, arXiv 1506.01186; the suggestion is a tenth of the rate of the lowest loss.
"""

from dataclasses import dataclass

from hadaptive.engine.finite import NonFiniteLossError
from hadaptive.engine.loop import Engine
from hadaptive.engine.rehearsal import batches_of
from hadaptive.errors import UserError

LOWEST, HIGHEST, STEPS = 1e-6, 10.0, 120
SMOOTHING = 0.9  # of the mean of the losses so far, in the next
DIVERGED = 3.0  # times the lowest loss
BELOW = 10.0  # the suggestion, below the rate of the lowest loss


@dataclass(frozen=True)
class RangeTest:
    """What was found.

    Attributes:
        rates: of the steps.
        losses: of their batches.
        smoothed: means of the losses so far, the latest counting most.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def lowest(self) -> int:
        """The step after which the smoothed loss was lowest."""
        return min(range(len(self.smoothed)), key=self.smoothed.__getitem__)

    @property
    def suggestion(self) -> float:
        """A peak learning rate, in two digits.

        Raises:
            UserError: the loss did not fall with any rate.
        """
        if self.lowest < 5:
            raise UserError(
                "the loss did not fall with any learning rate: look at the images and their classes, with "
                "--dry-run and --first-batch"
            )
        return float(f"{self.rates[self.lowest] / BELOW:.1e}")


def range_test(engine: Engine) -> RangeTest:
    """Learn with growing rates until the loss is far above its lowest; the engine is of no use afterwards.

    For one process only, since its loss decides when to end.
    """
    engine.model.train()
    engine.begin_epoch()
    images = batches_of(engine)
    rates: list[float] = []
    losses: list[float] = []
    smoothed: list[float] = []
    mean = 0.0
    for step in range(STEPS):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (STEPS - 1))
        for group in engine.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        total = 0.0
        try:
            for part in range(engine.accumulate):
                total += engine.micro_step(*next(images), step * engine.accumulate + part)
        except NonFiniteLossError:
            break
        loss = total / engine.accumulate
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        unbiased = mean / (1 - SMOOTHING ** (step + 1))
        rates.append(rate)
        losses.append(loss)
        smoothed.append(unbiased)
        if step > 10 and unbiased > DIVERGED * min(smoothed):
            break
    return RangeTest(rates, losses, smoothed)
