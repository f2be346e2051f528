"""An unbiased gradient for selections, from how good what was selected turned out to be.

Source: arXiv 2407.16058 (SFESS): the gradient of log p(subset), exact for k-subsets, weighed by the loss, with a
control variate. The one here is the mean loss of the batch's other samples, which depends on no choice of the
sample's own (but through statistics that samples share, as BatchNorm's).
"""

import torch
from torch import Tensor, nn

from hadaptive.nn.ach import expansions
from hadaptive.nn.selection import ChannelSelection


def score_function_term(model: nn.Module, losses: Tensor) -> Tensor:
    """What to add to the mean loss of a training step, 0-d, so that scores of surrogate "sfess" learn.

        loss = losses.mean() + score_function_term(model, losses)

    Its value says nothing, its gradient is the estimate. It is 0 for a model without such selections, and uses
    what the last forward pass selected, once.

    Args:
        model: in training, after a forward pass of a batch.
        losses: of each sample, (B,); taken as numbers.

    Raises:
        ValueError: the batch has another size than what was selected.
    """
    total: Tensor | None = None
    for layer in expansions(model).values():
        if not isinstance(layer.select, ChannelSelection):
            continue
        found, layer.select.sampled.log_probability = layer.select.sampled.log_probability, None
        if found is not None and torch.is_grad_enabled() and not found.requires_grad:
            raise ValueError(
                "what was selected has no gradient to the scores: reentrant checkpointing loses it, use the other"
            )
        if found is not None:
            total = found if total is None else total + found
    if total is None:
        return losses.new_zeros(())
    if losses.shape != total.shape:
        raise ValueError(
            f"losses must have shape {tuple(total.shape)}, one for each sample, got {tuple(losses.shape)}"
        )
    values = losses.detach().to(total.dtype)
    count = len(values)
    others = (values.sum() - values) / (count - 1) if count > 1 else torch.zeros_like(values)
    return ((values - others) * total).mean().to(losses.dtype)


def learns_by_score_function(model: nn.Module) -> bool:
    """Whether a training of this model must add :func:`score_function_term`."""
    selections = (layer.select for layer in expansions(model).values())
    return any(isinstance(select, ChannelSelection) and select.surrogate == "sfess" for select in selections)
