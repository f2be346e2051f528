"""What a network is, how to feed it, and what it has learned from: as run folders and exported files say it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from hadaptive.data import Manifest, Preprocessing
from hadaptive.errors import UserError, first_line
from hadaptive.models import NetSpec, create_model, spec_of
from hadaptive.models.shipped import METADATA_KEY
from hadaptive.models.variants import plug_of
from hadaptive.text import shown, spelt

OF_OTHER_WEIGHTS = (
    "tag",
    "label_offset",
    "label_descriptions",
    "min_input_size",
    "test_pool_size",
    "license",
    "description",
    "origin_url",
    "notes",
)


@dataclass(frozen=True)
class ModelCard:
    """What a network is and how to feed it.

    Attributes:
        model: timm name or spec name.
        spec: the NetSpec, None for a network that is not a Hadaptive-Net.
        classes: class names in the order of the outputs.
        preprocessing: from an image to the network's input.
        drop_rate, drop_path_rate: as it was trained; no effect on predictions.
        started_from: digest of the weights that its training started from, None where they were random.
        temperature: that its logits are divided by, to be as sure as they are right.
        multi_label: whether an image has any number of classes, each with a probability of its own.
        thresholds: probability from which each class counts; None where nobody set any.
    """

    model: str
    spec: NetSpec | None
    classes: list[str]
    preprocessing: Preprocessing
    drop_rate: float | None = None
    drop_path_rate: float | None = None
    started_from: str | None = None
    temperature: float = 1.0
    multi_label: bool = False
    thresholds: tuple[float, ...] | None = None

    @property
    def identity(self) -> str:
        """What tells this network from others, whatever the file it came from is called."""
        return self.model if self.spec is None else self.spec.fingerprint

    def create_model(self) -> nn.Module:
        """The network, untrained; timm knows how to feed it."""
        network: Any = create_model(
            self.spec or self.model,
            num_classes=len(self.classes),
            in_chans=self.preprocessing.in_chans,
            drop_rate=self.drop_rate,
            drop_path_rate=self.drop_path_rate,
            image_size=self.preprocessing.image_size,
        )
        known = getattr(network, "pretrained_cfg", None) or {}
        network.pretrained_cfg = network.default_cfg = {**known, **self.pretrained_cfg}
        return network

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """What timm's ``resolve_model_data_config`` and ``save_for_hf`` say of the network: all but padding."""
        how = self.preprocessing
        crop = how.fit == "crop"
        return {
            "input_size": how.input_size,
            "test_input_size": None,
            "pool_size": None,
            "interpolation": how.interpolation,
            "mean": how.mean[: how.in_chans],
            "std": how.std[: how.in_chans],
            "crop_pct": how.crop_pct if crop else 1.0,
            "test_crop_pct": None,
            "crop_mode": "center" if crop else "squash",
            "num_classes": len(self.classes),
            "label_names": tuple(self.classes),
        }

    @property
    def timm_config(self) -> dict[str, Any]:
        """What timm's "local-dir:" and "hf-hub:" build the network from, in a config.json beside the weights.

        Plain data under the names of :data:`hadaptive.settings.FOR_TIMM`.

        Raises:
            UserError: timm has no name for the network.
        """
        if plug_of(self.model) is not None and self.spec is None:
            raise UserError(f"timm cannot build {self.model}, which is a network with some of its layers replaced")
        name = self.model if self.spec is None else "hadaptive_net"
        found = timm.get_pretrained_cfg(name, allow_unregistered=True)
        known = {} if found is None else found.to_dict(remove_source=True)
        # What is said of the weights that timm has under this name is not said of these.
        known = {key: value for key, value in known.items() if key not in OF_OTHER_WEIGHTS}
        known = {key: value for key, value in {**known, **self.pretrained_cfg}.items() if value is not None}
        args: dict[str, Any] = {} if self.spec is None else {"spec": self.spec.to_dict()}
        rates = {"drop_rate": self.drop_rate, "drop_path_rate": self.drop_path_rate}
        return {
            "architecture": name.partition(".")[0],
            "model_args": args | {key: rate for key, rate in rates.items() if rate is not None},
            "pretrained_cfg": known | {"architecture": name.partition(".")[0], "custom_load": False},
        }

    @property
    def for_others(self) -> "ModelCard":
        """The same card without the places on its owner's disk that a spec or weights were read from."""
        started, found, place = (self.started_from or "").partition(":local-dir:")
        return replace(
            self,
            model=self.model if self.spec is None else self.spec.name,
            started_from=f"{started}{found}{Path(place).name}" if found else self.started_from,
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
            "started_from": self.started_from,
            "temperature": self.temperature,
            "multi_label": self.multi_label,
            "thresholds": None if self.thresholds is None else list(self.thresholds),
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ModelCard":
        """The inverse of :meth:`to_dict`."""
        spec = None if data["spec"] is None else NetSpec.from_dict(data["spec"])
        known = {**data, "spec": spec, "preprocessing": Preprocessing.from_dict(data["preprocessing"])}
        if known.get("thresholds") is not None:
            known["thresholds"] = tuple(known["thresholds"])
        return cls(**known)

    @property
    def limits(self) -> tuple[float, ...]:
        """The probability from which each class counts: as somebody set it, else one half of several, 0 of one."""
        return self.thresholds or (0.5 if self.multi_label else 0.0,) * len(self.classes)

    def with_thresholds(self, given: Sequence[str]) -> "ModelCard":
        """This card with the probabilities that a person sets: one for all classes, or of single ones.

        Args:
            given: such as "0.6" and "cat=0.8"; nothing leaves the card as it is.

        Raises:
            UserError: one is no probability, or of no class of the network.
        """
        if not given:
            return self
        found = list(self.limits)
        places = {spelt(name): place for place, name in enumerate(self.classes)}
        for one in sorted(given, key=lambda text: "=" in text):  # that of all comes first
            name, named, text = one.rpartition("=")
            try:
                least = float(text)
            except ValueError:
                least = -1.0
            if not 0 <= least <= 1:
                raise UserError(f"reject_below must lie between 0 and 1, such as 0.6 or cat=0.8, got {one!r}")
            if named and spelt(name) not in places:
                raise UserError(f"reject_below: the network has no class {name!r}; {_known(self.classes)}")
            for place in [places[spelt(name)]] if named else range(len(found)):
                found[place] = least
        return replace(self, thresholds=tuple(found))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of each class, float32 (B, classes), from the network's logits (B, classes)."""
        logits = logits.float() / self.temperature
        return logits.sigmoid() if self.multi_label else logits.softmax(1)


def _known(classes: list[str]) -> str:
    return f"it knows {', '.join(map(shown, classes[:5]))}{', …' if len(classes) > 5 else ''}"


def open_weights(path: Path) -> tuple[nn.Module, ModelCard]:
    """The network in eval mode that ``hadaptive export --format safetensors`` wrote, and its card.

    Raises:
        UserError: it is damaged, or another program wrote it.
    """
    try:
        card = card_in(path)
        network = card.create_model()
        network.load_state_dict(load_file(path))
    except Exception as error:  # safetensors raises its own class for a damaged file
        raise UserError(f"{path} is damaged or was not written by hadaptive export: {first_line(error)}") from None
    return network.eval(), card


def card_in(path: Path) -> ModelCard:
    """The card that exported weights carry; errors are the libraries' own."""
    with safe_open(path, "pt") as file:
        return ModelCard.from_dict(json.loads(file.metadata()[METADATA_KEY])["card"])


def card_for(model_name: str, model: nn.Module, classes: list[str], preprocessing: Preprocessing) -> ModelCard:
    """The card of a freshly built network."""
    return ModelCard(model_name, spec_of(model), classes, preprocessing)


def exported_division(path: Path) -> Manifest | None:
    """The division of the images that exported weights have learned from; None where they do not say."""
    try:
        with safe_open(path, "pt") as file:
            text = json.loads(file.metadata()[METADATA_KEY]).get("split")
    except Exception:  # a damaged file is told where its weights are read
        return None
    return None if text is None else Manifest.loads(text)
