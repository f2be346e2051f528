"""Which images, how they are divided the first time, and what happens to each of them."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from hadaptive.errors import UserError
from hadaptive.files import json_text

Fit = Literal["crop", "stretch"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"]
FITS, INTERPOLATIONS = get_args(Fit), get_args(Interpolation)
# What a stream needs: the module to try and what to install.
STREAMS = {
    "wds/": ("webdataset.pipeline", '"hadaptive[wds]"'),
    "hfids/": ("datasets.load", '"hadaptive[hfds]"'),
    "tfds/": ("tensorflow_datasets.core", "tensorflow tensorflow-datasets"),
}


def is_stream(name: str) -> bool:
    """Whether timm reads this data set as a stream, without random access."""
    return name.lower().startswith(tuple(STREAMS))


MOST_PIXELS = 2**28  # of one image: a gigabyte once it is decoded


@dataclass(frozen=True)
class DataConfig:
    """Which images a run learns from, and how they are divided into parts where nothing divides them yet.

    Attributes:
        data: digits, fashion-mnist, cifar10, cifar100, cooccurrence (generated), a folder of images, a tar file, a
            label file (.csv, .tsv, .parquet), or timm's hfds/<name>, wds/<name>, tfds/<name>.
        data_dir: where the data lie or are downloaded to.
        file_column: of a label file, that names the images; default is file, filename, path, image or the like.
        label_column: of a label file; default is label, class, target or category. With --multi-label also
            columns that say 1 or 0, one for each class, such as cat|dog.
        split_column: of a label file, that says train, val or test; default is split, set, subset or part.
        group_by: keep images in one part that belong together: a column of a label file, a regular expression
            whose first group (or all that it matches) is alike in their names, or duplicates.
        split: split.csv, or a run folder that has one: its images keep their parts, and only new ones are drawn.
        train_size: use only so many training images.
        val_fraction: share of the training part held out for validation.
        test_fraction: share held out for testing where the data have no test part.
        train_split: name of the training part (hfds, wds, tfds).
        val_split: name of the validation part (hfds, wds, tfds).
        test_split: name of the test part (hfds, wds, tfds).
        num_classes: needed for streams (wds, tfds) only.
        train_samples: images per epoch of a stream, where it does not say so itself.
        data_seed: of the held-out parts; the same for runs that are to be compared.
        multi_label: an image has any number of classes: its label names them all, such as cat|dog.
        label_separator: what stands between them.
    """

    data: str = "digits"
    data_dir: Path | None = None
    file_column: str | None = None
    label_column: str | None = None
    split_column: str | None = None
    group_by: str | None = None
    split: Path | None = None
    train_size: int | None = None
    val_fraction: float = 0.1
    test_fraction: float = 0.2
    train_split: str = "train"
    val_split: str | None = None
    test_split: str | None = "test"
    num_classes: int | None = None
    train_samples: int | None = None
    data_seed: int = 0
    multi_label: bool = False
    label_separator: str = "|"

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(
                    f"{name} must lie between 0 and 1, such as 0.1 for a tenth; got {getattr(self, name)}"
                )
        for name in ("train_size", "num_classes", "train_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} must be positive, got {value}")
        if self.data_seed < 0:
            raise UserError(f"data_seed must not be negative, got {self.data_seed}")
        if self.data_seed >= 2**63:
            raise UserError(f"data_seed must be below 2**63, got {self.data_seed}")
        if not self.label_separator:
            raise UserError("label_separator must be what stands between two classes, such as '|'")
        if self.multi_label and is_stream(self.data):
            raise UserError(f"{self.data} is a stream, whose labels are numbers: leave out multi_label")


@dataclass(frozen=True)
class Preprocessing:
    """All that is needed to turn a person's image into what a trained network expects; saved with every run.

    Attributes:
        image_size: side of the square input, pixels.
        in_chans: 1 (grey) or 3 (RGB).
        fit: crop (timm's resize and centre crop) or stretch (pad, then resize both sides; for small images).
        pad: zero pixels added on each side before a stretch.
        crop_pct: share of the resized short side that the centre crop keeps.
        interpolation: of a resize.
        mean: of each channel, of pixel values in [0, 1].
        std: of each channel, likewise.
        white: the value that becomes white in grey images of more than 8 bits, the same for all of them; default
            65535 for integers (4095 is that of 12 bits) and 1 for floating-point numbers. 0 takes each image's own
            largest value for a guide, as runs did before they had this setting.
        max_pixels: an image of more is not read.
    """

    BEFORE: ClassVar[dict[str, Any]] = {"white": 0.0, "max_pixels": 178_956_970}  # what older files do not say

    image_size: int
    in_chans: int = 3
    fit: Fit = "crop"
    pad: int = 0
    crop_pct: float = 0.875
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    white: float | None = None
    max_pixels: int = MOST_PIXELS

    def __post_init__(self) -> None:
        if self.fit not in FITS:
            raise UserError(f"fit must be one of {', '.join(FITS)}; got {self.fit!r}")
        if self.in_chans not in (1, 3):
            raise UserError(f"in_chans must be 1 or 3, got {self.in_chans}")
        if self.image_size < 1 or self.pad < 0:
            raise UserError(f"image_size must be positive and pad not negative: {self.image_size}, {self.pad}")
        if not 0 < self.crop_pct <= 1:
            raise UserError(f"crop_pct must lie above 0 and be at most 1, got {self.crop_pct}")
        if min(len(self.mean), len(self.std)) < self.in_chans or min(self.std) <= 0:
            raise UserError(f"mean and std need {self.in_chans} values each, and std positive ones")
        if self.white is not None and not 0 <= self.white < float("inf"):
            raise UserError(f"white must be a positive value, such as 4095 for 12 bits; got {self.white}")
        if self.max_pixels < 1:
            raise UserError(f"max_pixels must be at least 1, got {self.max_pixels}")
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise UserError(f"mean and std must be finite numbers, got {self.mean} and {self.std}")
        if self.interpolation not in INTERPOLATIONS:
            raise UserError(
                f"interpolation must be one of {', '.join(INTERPOLATIONS)}; got {self.interpolation!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return json.loads(json_text(dataclasses.asdict(self)))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Preprocessing":
        """The inverse of :meth:`to_dict`."""
        return cls(**{**cls.BEFORE, **data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of one input."""
        return (self.in_chans, self.image_size, self.image_size)


@dataclass(frozen=True)
class Augmentation:
    """Random changes to training images.

    Attributes:
        hflip: probability of a horizontal flip.
        vflip: probability of a vertical flip.
        shift: pixels a stretched image may move in each direction, before resizing.
        scale: smallest share of the area a random crop keeps.
        auto_augment: timm's policy, e.g. rand-m7-mstd0.5-inc1; of fit crop only.
        color_jitter: strength of random colour changes; of fit crop only.
        erase: probability of random erasing; of fit crop only.
    """

    hflip: float = 0.5
    vflip: float = 0.0
    shift: int = 0
    scale: float = 0.35
    auto_augment: str | None = None
    color_jitter: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "erase"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} must lie between 0 and 1, got {getattr(self, name)}")
        if self.shift < 0 or not 0 <= self.color_jitter < math.inf or not 0 < self.scale <= 1:
            raise UserError(
                "shift and color_jitter must not be negative, and scale must lie above 0 and be at most 1; got "
                f"{self.shift}, {self.color_jitter}, {self.scale}"
            )
