"""Small data sets on disk, and what a person is told of them."""

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hadaptive.data import DataConfig, ImageData, Manifest, open_data
from hadaptive.data.manifest import digest_of
from hadaptive.data.sources import Source
from hadaptive.errors import UserError

PARTS = ("train", "validation", "test")


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


def fill_parts(root: Path) -> Path:
    """Make root/part/class/part-number.png for a training and a test part, with no picture twice."""
    for offset, part, count in ((0, "train", 12), (100, "test", 5)):
        for target, name in enumerate(("cat", "dog")):
            (root / part / name).mkdir(parents=True)
            for number in range(count):
                picture(target, offset + number).save(root / part / name / f"{part}{number}.png")
    return root


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


def contents(source: Source | None) -> list[str]:
    """What a part's images are, as (picture, target), in their order."""
    assert source is not None
    read = [source.read(i) for i in range(len(source))]
    return [digest_of(image.tobytes()) + f" {target}" for image, target in read]


def everything(data: ImageData) -> dict[str, list[str]]:
    """The contents of all parts."""
    return {part: contents(source) for part, source in data.parts.items()}


def again(data: ImageData, place: Path | None = None, **options: Any) -> ImageData:
    """Open a run's data as evaluation and the like do."""
    location = data.location if place is None else DataConfig(str(place))
    return open_data(location, data.manifest, **options)


def refused(data: ImageData, place: Path | None = None, **options: Any) -> str:
    """The one sentence with which opening a run's data again ends."""
    with pytest.raises(UserError) as caught:
        again(data, place, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def file_of(data: ImageData, part: str, number: int = 0) -> Path:
    """The file of one image of a part."""
    return Path(data.location.data) / data.manifest.names(part)[number]


def overwrite(path: Path, source: Path | int) -> None:
    """Give a file other contents: those of another file, or a new picture."""
    if isinstance(source, int):
        picture(20, source).save(path)
    else:
        path.write_bytes(source.read_bytes())


def descended(older: ImageData, place: Path, **fields: Any) -> ImageData:
    """A new run that starts from the weights of an older one."""
    return open_data(DataConfig(str(place), **fields), known=Manifest.loads(older.manifest.dumps()))


def attempt(open_them: Callable[[], ImageData], *allowed: str) -> ImageData | None:
    """Open data, or give None where that is refused in one of the sentences allowed."""
    try:
        return open_them()
    except UserError as error:
        if not any(sentence in str(error) for sentence in allowed):
            raise
        return None
