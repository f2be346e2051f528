"""Small data sets on disk, and what a person is told of them."""

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hadaptive.data import DataConfig, ImageData, open_data
from hadaptive.data.sources import Source
from hadaptive.errors import UserError


def picture(target: int, number: int) -> Image.Image:
    """A picture that says which it is."""
    return Image.new("RGB", (6, 5), (10 * target, number % 256, number // 256))


def fill(folder: Path, counts: dict[str, int], kind: str = "png") -> Path:
    """Make folder/class/number.kind."""
    for target, (name, count) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(target, number).save(folder / name / f"{number}.{kind}")
    return folder


def names(source: Source | None) -> set[str]:
    """What a part's images are called."""
    assert source is not None
    return {source.name(i) for i in range(len(source))}


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Times and contents of all files below a folder."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def pack(folder: Path, path: Path, prefix: str = "", mode: str = "w") -> Path:
    """A tar file of a folder."""
    with tarfile.open(path, mode) as tar:  # pyright: ignore[reportCallIssue, reportArgumentType]
        tar.add(folder, arcname=prefix or ".")
    return path


def open_at(name: str | Path, root: Path | None = None, **fields: Any) -> ImageData:
    """Open a data set, with any other fields of its configuration."""
    return open_data(DataConfig(str(name), root, **fields))


def say(name: str | Path, root: Path | None = None, **fields: Any) -> str:
    """The one sentence a person is told."""
    with pytest.raises(UserError) as caught:
        open_at(name, root, **fields)
    message = str(caught.value)
    assert "\n" not in message
    return message
