"""A few epochs of training with fixed selections: the weights get used to them."""

import dataclasses
from pathlib import Path

import torch
from torch import nn

from hadaptive.errors import UserError
from hadaptive.measure.lowering import write
from hadaptive.runs import ModelCard, RunFolder, open_weights
from hadaptive.train import TrainConfig, train_or_resume

NAME = "finetuned"  # run folder, in the folder of the run that it continues


def finetune(
    frozen: nn.Module, card: ModelCard, training: TrainConfig, folder: Path, epochs: int, lr: float | None = None
) -> nn.Module:
    """Train a run's frozen network on, in a run folder of its own, and return it in eval mode.

    Training that was interrupted is continued, and that which is finished is read. The test part is not looked at.

    Args:
        frozen: with fixed selections, on the CPU.
        card: of the run.
        training: settings of the run.
        folder: of the run.
        epochs: of fine-tuning.
        lr: peak learning rate; default a quarter of the run's.

    Raises:
        UserError: as :func:`hadaptive.train.train_or_resume`; another network was fine-tuned there before.
    """
    start, output = folder / f"{NAME}.safetensors", folder / NAME
    if not start.exists():
        if output.exists():
            raise UserError(f"{output} has lost {start}, the weights it started from: move it away")
        write(frozen, start, "safetensors", card, {"frozen": True})
    elif not _same(frozen, start):
        raise UserError(
            f"{start} holds other weights or selections than are frozen now: move it and {output} away"
        )
    config = dataclasses.replace(
        training,
        init=start,
        output=output,
        epochs=epochs,
        lr=lr or training.lr / 4,
        select="last",
    )
    train_or_resume(config, test=False)
    return RunFolder.open(output).load_model("last")[0]


def _same(network: nn.Module, path: Path) -> bool:
    """Whether a file holds this network's weights and selections."""
    state, saved = network.state_dict(), open_weights(path)[0].state_dict()
    return state.keys() == saved.keys() and all(torch.equal(state[name], saved[name]) for name in state)
