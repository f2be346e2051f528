"""A few epochs of training with fixed selections: the weights get used to them."""

from pathlib import Path

import torch
from torch import nn

from hadaptive.cards import ModelCard, open_weights
from hadaptive.data import ImageData
from hadaptive.errors import UserError
from hadaptive.measure.lowering import write
from hadaptive.runs import RunFolder
from hadaptive.train import read_config, train_or_resume

NAME = "finetuned"  # run folder, in the folder of the run that it continues


def finetune(
    frozen: nn.Module, card: ModelCard, run: RunFolder, data: ImageData, epochs: int, lr: float | None = None
) -> nn.Module:
    """Train a run's frozen network on, in a run folder of its own, and return it in eval mode.

    Training that was interrupted is continued, and that which is finished is read. The test part is not looked at.

    Args:
        frozen: with fixed selections, on the CPU.
        card: of the run.
        run: whose settings are those of the training.
        data: its images, in the parts they were in.
        epochs: of fine-tuning.
        lr: peak learning rate; default a quarter of the run's.

    Raises:
        UserError: as :func:`hadaptive.train.train_or_resume`; another network was fine-tuned there before.
    """
    start, output = run.path / f"{NAME}.safetensors", run.path / NAME
    if not start.exists():
        if output.exists():
            raise UserError(f"{output} has lost {start}, the weights it started from: move it away")
        write(frozen, start, "safetensors", card, {"frozen": True}, split=data.manifest.dumps())
    elif not _same(frozen, start):
        raise UserError(
            f"{start} holds other weights or selections than are frozen now: move it and {output} away"
        )
    division = run.manifest
    if not division.is_file():  # an older version kept none
        division = run.path / f"{NAME}.split.csv"
        data.manifest.save(division)
    training = read_config(run)
    config = training.changed(
        model=None,
        pretrained=False,
        stem_strides=None,
        init=start,
        teacher=None,
        freeze_backbone=0,
        patience=0,
        data=data.location.data,
        data_dir=data.location.data_dir,
        split=division,
        group_by=None,  # the division keeps together what belongs together
        output=output,
        epochs=epochs,
        lr=lr or training.optimisation.lr / 4,
        select="last",
    )
    train_or_resume(config, test=False)
    return RunFolder.open(output).load_model("last")[0]


def _same(network: nn.Module, path: Path) -> bool:
    """Whether a file holds this network's weights and selections."""
    state, saved = network.state_dict(), open_weights(path)[0].state_dict()
    return state.keys() == saved.keys() and all(torch.equal(state[name], saved[name]) for name in state)
