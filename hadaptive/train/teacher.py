"""A network that another one learns from: what it says of every training image, asked once or in every step.

Source of the loss: Hinton et al., arXiv 1503.02531; timm's LogitDistillationTask has the same, for a teacher that
sees every batch.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from hadaptive.cards import ModelCard
from hadaptive.console import say
from hadaptive.data import Preprocessing, Source, Subset
from hadaptive.engine.batches import EVALUATION_BATCH, Batches, evaluation_batches
from hadaptive.errors import UserError, first_line
from hadaptive.measure.formats import SUFFIXES, check_format, named_format
from hadaptive.models import create_model
from hadaptive.models.shipped import METADATA_KEY, shipped_weights
from hadaptive.runs import RunFolder, save_tensors
from hadaptive.text import spelt
from hadaptive.train.config import TrainConfig
from hadaptive.train.features import Features, relations


@dataclass(frozen=True)
class Said:
    """What a teacher says of images.

    Attributes:
        logits: float32 (B, classes).
        features: float32 (B, features), before its classifier; None of a file, which tells no more.
    """

    logits: Tensor
    features: Tensor | None


@dataclass
class Teacher:
    """A trained network, and how it sees images.

    Attributes:
        name: as it was given.
        network: (B, C, H, W) -> (B, classes of its own), in eval mode.
        preprocessing: of its images.
        order: its output for each class of the student, int64 (classes,).
        notes: sentences for the person.
    """

    name: str
    network: Callable[[Tensor], Tensor]
    preprocessing: Preprocessing
    order: Tensor
    notes: list[str]

    def __post_init__(self) -> None:
        self.features: Features | None = None

    def watch(self) -> None:
        """Say features as well from now on.

        Raises:
            UserError: it is a file, which tells nothing but its answer.
        """
        if not isinstance(self.network, nn.Module):
            raise UserError(
                f"the teacher {self.name} is a file, which tells nothing but its answer: give the run that it is "
                "of, or leave out teacher_features"
            )
        self.features = Features(self.network)

    @torch.no_grad()
    def answers(self, source: Source, *, in_memory: bool, device: torch.device) -> dict[str, Tensor]:
        """What it says of each image of a source as it stands there: as :class:`Said` has it, but float16.

        An image that cannot be read has zeros, or what a blank one has: it is never trained on.
        """
        self.move(device)
        batches = evaluation_batches(source, self.preprocessing, in_memory=in_memory)
        said = [self._say(images.to(device)) for images, *_ in batches]
        found = {"logits": torch.cat([one.logits.cpu() for one in said]).half()}
        if self.features is not None:
            found["features"] = torch.cat([one.features.cpu() for one in said]).half()  # pyright: ignore
        return found

    def _say(self, images: Tensor) -> "Said":
        """Of the student's classes, where the images are; a runtime of files answers on the CPU."""
        logits = self.network(images).float()
        features = None if self.features is None else self.features.take()
        return Said(logits[:, self.order.to(logits.device)].to(images.device), features)

    @torch.no_grad()
    def answer(self, images: Tensor, student: Preprocessing) -> "Said":
        """What it says of a batch that the student sees."""
        own = self.preprocessing
        if (own.mean, own.std) != (student.mean, student.std):
            scale = [_per_channel(values, images) for values in (student.std, student.mean, own.mean, own.std)]
            images = (images * scale[0] + scale[1] - scale[2]) / scale[3]
        return self._say(images)

    def move(self, device: torch.device) -> None:
        """Bring it to a device; a runtime of files stays where it is."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)

    def check_batch(self, student: Preprocessing) -> None:
        """Raise one clear UserError where it cannot see the student's batches."""
        if self.preprocessing.input_size != student.input_size:
            theirs, ours = ("x".join(map(str, how.input_size)) for how in (self.preprocessing, student))
            raise UserError(
                f"the teacher {self.name} takes images of {theirs}, and batches are of {ours}: pass "
                "--teacher-sees image, which prepares images for it"
            )


def _per_channel(values: tuple[float, ...], images: Tensor) -> Tensor:
    return torch.tensor(values[: images.shape[1]], device=images.device).view(1, -1, 1, 1)


def open_teacher(config: TrainConfig, classes: list[str]) -> Teacher:
    """The teacher that the settings name: a run, an exported or any ONNX file, shipped or timm's weights.

    Raises:
        UserError: it is not there, or knows other classes.
    """
    name = config.teaching.teacher
    assert name is not None
    path, how = shipped_weights().get(name, Path(name).expanduser()), config.preprocessing
    known, several, notes = None, False, []
    if path.is_dir():
        network, card = RunFolder.open(path).load_model()
        known, how, several = card.classes, card.preprocessing, card.multi_label
    elif path.is_file():
        network, card, how = _of_file(path, how)
        if card is not None:
            known, several = card.classes, card.multi_label
        else:
            notes.append(
                f"the teacher {name} does not say how it scales pixels: as this training does, it is taken"
            )
    elif named_format(path) is not None:
        raise UserError(f"there is no teacher {name}")
    else:
        network = _of_timm(name, how, len(classes))
        cfg: Any = network.pretrained_cfg
        own = resolve_model_data_config(network)
        how = Preprocessing(
            image_size=own["input_size"][1],
            in_chans=how.in_chans,
            fit=how.fit,
            pad=how.pad,
            crop_pct=own["crop_pct"] if how.fit == "crop" else how.crop_pct,
            interpolation=own["interpolation"],
            mean=own["mean"],
            std=own["std"],
        )
        known = cfg.get("label_names")
    if several != config.data.multi_label:
        has, asks = ("any number of classes", "one class") if several else ("one class", "any number of classes")
        raise UserError(
            f"the teacher {name} takes an image to have {has}, and this training {asks}: give it a teacher that "
            f"learned {'without' if several else 'with'} --multi-label"
        )
    if known is None:
        notes.append(f"the teacher {name} names no classes: they are taken to be in the order of the data's")
        known = classes
    places = {spelt(one): place for place, one in enumerate(known)}
    missing = [one for one in classes if spelt(one) not in places]
    if missing:
        raise UserError(
            f"the teacher {name} does not know {missing[0]!r}: its classes are {', '.join(map(str, known[:5]))}"
            f"{', …' if len(known) > 5 else ''}"
        )
    order = torch.tensor([places[spelt(one)] for one in classes])
    teacher = Teacher(name, network, how, order, notes)
    if config.teaching.teacher_sees == "batch":
        teacher.check_batch(config.preprocessing)
    if config.teaching.teacher_features:
        teacher.watch()
    blank = torch.zeros(2, *how.input_size)
    try:
        number = network(blank).shape[1]
    except Exception as error:  # of any runtime
        raise UserError(f"the teacher {name} cannot take {how.input_size} images: {first_line(error)}") from None
    if number != len(known):
        raise UserError(f"the teacher {name} has {number} outputs for {len(known)} classes")
    return teacher


def _of_timm(name: str, how: Preprocessing, classes: int) -> Any:
    network: Any = create_model(name, num_classes=classes, in_chans=how.in_chans, pretrained=True)
    number = network.pretrained_cfg.get("num_classes")
    if number != classes:
        raise UserError(
            f"the teacher {name} knows {number} classes and the data have {classes}: train it on them first, with "
            f"--model {name} --pretrained, and give that run as --teacher"
        )
    return network.eval()


def _of_file(path: Path, how: Preprocessing) -> tuple[Callable[[Tensor], Tensor], ModelCard | None, Preprocessing]:
    from hadaptive.measure.sessions import load

    if path.suffix == SUFFIXES["torch"]:
        raise UserError(f"{path} can run code when it is loaded, and is no teacher: give the run that it is of")
    session = _foreign_session(path) if path.suffix == SUFFIXES["onnx"] else None
    if session is None:
        run, card = load(path)
        return lambda images: torch.from_numpy(run(images.cpu().numpy())), card, card.preprocessing
    given, *more = session.get_inputs()
    if more:
        raise UserError(f"{path} takes {len(more) + 1} inputs, a teacher takes images")

    def answer(images: Tensor) -> Tensor:
        """One by one where the file takes one at a time."""
        arrays = images.cpu().numpy()
        parts = np.split(arrays, len(arrays)) if given.shape[0] == 1 else [arrays]
        outputs: list[Any] = [session.run(None, {given.name: part})[0] for part in parts]
        said = torch.from_numpy(np.concatenate(outputs))
        # A file that ends in a softmax: probabilities are the logits' exponentials but for a constant.
        are_shares = bool((said >= 0).all()) and bool(((said.sum(1) - 1).abs() < 1e-3).all())
        return said.clamp(min=1e-12).log() if are_shares else said

    side = given.shape[-1]
    return answer, None, replace(how, image_size=side) if isinstance(side, int) else how


def _foreign_session(path: Path) -> Any:
    """What runs an ONNX file that another program wrote; None for those of ``hadaptive export``."""
    check_format("onnx", writing=False)
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has classes of its own
        raise UserError(f"{path} is no ONNX file: {first_line(error)}") from None
    return None if METADATA_KEY in session.get_modelmeta().custom_metadata_map else session


class Lessons:
    """What a teacher adds to the loss of each batch.

    Args:
        config: of the training.
        teacher: None where all its answers are in the run's folder already.
        student: network that it is for. One with an output of its own for a teacher, as DeiT's distilled ones have
            it (arXiv 2012.12877), learns from it there.
    """

    def __init__(self, config: TrainConfig, teacher: Teacher | None, student: nn.Module) -> None:
        self.config, self.teacher = config, teacher
        self.answers: dict[str, Tensor] | None = None
        self.features = Features(student) if config.teaching.teacher_features else None
        distilled: Any = getattr(student, "set_distilled_training", None)
        if distilled is not None:
            distilled(True)

    def prepare(
        self, folder: RunFolder, source: Source, *, in_memory: bool, device: torch.device, show: bool
    ) -> None:
        """Ask the teacher about every training image, in the main process; the folder keeps what it says."""
        assert self.teacher is not None
        if show:
            say(f"asking {self.teacher.name} about {len(source):,} images, once for all")
        answers = self.teacher.answers(source, in_memory=in_memory, device=device)
        save_tensors(answers, folder.answers)

    def rehearse(self, batches: Batches, device: torch.device) -> float:
        """Be ready for steps that leave nothing behind; the seconds that asking about every image would take."""
        assert self.teacher is not None
        if self.config.teaching.teacher_sees == "batch":
            self.teacher.move(device)
            return 0.0
        source = batches.parts["train"]
        few = Subset(source, np.arange(min(EVALUATION_BATCH, len(source))))
        started = time.monotonic()
        said = self.teacher.answers(few, in_memory=batches.in_memory, device=device)
        self.answers = {name: one.new_zeros(len(source), one.shape[1]) for name, one in said.items()}
        return (time.monotonic() - started) * len(source) / len(few)

    def begin(self, folder: RunFolder, images: int, device: torch.device) -> None:
        """Read what the teacher said, in every process; or bring it where it is asked.

        Raises:
            UserError: the answers are damaged, or of other images.
        """
        if self.config.teaching.teacher_sees == "batch":
            assert self.teacher is not None
            self.teacher.move(device)
            return
        self.teacher = None  # it has said everything, and may be large
        try:
            self.answers = load_file(folder.answers)
            number = len(self.answers["logits"])
        except Exception as error:  # safetensors raises its own class
            raise UserError(f"{folder.answers} is damaged: {first_line(error)}; delete it") from None
        if number != images:
            raise UserError(f"{folder.answers} is of {number:,} images, not {images:,}: delete it")

    def said(self, images: Tensor, numbers: Tensor | None) -> Said:
        """What the teacher says of a batch.

        Args:
            images: that the student sees.
            numbers: which images of the training part they are, int64 (B,).
        """
        if self.answers is None:
            assert self.teacher is not None
            return self.teacher.answer(images, self.config.preprocessing)
        assert numbers is not None
        found = {name: kept[numbers.cpu()].to(images.device).float() for name, kept in self.answers.items()}
        return Said(found["logits"], found.get("features"))

    def loss(self, loss: Tensor, logits: Tensor, said: Said) -> Tensor:
        """The loss with the teacher's share: of each image (B,), or the mean where `loss` is one.

        Args:
            loss: by the labels, () or (B,).
            logits: of the student, or of its output for the teacher, float32 (B, classes).
            said: by the teacher, as :meth:`said` has it.
        """
        how = self.config.teaching
        t = how.teacher_temperature
        if self.config.data.multi_label:
            taught = _bernoulli_divergence(logits / t, said.logits / t).mean(1)
        else:
            student, teacher = F.log_softmax(logits / t, 1), F.log_softmax(said.logits / t, 1)
            taught = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        taught = taught if loss.ndim else taught.mean()
        total = (1 - how.teacher_weight) * loss + how.teacher_weight * t**2 * taught
        if self.features is None:
            return total
        assert said.features is not None
        alike = relations(self.features.take(), said.features)
        return total + how.teacher_features * (alike if loss.ndim else alike.mean())


def _bernoulli_divergence(logits: Tensor, said: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each class from what the teacher says of it alone, nats, (B, classes)."""
    shares = said.sigmoid()
    own = F.binary_cross_entropy_with_logits(said, shares, reduction="none")
    return F.binary_cross_entropy_with_logits(logits, shares, reduction="none") - own
