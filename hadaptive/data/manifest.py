"""The manifest of a data set: which image is in which part, what it is, and how to know it again."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hadaptive.errors import UserError
from hadaptive.files import write_atomically

FILE_NAME = "split.csv"
COLUMNS = ["part", "label", "name", "size", "modified", "inode", "digest"]
PARTS = ("train", "validation", "test", "unused")  # unused: left over by train_size


class Entry(NamedTuple):
    """One image.

    Attributes:
        part: one of PARTS.
        label: number of its class.
        name: within the data set, wherever that lies.
        size: in bytes; -1 where only reading tells.
        modified: time of the last change in ns; 0 where it vouches for nothing.
        inode: of the file.
        digest: 32 hexadecimal digits of the contents; empty where they could not be read.
    """

    part: str
    label: int
    name: str
    size: int
    modified: int
    inode: int
    digest: str


@dataclass(eq=False)
class Manifest:
    """Every image of a data set, in the order of the parts, and in each part in the order in which it is read.

    Attributes:
        classes: their names; an image's label is a number in this list.
        codes: int8 (N,), number of each image's part in PARTS.
        labels: int64 (N,).
        names: of the images.
        stats: int64 (N, 3): size, modified and inode, as in :class:`Entry`.
        digests: of the contents.
    """

    classes: list[str]
    codes: np.ndarray
    labels: np.ndarray
    names_of_all: list[str]
    stats: np.ndarray
    digests: list[str]

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def entries(self) -> Iterator[Entry]:
        """The images, one by one."""
        numbers = zip(self.codes.tolist(), self.labels.tolist(), self.stats.tolist(), strict=True)
        for i, (code, label, (size, modified, inode)) in enumerate(numbers):
            yield Entry(PARTS[code], label, self.names_of_all[i], size, modified, inode, self.digests[i])

    def in_part(self, part: str) -> np.ndarray:
        """int64, which of the images are in a part, in their order."""
        return np.flatnonzero(self.codes == PARTS.index(part))

    def names(self, part: str) -> list[str]:
        """What the images of a part are called, in their order."""
        return [self.names_of_all[i] for i in self.in_part(part)]

    @property
    def counts(self) -> dict[str, int]:
        """Images per part, of the parts that there are."""
        counts = np.bincount(self.codes, minlength=len(PARTS)).tolist()
        return {part: count for part, count in zip(PARTS, counts, strict=True) if count}

    @cached_property
    def fingerprint(self) -> str:
        """32 hexadecimal digits: two divisions share them only if contents, classes and parts are the same.

        Names, order and place do not matter, except that an image that could not be read counts by its name.
        """
        lines = sorted(
            f"{code} {label} {digest or name}"
            for code, label, digest, name in zip(
                self.codes.tolist(), self.labels.tolist(), self.digests, self.names_of_all, strict=True
            )
        )
        return _digest("\0".join([*self.classes, "", *lines]).encode("utf-8", "surrogateescape"))

    def save(self, path: Path) -> None:
        """Write split.csv, whole or not at all. Its last line vouches for the others."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows(("class", i, name, "", "", "", "") for i, name in enumerate(self.classes))
        writer.writerows(self.entries)
        body = text.getvalue().encode("utf-8", "surrogateescape")

        def write(temporary: Path) -> None:
            temporary.write_bytes(body + f"end,{_digest(body)}\r\n".encode())

        write_atomically(path, write)

    @classmethod
    def load(cls, path: Path) -> "Manifest":
        """Read split.csv, or that of a run folder.

        Raises:
            UserError: there is none, it is damaged, or it is another file.
        """
        path = Path(path).expanduser()
        if path.is_dir():
            if not (path / FILE_NAME).is_file():
                raise UserError(f"{path} has no {FILE_NAME} to take a division of the images from")
            path = path / FILE_NAME
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise UserError(f"there is no division of images at {path}: check the path") from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
        if not data.startswith(",".join(COLUMNS).encode() + b"\r\n"):
            raise UserError(f"{path} is not a division of images as runs write it ({FILE_NAME})")
        body, _, end = data.rpartition(b"\r\nend,")
        body += b"\r\n"
        if end.strip() != _digest(body).encode():
            raise UserError(
                f"{path} is damaged or was changed by hand: take the {FILE_NAME} of another run or a copy of it"
            )
        rows = list(csv.reader(io.StringIO(body.decode("utf-8", "surrogateescape"), newline="")))[1:]
        count = next((i for i, row in enumerate(rows) if row[0] != "class"), len(rows))
        classes, rows = [row[2] for row in rows[:count]], rows[count:]
        parts, labels, names, *numbers, digests = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
        code = {part: i for i, part in enumerate(PARTS)}
        return cls(
            classes,
            np.array([code[part] for part in parts], np.int8),
            np.array(labels, dtype=np.int64),
            list(names),
            np.array([[int(value) for value in column] for column in numbers], np.int64).reshape(3, -1).T,
            list(digests),
        )


def describe(manifest: Manifest) -> str:
    """Such as "1,293 training, 144 validation, 360 test images"."""
    words = {"train": "training", "validation": "validation", "test": "test", "unused": "unused"}
    return ", ".join(f"{count:,} {words[part]}" for part, count in manifest.counts.items()) + " images"


def digest_of(content: bytes) -> str:
    """What tells one image's contents from all others'."""
    return _digest(content)


def some(names: list[str], shown: int = 2) -> str:
    """The first names of many, as they can be printed in one line."""
    readable = [os.fsencode(name).decode(errors="replace") for name in names[:shown]]
    readable = ["".join(c if c.isprintable() else "?" for c in name) for name in readable]
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(readable) + more


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
