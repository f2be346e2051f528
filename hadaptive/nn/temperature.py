"""Temperatures of the selections, as training goes on."""

from torch import nn

from hadaptive.nn.ach import CrossHadamardExpansion


def update_temperatures(model: nn.Module) -> None:
    """Adapt the temperature of every ACH in `model`; call it once after each backward pass.

    It reads the gradients of the scores, so call it before they are zeroed, after they have been unscaled
    (fp16) and, if you accumulate, once per optimiser step. Under DistributedDataParallel every rank holds the
    same gradients and so reaches the same temperature.
    """
    for module in model.modules():
        if isinstance(module, CrossHadamardExpansion):
            module.update_temperature()
