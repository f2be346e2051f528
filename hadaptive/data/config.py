"""Which images, and how they are divided the first time."""

from dataclasses import dataclass
from pathlib import Path

from hadaptive.errors import UserError


@dataclass(frozen=True)
class DataConfig:
    """Which images a run learns from, and how they are divided into parts where nothing divides them yet.

    Attributes:
        data: digits, fashion-mnist, cifar10, cifar100, a folder of images, a tar file, or timm's hfds/<name>,
            wds/<name>, tfds/<name>.
        data_dir: where the data lie or are downloaded to.
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
    """

    data: str = "digits"
    data_dir: Path | None = None
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

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise UserError(
                    f"{name} must lie between 0 and 1, such as 0.1 for a tenth; got {getattr(self, name)}"
                )
        if self.train_size is not None and self.train_size < 1:
            raise UserError(f"train_size must be positive, got {self.train_size}")
        if self.data_seed < 0:
            raise UserError(f"data_seed must not be negative, got {self.data_seed}")
