"""Hugging Face data sets, named as timm names them: hfds/<name on the hub, or path>."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hadaptive.data.images import open_image
from hadaptive.data.sources import UNKNOWN_STAT, Opened
from hadaptive.errors import UserError
from hadaptive.packages import require

LABEL_COLUMNS = ("label", "labels", "target", "fine_label")


class MissingSplitError(UserError):
    """The data set has no split of that name."""


class HuggingFaceSource:
    """One split of a Hugging Face data set with an image column and a label column.

    Images are called by their places: reading the names of their files would read the images too.

    Args:
        dataset: a `datasets.Dataset`.
        label: what to call it in messages.
        split: what the data set calls this split.
        classes: of the training part, whose class numbers this part must share; None for the training part.

    Raises:
        UserError: a column is missing, or the classes are not those of the training part.
    """

    positional = True
    threads = 1  # `datasets` does not say that several may read at once

    def __init__(self, dataset: Any, label: str, split: str, classes: list[str] | None = None) -> None:
        from datasets import ClassLabel
        from datasets import Image as ImageFeature

        self.label = label
        self.split = split
        features = dataset.features
        images = [name for name, feature in features.items() if isinstance(feature, ImageFeature)]
        labels = [name for name in LABEL_COLUMNS if name in features]
        labels += [name for name, feature in features.items() if isinstance(feature, ClassLabel)]
        if not images or not labels:
            lacking = "labels" if images else "images"
            raise UserError(f"{label} has no column of {lacking}; its columns are {', '.join(features)}")
        self.image_column = images[0]
        self.data = dataset.cast_column(self.image_column, ImageFeature(decode=False))
        values, names = list(dataset[labels[0]]), getattr(features[labels[0]], "names", None)
        if names:
            self.classes = list(names)
            self.targets = np.array([-1 if value is None else value for value in values], np.int64)
        else:
            self.classes = classes or [str(value) for value in sorted({v for v in values if v is not None})]
            numbers = {name: number for number, name in enumerate(self.classes)}
            self.targets = np.array([numbers.get(str(value), -1) for value in values], np.int64)
        if classes is not None and self.classes != classes:
            raise UserError(f"the classes of {label} are not those of the training part")

    def __len__(self) -> int:
        return len(self.targets)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.content(index)), int(self.targets[index])

    def content(self, index: int) -> bytes:
        item = self.data[index][self.image_column]
        if item is None:
            raise OSError("there is no image")
        return item["bytes"] if item["bytes"] is not None else Path(item["path"]).read_bytes()

    def key(self, index: int) -> str:
        return f"{self.split} #{index}"

    def stat(self, index: int) -> tuple[int, int, int]:
        return UNKNOWN_STAT

    def name(self, index: int) -> str:
        item = self.data[index][self.image_column]
        path = os.path.basename(item["path"]) if item and item.get("path") else ""
        return f"{self.label} #{index} {path}".rstrip()


def open_hugging_face(name: str, root: Path | None, split_names: tuple[str, str | None, str | None]) -> Opened:
    """Open ``hfds/<name>``: a data set of the hub, a local folder that `datasets` can load, or one it saved.

    Args:
        name: with the prefix.
        root: cache for downloads; default is that of `datasets` itself.
        split_names: of the train, validation and test parts. A test part called "test" is left out if there is no
            such split, if it is the validation part, or if it has no labels.

    Raises:
        UserError: `datasets` is not installed, or the data set, a split, or a column is missing.
    """
    require(("datasets.load",), name, '"hadaptive[hfds]"')
    opened = Opened({}, [])
    for part, split in zip(("train", "validation", "test"), split_names, strict=True):
        guess = part == "test" and split == "test"
        if split is None or (guess and split in split_names[:2]):
            continue
        if split in split_names[: ("train", "validation", "test").index(part)]:
            raise UserError(f"{name}: the split {split!r} cannot be two parts at once: name another {part} split")
        try:
            dataset = _load(name, root, split)
        except MissingSplitError:
            if guess:
                continue
            raise
        source = HuggingFaceSource(dataset, f"{name} {split}", split, opened.classes or None)
        if len(source) == 0 or source.targets.min() < 0:
            fault = f"the split {split!r} of {name} is empty, or not all its images have a known label"
            if not guess:
                raise UserError(f"{fault}: name another")
            opened.notes.append(f"{fault}: it is not used")
            continue
        opened.parts[part] = source
        opened.classes = source.classes
    return opened


def _load(name: str, root: Path | None, split: str) -> Any:
    import datasets
    from datasets.exceptions import DatasetsError

    where = name.split("/", 1)[1]
    if not where:
        raise UserError("hfds/ must be followed by the name of a data set on the hub or by a path")
    try:
        path = Path(where).expanduser()
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():  # as save_to_disk leaves it
            saved = datasets.load_from_disk(str(path))
            splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
            if split not in splits:
                raise MissingSplitError(f"{name} has no split {split!r}, only {', '.join(map(str, splits))}")
            return splits[split]
        where = str(path) if path.is_dir() else where
        return datasets.load_dataset(where, split=split, cache_dir=None if root is None else str(root))
    except MissingSplitError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        kind = MissingSplitError if "nknown split" in reason else UserError
        raise kind(f"the split {split!r} of {name} cannot be opened: {reason}") from None
