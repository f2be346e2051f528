"""Sources: random access to labelled images, in memory, in files, or a part of another source.

Streams (webdataset, tfds) have their own path in :mod:`hadaptive.data.streams`.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from hadaptive.data.images import open_image
from hadaptive.text import from_disk, shown


class Source(Protocol):
    """Random access to labelled images."""

    @property
    def targets(self) -> np.ndarray | None:
        """int64 (N,), or None where they are not known beforehand."""
        ...

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image, in whatever mode it has, and its class number; OSError when it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...


class Listed(Source, Protocol):
    """A source that a manifest can list: each of its images has a lasting name, and contents to know it by."""

    @property
    def targets(self) -> np.ndarray: ...

    @property
    def positional(self) -> bool:
        """Whether names are only places in a row, so that one image more renames all that follow."""
        ...

    @property
    def threads(self) -> int:
        """How many threads may read contents at once, and gain by it."""
        ...

    def key(self, index: int) -> str:
        """The image's name within the data set, wherever that lies; folders are divided by "/"."""
        ...

    def content(self, index: int) -> bytes:
        """The bytes that make the image what it is; OSError when they cannot be read."""
        ...

    def stat(self, index: int) -> tuple[int, int, int]:
        """(size in bytes, time of the last change in ns, inode): where all agree, so do the contents.

        (-1, 0, 0) where only reading tells, or the file is not there.
        """
        ...


UNKNOWN_STAT = (-1, 0, 0)


@dataclass
class ArraySource:
    """Images in memory.

    Attributes:
        images: uint8 (N, H, W) or (N, H, W, 3).
        targets: int64 (N,).
        label: what the set is called.
        numbers: int64 (N,), of the images in that set; 0 to N - 1 where it is left out.
    """

    images: np.ndarray
    targets: np.ndarray
    label: str
    numbers: np.ndarray | None = None
    positional = True
    threads = 1

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.label} #{index if self.numbers is None else self.numbers[index]}"

    key = name

    def content(self, index: int) -> bytes:
        return self.images[index].tobytes()

    def stat(self, index: int) -> tuple[int, int, int]:
        return UNKNOWN_STAT


@dataclass
class FileSource:
    """Image files on disk, or stretches of one tar file.

    Nothing is kept open between reads, so worker processes share no file position and the source pickles.

    Attributes:
        root: the folder, or the tar file.
        paths: of each file within it, with "/" between folders; an absolute one may lie elsewhere.
        targets: int64 (N,).
        spans: int64 (N, 2), offset and size in bytes within the tar file; None for files of their own.
    """

    root: Path
    paths: list[str]
    targets: np.ndarray
    spans: np.ndarray | None = None
    positional = False
    threads = 4

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return open_image(self.content(index)), int(self.targets[index])

    def name(self, index: int) -> str:
        return shown(from_disk(self._path(index)))

    def key(self, index: int) -> str:
        return self.paths[index] if self.spans is not None else from_disk(self.paths[index])

    def content(self, index: int) -> bytes:
        if self.spans is None:
            with open(self._path(index), "rb") as file:
                return file.read()
        offset, size = (int(number) for number in self.spans[index])
        with open(self.root, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def stat(self, index: int) -> tuple[int, int, int]:
        try:
            found = os.stat(self.root if self.spans is not None else self._path(index))
        except OSError:
            return UNKNOWN_STAT
        # Within a tar file nothing vouches for one image: it has changed if the tar file has.
        size = found.st_size if self.spans is None else int(self.spans[index, 1])
        return size, found.st_mtime_ns, found.st_ino % 2**63

    def _path(self, index: int) -> str:
        return os.path.join(self.root, self.paths[index])


class Subset:
    """Some images of another source, in the order of `indices`."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self.source = source
        self.indices = np.asarray(indices, dtype=np.int64)
        self.targets = None if source.targets is None else source.targets[self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))


class Numbered:
    """A source whose targets also tell which image it is: index times number of classes, plus class."""

    def __init__(self, source: Source, classes: int) -> None:
        self.source = source
        self.classes = classes
        self.targets = None

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[Image.Image, int]:
        image, target = self.source.read(index)
        return image, index * self.classes + target

    def name(self, index: int) -> str:
        return self.source.name(index)


@dataclass
class Selection:
    """Images of several sources, with class numbers of their own.

    Attributes:
        sources: where they come from.
        origins: int8 (N,), which of the sources each comes from.
        indices: int64 (N,), its index there.
        targets: int64 (N,).
    """

    sources: list[Listed]
    origins: np.ndarray
    indices: np.ndarray
    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> tuple[Image.Image, int]:
        image, _ = self.sources[self.origins[index]].read(int(self.indices[index]))
        return image, int(self.targets[index])

    def name(self, index: int) -> str:
        return self.sources[self.origins[index]].name(int(self.indices[index]))

    def content(self, index: int) -> bytes:
        return self.sources[self.origins[index]].content(int(self.indices[index]))


@dataclass
class Opened:
    """A data set as it was found.

    Attributes:
        parts: those of train, validation and test that it has.
        classes: their names.
        in_memory: whether reading an image costs no file access.
        notes: sentences for the person.
        columns: of a label file.
        groups: what a column of a label file says of the images of each part, where one was asked for.
    """

    parts: dict[str, Listed]
    classes: list[str]
    in_memory: bool = False
    notes: list[str] = field(default_factory=list)
    columns: list[str] = field(default_factory=list)
    groups: dict[str, list[str]] | None = None
