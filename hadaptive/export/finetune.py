"""A few epochs of training with fixed selections: the weights get used to them."""

import dataclasses
from pathlib import Path

from torch import nn

from hadaptive.export.formats import write
from hadaptive.runs import ModelCard, RunFolder
from hadaptive.train import TrainConfig, train_or_resume

NAME = "finetuned"  # run folder, in the folder of the run that it continues


def finetune(
    frozen: nn.Module, card: ModelCard, training: TrainConfig, folder: Path, epochs: int, lr: float | None = None
) -> nn.Module:
    """Train a run's frozen network on, in a run folder of its own, and return it in eval mode.

    Training that was interrupted is continued, and that which is finished is read.

    Args:
        frozen: with fixed selections, on the CPU.
        card: of the run.
        training: settings of the run.
        folder: of the run.
        epochs: of fine-tuning.
        lr: peak learning rate; default a quarter of the run's.

    Raises:
        ValueError: as :func:`hadaptive.train.train_or_resume`.
    """
    start = folder / f"{NAME}.safetensors"
    if not (folder / NAME).exists():
        write(frozen, start, "safetensors", card, {"frozen": True})
    config = dataclasses.replace(
        training,
        init=start,
        output=folder / NAME,
        epochs=epochs,
        lr=lr or training.lr / 4,
        select="last",
    )
    train_or_resume(config)
    return RunFolder.open(folder / NAME).load_model("last")[0]
