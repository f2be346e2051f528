"""Open a data set by its name or path, and divide it into training, validation and test parts."""

import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path

from hadaptive.data.files import IMAGE_SUFFIXES, open_folder, open_tar
from hadaptive.data.hugging_face import open_hugging_face
from hadaptive.data.named import NAMED, open_named
from hadaptive.data.sources import Opened, Source, Subset, hold_out
from hadaptive.errors import UserError

PLACES = ("folder", "tar")
PREFIXES = ("hfds/", "wds/", "tfds/", "hfids/")


@dataclass
class Splits:
    """The parts of a data set, and what its classes are called. `test` is None where there is none."""

    train: Source
    validation: Source
    test: Source | None
    classes: list[str]
    in_memory: bool = False
    notes: list[str] = field(default_factory=list)


def open_splits(
    name: str,
    root: Path | None = None,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_size: int | None = None,
    split_names: tuple[str, str | None, str | None] = ("train", None, "test"),
    seed: int = 0,
) -> Splits:
    """Open a data set and divide it. Nothing but `seed` decides which images go where, and no two parts share one.

    Args:
        name: "digits", "fashion-mnist", "cifar10", "cifar100", "folder", "tar", "hfds/<name>", or a path to a
            folder or tar file.
        root: where the data lie; for named sets, where a download goes (default: the user's cache).
        val_fraction: share of the training data held out for validation where there is no such part already.
        test_fraction: share held out for testing where there is neither a test nor a validation part.
        train_size: use only this many training images, chosen at random after the validation part was held out.
        split_names: names of train, validation and test parts in a Hugging Face data set.
        seed: of every random choice here.

    Raises:
        UserError: no such data set, or it cannot be divided as asked.
    """
    for label, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise UserError(f"{label} must lie between 0 and 1, such as 0.1 for a tenth; got {fraction}")
    if train_size is not None and train_size < 1:
        raise UserError(f"train_size must be positive, got {train_size}")
    try:
        opened = _open(name, None if root is None else Path(root).expanduser(), split_names)
    except PermissionError as error:
        raise UserError(f"{error.filename or name} may not be read: permission denied") from None
    parts, notes = opened.parts, opened.notes
    train, validation, test = parts["train"], parts.get("validation"), parts.get("test")
    if len(opened.classes) < 2:
        raise UserError(f"{name} has fewer than two classes, so there is nothing to tell apart")
    if test is None and validation is None:
        train, test = _hold_fraction(train, test_fraction, "test_fraction", seed)
        notes.append(f"no test part: held out {len(test)} images, seed {seed}")
    if validation is None:
        train, validation = _hold_fraction(train, val_fraction, "val_fraction", seed + 1)
    if train_size is not None and train_size != len(train):
        if train_size > len(train):
            raise UserError(
                f"train_size is {train_size}, but only {len(train)} images are left besides the other parts"
            )
        train = hold_out(train, train_size, seed + 2)[1]
    return Splits(train, validation, test, opened.classes, opened.in_memory, notes)


def _hold_fraction(source: Source, fraction: float, label: str, seed: int) -> tuple[Subset, Subset]:
    size = round(len(source) * fraction)
    if not 0 < size < len(source):
        raise UserError(
            f"{label} {fraction:g} of {len(source)} images would leave a part without any: "
            "change it, or gather more images"
        )
    return hold_out(source, size, seed)


def _open(name: str, root: Path | None, split_names: tuple[str, str | None, str | None]) -> Opened:
    if name in NAMED:
        return open_named(name, root)
    if name.lower().startswith("hfds/"):
        return open_hugging_face(name, root, split_names)
    path = Path(name).expanduser()
    if name in PLACES:
        if root is None and not path.exists():
            raise UserError(f"data {name!r} needs --data-dir, the {name} to read; or pass its path as the data")
        path = root or path
    elif root is not None and not path.exists() and (root / path).exists():
        path = root / path
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"the folder {path} may not be read: permission denied")
        return open_folder(path)
    if path.is_file():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise UserError(f"{path} is a single image: pass a folder that holds one folder of images per class")
        return open_tar(path)
    raise UserError(_unknown(name, path))


def _unknown(name: str, path: Path) -> str:
    if name in PLACES or os.sep in name:
        start = f"{path} does not exist: check the path"
    else:
        start = f"there is no data set {name!r}, and no folder or tar file of that name"
    close = difflib.get_close_matches(name.lower().replace("_", "-"), NAMED, n=1)
    if not close and path.parent.is_dir():
        beside = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
        close = [str(path.with_name(other)) for other in beside]
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{start}{hint} (data sets by name: {', '.join(NAMED)}, {', '.join(p + '<name>' for p in PREFIXES)})"
