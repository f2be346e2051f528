"""The run folder: everything one training leaves behind, and the only code that knows its layout.

config.json          all that is needed to run it again, and what timm builds the network from ("local-dir:RUN")
model.json           model name, spec, class names, preprocessing
split.csv            every image of the data, and the part it is in
metrics.csv          a row per epoch
selection.csv        a row per epoch and ACH layer
best.safetensors     weights with the best validation accuracy
last.safetensors     weights of the last finished epoch
model.safetensors    a link to one of the two, by the name that timm looks for
checkpoint.pt        all state needed to go on exactly, also to more epochs when training is done
teacher.safetensors  what a teacher says of each training image; removed when training is done
calibration.json     how sure the tested weights are to be, as the validation part tells
finished-30/         the run as it was when it was finished after 30 epochs, before it went on to more
curves.png, summary.json, skipped_images.txt, report.html
"""

import io
import json
import shlex
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from hadaptive.cards import ModelCard, exported_division
from hadaptive.data import DataConfig, ImageData, Manifest, open_data
from hadaptive.errors import UserError, first_line, resuming
from hadaptive.files import append_csv, read_csv, umask, write_atomically, write_csv, write_json
from hadaptive.settings import part_of
from hadaptive.text import alike

Folder = TypeVar("Folder", bound="RunFolder")


class RunFolder:
    """One run on disk.

    Attributes:
        goes_on: whether a run that is finished may go on to more epochs.
    """

    goes_on: ClassVar[bool] = True

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.card = self.path / "model.json"
        self.manifest = self.path / "split.csv"
        self.metrics = self.path / "metrics.csv"
        self.selection = self.path / "selection.csv"
        self.checkpoint = self.path / "checkpoint.pt"
        self.calibration = self.path / "calibration.json"
        self.for_timm = self.path / "model.safetensors"
        self.answers = self.path / "teacher.safetensors"
        self.summary = self.path / "summary.json"
        self.curves = self.path / "curves.png"
        self.skipped = self.path / "skipped_images.txt"
        self.by_epoch = (self.metrics, self.selection)  # rows that a resumed run may write again

    @classmethod
    def check_new(cls, path: str | Path) -> None:
        """Raise one clear UserError if something is at `path` already: runs are never overwritten."""
        if Path(path).exists():
            raise UserError(
                f"{path} exists already and is never overwritten: choose another --output, "
                f"or continue it with --resume {shlex.quote(str(path))}"
            )

    @classmethod
    def create(
        cls: type[Folder],
        path: str | Path,
        documents: dict[str, Any] | None = None,
        *,
        manifest: Manifest | None = None,
        checkpoint: dict[str, Any] | None = None,
    ) -> Folder:
        """Make a new run folder with all that it begins with, in one step.

        Args:
            path: where.
            documents: JSON by the names of their files.
            manifest: division of the images.
            checkpoint: state to resume from.

        Raises:
            UserError: something is there already; runs are never overwritten.
        """
        cls.check_new(path)
        run, staged = cls(path), None
        try:
            run.path.parent.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=f".{run.path.name}-", dir=run.path.parent))
            staged.chmod(0o777 & ~umask())
            for name, document in (documents or {}).items():
                write_json(staged / name, document)
            if manifest is not None:
                manifest.save(cls(staged).manifest)
            if checkpoint is not None:
                cls(staged).save_checkpoint(checkpoint)
            staged.rename(run.path)
        except OSError as error:
            raise UserError(f"the run folder {path} cannot be made: {error.strerror}") from None
        finally:
            if staged is not None and staged.exists():
                shutil.rmtree(staged)
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
        known = {"version", "pretrained_cfg"}.intersection(run.read_json(run.config))
        if known == {"pretrained_cfg"} and not run.card.exists():
            raise UserError(
                f"{path} is a folder that timm loads, and no run: its weights are in {path}/model.safetensors"
            )
        if (run.path / "space.json").is_file():
            raise UserError(
                f"{path} is the folder of a search: how to train what it found is said by "
                f"{resuming('search', path)}"
            )
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
            return json.loads(path.read_text(encoding="utf-8"))
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
        """Write all parameters and buffers as safetensors, atomically; timm finds those of the run's choice."""
        save_tensors(model.state_dict(), self.weights(which))
        if not self.for_timm.is_symlink() and self.config.is_file() and which == self.choice():
            try:
                self.for_timm.symlink_to(self.weights(which).name)
            except OSError:  # the file system has no links, or this was a copy already
                write_atomically(self.for_timm, lambda p: shutil.copyfile(self.weights(which), p))

    def load_model(self, which: str | None = None) -> tuple[nn.Module, ModelCard]:
        """The trained network in eval mode on the CPU, and its card.

        Args:
            which: "best" or "last"; None for the run's own choice, which it was tested with.

        Raises:
            UserError: the run has no such weights, or they do not fit its spec.
        """
        which = which or self.choice()
        card = self.read_card()
        path = self.weights(which)
        if not path.is_file():
            raise UserError(f"{self.path} has no {path.name}: it has not finished an epoch yet")
        model = card.create_model()
        try:
            model.load_state_dict(load_file(path))
        except Exception as error:  # safetensors raises its own class for a damaged file
            raise UserError(f"{path} does not hold the weights of {card.model}: {first_line(error)}") from None
        return model.eval(), self.calibrated(card, which)

    def calibrated(self, card: ModelCard, which: str) -> ModelCard:
        """A card that says how sure the "best" or "last" weights are to be, as far as somebody found out.

        Raises:
            UserError: the file that says it is damaged.
        """
        known: dict[str, Any] = {"weights": None}
        if self.calibration.is_file():
            known = self.read_json(self.calibration)
        try:
            if known["weights"] != which:
                return replace(card, temperature=1.0, thresholds=None)
            temperature, thresholds = float(known["temperature"]), known.get("thresholds")
            thresholds = None if thresholds is None else tuple(map(float, thresholds))
        except (KeyError, TypeError, ValueError):
            temperature, thresholds = 0.0, None
        fits = thresholds is None or len(thresholds) == len(card.classes)
        if not 0 < temperature < float("inf") or not fits:
            raise UserError(f"{self.calibration} is damaged: delete it")
        return replace(card, temperature=temperature, thresholds=thresholds)

    @property
    def version(self) -> int:
        """Of the settings' format: folders of version 1 lack some files."""
        return self.read_json(self.config).get("version", 1)

    def choice(self) -> str:
        """The weights that the run is tested, exported and predicts with where nobody says otherwise."""
        return self.read_json(self.config).get("select", "best")

    # -- its images -------------------------------------------------------------------------------------------

    def data_config(self, data: str | None = None, data_dir: Path | None = None) -> DataConfig:
        """Which images the run is of.

        Args:
            data, data_dir: where they lie now, if they have moved since.

        Raises:
            UserError: the settings are missing or damaged.
        """
        stored = self.stored_settings()
        moved = {name: value for name, value in (("data", data), ("data_dir", data_dir)) if value is not None}
        return replace(part_of(DataConfig, "data", stored), **moved)

    def stored_settings(self) -> dict[str, Any]:
        """The JSON of the settings that have a part `data`."""
        return self.read_json(self.config)

    def read_manifest(self) -> Manifest | None:
        """The division of its images; None where there is none, as of a stream or in runs of version 1."""
        return Manifest.load(self.manifest) if self.manifest.is_file() else None

    def require_manifest(self) -> None:
        """Raise one clear UserError where the division of the images is gone; runs of version 1 never had one."""
        if self.version > 1 and not self.manifest.is_file():
            raise UserError(
                f"{self.path} has lost its {self.manifest.name}: without it, images it was trained on cannot be "
                "told from others; put it back"
            )

    def open_data(
        self,
        data: str | None = None,
        data_dir: Path | None = None,
        *,
        exact: bool = False,
        needs: tuple[str, ...] = ("train", "validation", "test"),
    ) -> ImageData:
        """The run's images in the parts they were in, whatever their folder holds now.

        Args:
            data, data_dir: where they lie now, if they have moved since.
            exact: refuse any difference.
            needs: parts that are used.

        Raises:
            UserError: they are not there, or not what they were; a run that kept no list of them cannot tell.
        """
        config, manifest = self.data_config(data, data_dir), self.read_manifest()
        if manifest is not None:
            return open_data(config, manifest, exact=exact, needs=needs)
        self.require_manifest()
        opened = open_data(config, drawn_before_manifests=True)
        opened.notes.append(
            f"{self.path} is of an older version that kept no list of its images: they are taken to be the same"
        )
        self._check_counts(opened)
        if self.card.is_file() and not alike(opened.classes, self.read_card().classes):
            raise UserError(
                f"{config.data} has other classes than the run was trained on "
                f"({len(opened.classes)} now, {len(self.read_card().classes)} then)"
            )
        return opened

    def _check_counts(self, opened: ImageData) -> None:
        """Raise one clear UserError if images have come or gone since a run that kept no list of them."""
        then, now = None, len(opened.train)
        if self.summary.is_file():
            then = self.read_json(self.summary)["train_images"]
        elif (rows := read_csv(self.metrics)) and "updates" in rows[-1]:
            batch = self.read_json(self.config)["batch_size"]
            then, now = int(rows[-1]["updates"]) // (int(rows[-1]["epoch"]) + 1), now // batch
        if then is not None and then != now:
            raise UserError(
                f"{opened.location.data} holds other images than {self.path} was trained on, which an older "
                "version made without a list of them: images it was trained on cannot be told from others"
            )

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write the resumable state atomically: there is always one whole checkpoint."""
        content = io.BytesIO()  # torch.save itself says nothing of a disk that is full
        torch.save(state, content)
        write_atomically(self.checkpoint, lambda p: p.write_bytes(content.getbuffer()))

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
        for path in self.by_epoch:
            rows = read_csv(path)
            kept = [row for row in rows if int(row["epoch"]) < epoch]
            if len(kept) < len(rows):
                write_atomically(path, lambda p, kept=kept, rows=rows: write_csv(p, kept, list(rows[0])))


def save_tensors(state: dict[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors, atomically."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    content = save(whole, {"format": "pt"})  # what loaders of others ask for
    write_atomically(path, lambda p: p.write_bytes(content))


def division_of(init: Path | None, data: DataConfig) -> tuple[Manifest | None, list[str]]:
    """How the images were divided that some weights have learned from, and a sentence where nobody knows.

    Args:
        init: run folder or exported weights; None for none.
        data: images that they are to learn from now.

    Raises:
        UserError: a run of an older version learned from these very images, which are not what they were.
    """
    doubt = f"{init} does not say which images it has learned from: nothing keeps them out of the test part"
    if init is None or not init.exists():  # which is said where its weights are read
        return None, []
    if init.is_file():
        manifest = exported_division(init)
        return manifest, [] if manifest is not None else [doubt]
    run = RunFolder.open(init)
    if run.version > 1 or run.manifest.is_file():
        return run.read_manifest(), []
    try:
        return run.open_data().manifest, []
    except UserError:
        then, now = (Path(str(place)).expanduser().resolve() for place in (run.data_config().data, data.data))
        if then == now:
            raise
        return None, [doubt]
