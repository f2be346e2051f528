"""Find a data set by its name or path, and say where that was."""

import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path

from hadaptive.data.config import DataConfig
from hadaptive.data.files import open_folder, open_tar
from hadaptive.data.hugging_face import open_hugging_face
from hadaptive.data.labels import Columns, open_labels
from hadaptive.data.named import NAMED, open_named
from hadaptive.data.scan import IMAGE_SUFFIXES
from hadaptive.data.sources import Opened
from hadaptive.data.tables import is_table
from hadaptive.errors import UserError
from hadaptive.text import here

PLACES = ("folder", "tar")
STREAM_PREFIXES = ("wds/", "tfds/", "hfids/")
PREFIXES = ("hfds/", *STREAM_PREFIXES)
STREAMS_ONLY = ("num_classes", "train_samples")
COLUMNS = ("file_column", "label_column", "split_column")


@dataclass
class Place:
    """A data set that was found.

    Attributes:
        opened: its parts.
        location: the configuration that finds it from any folder.
        idle: fields of the configuration that mean nothing for such data, and yet were set.
    """

    opened: Opened
    location: DataConfig
    idle: dict[str, str]

    def refuse_idle(self) -> None:
        """Raise one clear UserError if a setting was given that means nothing for such data."""
        for name, reason in self.idle.items():
            raise UserError(f"--{name.replace('_', '-')} has no effect here: {reason}; leave it out")


def find(config: DataConfig, again: bool = False) -> Place:
    """Open the data set that a configuration names.

    Args:
        config: of which `data`, `data_dir` and the names of the parts count here.
        again: it was opened before, by this configuration: if it is gone, say so.

    Raises:
        UserError: there is no such data set, or it is laid out wrongly, damaged or forbidden.
    """
    try:
        return _find(config, again)
    except PermissionError as error:
        raise UserError(f"{error.filename or config.data} may not be read: permission denied") from None


def _find(config: DataConfig, again: bool) -> Place:
    name = here(config.data)
    root = None if config.data_dir is None else Path(here(str(config.data_dir.expanduser())))
    idle = _idle(config)
    location = dataclasses.replace(
        config,
        data_dir=_absolute(root),
        split=_absolute(None if config.split is None else config.split.expanduser()),
    )
    if name.lower().startswith(STREAM_PREFIXES):
        raise UserError(f"{name} is a stream, whose images cannot be listed or divided: unpack it into a folder")
    if name in NAMED:
        if name != "digits":
            idle.pop("data_dir", None)
        if config.group_by is not None:
            idle["group_by"] = "published data sets come divided"
        return Place(_named(name, root, again), location, idle)
    if name.lower().startswith("hfds/"):
        path = Path(name[5:]).expanduser()
        if again and path.is_absolute() and not path.exists():
            raise UserError(_gone(path, "--data"))
        if name[5:] and path.is_dir():
            location = dataclasses.replace(location, data=f"hfds/{_absolute(path)}")
        opened = open_hugging_face(name, root, (config.train_split, config.val_split, config.test_split))
        return Place(
            opened, location, {field: idle[field] for field in idle if field in (*STREAMS_ONLY, *COLUMNS)}
        )
    path = Path(name).expanduser()
    if name in PLACES:
        if root is None and not path.exists():
            raise UserError(f"data {name!r} needs --data-dir, the {name} to read; or pass its path as the data")
        if root is not None:
            if again and not root.exists():
                raise UserError(_gone(root, "--data-dir"))
            idle.pop("data_dir", None)
            return Place(_open_path(root, name, config, again), location, _of_a_path(root, idle))
    elif root is not None and not path.exists() and (root / path).exists():
        path = root / path
        location = dataclasses.replace(location, data_dir=None)
        idle.pop("data_dir", None)
    if again and not path.exists():
        raise UserError(_gone(path, "--data"))
    opened = _open_path(path, name, config, again)
    return Place(opened, dataclasses.replace(location, data=str(_absolute(path))), _of_a_path(path, idle))


def _idle(config: DataConfig) -> dict[str, str]:
    """Settings that mean nothing unless the data are of a kind that uses them, and why."""
    idle = {
        field: "only streams (wds, tfds) need it" for field in STREAMS_ONLY if getattr(config, field) is not None
    }
    for field in ("train_split", "val_split", "test_split"):
        if getattr(config, field) != getattr(DataConfig, field):
            idle[field] = "only data sets that name their parts (hfds, wds, tfds) need it"
    for field in COLUMNS:
        if getattr(config, field) is not None:
            idle[field] = "only label files (.csv, .tsv, .parquet) have columns"
    if config.data_dir is not None:
        idle["data_dir"] = f"data {config.data!r} is found without it"
    return idle


def _of_a_path(path: Path, idle: dict[str, str]) -> dict[str, str]:
    """What means nothing for a folder or a file."""
    return {field: why for field, why in idle.items() if not (is_table(path) and field in COLUMNS)}


def _named(name: str, root: Path | None, again: bool) -> Opened:
    if again and root is not None and not root.exists():
        raise UserError(_gone(root, "--data-dir"))
    return open_named(name, root)


def _open_path(path: Path, name: str, config: DataConfig, again: bool) -> Opened:
    if path.is_dir():
        if not os.access(path, os.R_OK | os.X_OK):
            raise UserError(f"the folder {path} may not be read: permission denied")
        return open_folder(path)
    if path.is_file():
        if path.suffix.lower() in IMAGE_SUFFIXES:
            raise UserError(f"{path} is a single image: pass a folder that holds one folder of images per class")
        if is_table(path):
            columns = Columns(config.file_column, config.label_column, config.split_column)
            several = config.label_separator if config.multi_label else None
            return open_labels(path, columns, config.group_by, several=several, again=again)
        return open_tar(path)
    raise UserError(_unknown(name, path))


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else Path(os.path.abspath(path))


def _gone(path: Path, flag: str) -> str:
    return f"the images lay in {path}, and there is nothing there now: pass {flag} with the place they lie in now"


def _unknown(name: str, path: Path) -> str:
    if name in PLACES or os.sep in name:
        start = f"{path} does not exist: check the path"
    else:
        start = f"there is no data set {name!r}, and no folder, tar file or label file of that name"
    close = difflib.get_close_matches(name.lower().replace("_", "-"), NAMED, n=1)
    if not close and path.parent.is_dir():
        beside = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
        close = [str(path.with_name(other)) for other in beside]
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{start}{hint} (data sets by name: {', '.join(NAMED)}, {', '.join(p + '<name>' for p in PREFIXES)})"
