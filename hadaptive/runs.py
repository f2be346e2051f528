"""The run folder: everything one training leaves behind, and the only code that knows its layout.

config.json          all that is needed to run it again
model.json           model name, spec, class names, preprocessing
metrics.csv          a row per epoch
selection.csv        a row per epoch and ACH layer
best.safetensors     weights with the best validation accuracy
last.safetensors     weights of the last finished epoch
checkpoint.pt        all state needed to go on exactly; removed when training is done
curves.png, summary.json, skipped_images.txt
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from hadaptive.data import Preprocessing
from hadaptive.errors import UserError, first_line
from hadaptive.files import append_csv, read_csv, write_atomically, write_csv
from hadaptive.models import NetSpec, create_model, spec_of

METADATA_KEY = "hadaptive"  # of what exported files say about themselves


@dataclass(frozen=True)
class ModelCard:
    """What a network is and how to feed it.

    Attributes:
        model: timm name or spec name.
        spec: the NetSpec, None for a network that is not a Hadaptive-Net.
        classes: class names in the order of the outputs.
        preprocessing: from an image to the network's input.
        drop_rate, drop_path_rate: as it was trained; no effect on predictions.
    """

    model: str
    spec: NetSpec | None
    classes: list[str]
    preprocessing: Preprocessing
    drop_rate: float | None = None
    drop_path_rate: float | None = None

    def create_model(self) -> nn.Module:
        """The network, untrained."""
        return create_model(
            self.spec or self.model,
            num_classes=len(self.classes),
            in_chans=self.preprocessing.in_chans,
            drop_rate=self.drop_rate,
            drop_path_rate=self.drop_path_rate,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {
            "model": self.model,
            "spec": None if self.spec is None else self.spec.to_dict(),
            "classes": self.classes,
            "preprocessing": self.preprocessing.to_dict(),
            "drop_rate": self.drop_rate,
            "drop_path_rate": self.drop_path_rate,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelCard":
        """The inverse of :meth:`to_dict`."""
        spec = None if data["spec"] is None else NetSpec.from_dict(data["spec"])
        return cls(**{**data, "spec": spec, "preprocessing": Preprocessing.from_dict(data["preprocessing"])})


def open_weights(path: Path) -> tuple[nn.Module, ModelCard]:
    """The network in eval mode that ``hadaptive export --format safetensors`` wrote, and its card.

    Raises:
        UserError: it is damaged, or another program wrote it.
    """
    try:
        with safe_open(path, "pt") as file:
            card = ModelCard.from_dict(json.loads(file.metadata()[METADATA_KEY])["card"])
        network = card.create_model()
        network.load_state_dict(load_file(path))
    except Exception as error:  # safetensors raises its own class for a damaged file
        raise UserError(f"{path} is damaged or was not written by hadaptive export: {first_line(error)}") from None
    return network.eval(), card


class RunFolder:
    """One run on disk."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.card = self.path / "model.json"
        self.metrics = self.path / "metrics.csv"
        self.selection = self.path / "selection.csv"
        self.checkpoint = self.path / "checkpoint.pt"
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.skipped = self.path / "skipped_images.txt"

    @classmethod
    def create(cls, path: str | Path) -> "RunFolder":
        """Make a new run folder.

        Raises:
            UserError: something is there already; runs are never overwritten.
        """
        run = cls(path)
        try:
            run.path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(
                f"{path} exists already and is never overwritten: choose another --output, "
                f"or continue it with --resume {path}"
            ) from None
        except OSError as error:
            raise UserError(f"the run folder {path} cannot be made: {error.strerror}") from None
        return run

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Open an existing run.

        Raises:
            UserError: `path` is not a run folder.
        """
        run = cls(path)
        if not run.path.exists():
            raise UserError(f"there is no run folder {path}")
        if not run.config.is_file():
            raise UserError(f"{path} is not a run folder: it has no config.json")
        return run

    def weights(self, which: str = "best") -> Path:
        """Path of the "best" or "last" weights."""
        return self.path / f"{which}.safetensors"

    def read_json(self, path: Path) -> Any:
        """The content of one of the run's JSON files.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            return json.loads(path.read_text())
        except FileNotFoundError:
            raise UserError(f"{self.path} has no {path.name}: the run did not get that far") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is damaged: {error}") from None

    def read_card(self) -> ModelCard:
        """The run's model card.

        Raises:
            UserError: it is missing or damaged.
        """
        try:
            return ModelCard.from_dict(self.read_json(self.card))
        except (KeyError, TypeError) as error:
            raise UserError(f"{self.card} is damaged: {error}") from None

    def save_weights(self, model: nn.Module, which: str) -> None:
        """Write all parameters and buffers as safetensors, atomically."""
        state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
        write_atomically(self.weights(which), lambda p: save_file(state, p))

    def load_model(self, which: str = "best") -> tuple[nn.Module, ModelCard]:
        """The trained network in eval mode on the CPU, and its card.

        Raises:
            UserError: the run has no such weights, or they do not fit its spec.
        """
        card = self.read_card()
        path = self.weights(which)
        if not path.is_file():
            raise UserError(f"{self.path} has no {path.name}: it has not finished an epoch yet")
        model = card.create_model()
        try:
            model.load_state_dict(load_file(path))
        except Exception as error:  # safetensors raises its own class for a damaged file
            raise UserError(f"{path} does not hold the weights of {card.model}: {first_line(error)}") from None
        return model.eval(), card

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the resumable state atomically: there is always one whole checkpoint."""
        write_atomically(self.checkpoint, lambda p: torch.save(state, p))

    def load_checkpoint(self) -> dict[str, Any]:
        """Read the resumable state; tensors and plain data only, nothing is unpickled.

        Raises:
            UserError: there is none, or it is damaged.
        """
        if not self.checkpoint.is_file():
            raise UserError(f"{self.path} has no checkpoint to resume from")
        try:
            return torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch errors alike
            raise UserError(f"{self.checkpoint} is damaged: {first_line(error)}") from None

    def append_rows(self, path: Path, rows: list[dict[str, Any]]) -> None:
        """Append rows to one of the run's CSV files; the first row sets the columns."""
        append_csv(path, rows)

    def truncate_rows(self, epoch: int) -> None:
        """Drop the rows of epochs from `epoch` on, which a resumed run will write again."""
        for path in (self.metrics, self.selection):
            rows = read_csv(path)
            kept = [row for row in rows if int(row["epoch"]) < epoch]
            if len(kept) < len(rows):
                write_atomically(path, lambda p, kept=kept, rows=rows: write_csv(p, kept, list(rows[0])))


def card_for(model_name: str, model: nn.Module, classes: list[str], preprocessing: Preprocessing) -> ModelCard:
    """The card of a freshly built network."""
    return ModelCard(model_name, spec_of(model), classes, preprocessing)
