"""The manifest of a data set: which image is in which part, what it is, and how to know it again.

split.csv, and the text of it that :meth:`Manifest.dumps` gives, has a line for each::

    part,label,name,size,modified,inode,digest      the columns
    class,0,cat,,,,                                 a class: its number and name
    train,0,cat/1.png,8421,17600000000,311,9f0c     an image: its part, the number of its class, and as in Entry
    earlier-class,0,cat,,,,                         a class of the images that follow
    earlier-train,0,cat/9.png,7310,0,0,41ab         an image that an older run had in its part
    end,5d1e                                        a digest of all lines above

Where images were kept together, lines have a further column ``group``, and ``group-by,,RULE`` says how.

The older runs are those that this one began from (``--init``, ``--split``), and those that they began from. Their
images follow as ``earlier-train``, ``earlier-validation``, ``earlier-test`` and ``earlier-unused`` as far as they
were not here when this run was divided, or as far as weights have learned from them or were chosen by them and
their part of now does not tell. They are no images of this data set: they count nowhere, and only tell which part
such an image belongs to when it comes back. Surrogates and backslashes in names are written as ``\\udcff``
and ``\\\\``, so that the text is UTF-8 whatever the files are called.
"""

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hadaptive.errors import UserError
from hadaptive.files import write_atomically
from hadaptive.text import escaped, shown, unescaped

FILE_NAME = "split.csv"
COLUMNS = ["part", "label", "name", "size", "modified", "inode", "digest"]
GROUPED = [*COLUMNS, "group"]
GROUP_BY = "group-by"
PARTS = ("train", "validation", "test", "unused")  # unused: left over by train_size
EARLIER = "earlier-"


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
        earlier: what older runs had in their parts, as far as the images above do not tell; None if there is none.
        groups: what images that were kept together share, empty for one of its own; None where none were.
        group_by: the rule of it, as --group-by has it.
    """

    classes: list[str]
    codes: np.ndarray
    labels: np.ndarray
    names_of_all: list[str]
    stats: np.ndarray
    digests: list[str]
    earlier: "Manifest | None" = None
    groups: list[str] | None = None
    group_by: str | None = None

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

    def take(self, entries: list[int]) -> "Manifest":
        """A manifest of only some of the images, in the order given, and of their classes."""
        used, labels = np.unique(self.labels[entries], return_inverse=True)
        return Manifest(
            [self.classes[label] for label in used],
            self.codes[entries],
            labels.astype(np.int64),
            [self.names_of_all[i] for i in entries],
            self.stats[entries],
            [self.digests[i] for i in entries],
            groups=None if self.groups is None else [self.groups[i] for i in entries],
            group_by=self.group_by,
        )

    def dumps(self) -> str:
        """The manifest as the text of split.csv. Its last line vouches for the others."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        layers = [("", self)] if self.earlier is None else [("", self), (EARLIER, self.earlier)]
        columns = GROUPED if any(layer.groups is not None for _, layer in layers) else COLUMNS
        writer.writerow(columns)
        for prefix, layer in layers:
            writer.writerows((*row, "")[: len(columns)] for row in layer._rows(prefix))
        body = text.getvalue()
        return f"{body}end,{_digest(body.encode())}\r\n"

    def _rows(self, prefix: str) -> Iterator[tuple[object, ...]]:
        for label, name in enumerate(self.classes):
            yield f"{prefix}class", label, escaped(name), "", "", "", ""
        if self.group_by is not None:
            yield f"{prefix}{GROUP_BY}", "", escaped(self.group_by), "", "", "", ""
        for i, entry in enumerate(self.entries):
            group = () if self.groups is None else (escaped(self.groups[i]),)
            yield f"{prefix}{entry.part}", entry.label, escaped(entry.name), *entry[3:], *group

    @classmethod
    def loads(cls, text: str, where: object = "this") -> "Manifest":
        """The inverse of :meth:`dumps`.

        Args:
            text: all of it.
            where: what to call it in a message.

        Raises:
            UserError: it is damaged, or something else.
        """
        if text.partition("\r\n")[0] not in (",".join(COLUMNS), ",".join(GROUPED)):
            raise UserError(f"{where} is not a division of images as runs write it ({FILE_NAME})")
        body, _, end = text.rpartition("\r\nend,")
        body += "\r\n"
        if end.strip() != _digest(body.encode("utf-8", "surrogateescape")):
            raise UserError(
                f"{where} is damaged or was changed by hand: take the {FILE_NAME} of another run or a copy of it"
            )
        rows = list(csv.reader(io.StringIO(body, newline="")))[1:]
        count = next((i for i, row in enumerate(rows) if row[0].startswith(EARLIER)), len(rows))
        manifest = _parse(rows[:count])
        if count < len(rows):
            manifest.earlier = _parse([[row[0].removeprefix(EARLIER), *row[1:]] for row in rows[count:]])
        return manifest

    def save(self, path: Path) -> None:
        """Write split.csv, whole or not at all."""
        data = self.dumps().encode()

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)

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
        return cls.loads(data.decode("utf-8", "surrogateescape"), path)


def _parse(rows: list[list[str]]) -> Manifest:
    count = next((i for i, row in enumerate(rows) if row[0] != "class"), len(rows))
    classes, rows = [unescaped(row[2]) for row in rows[:count]], rows[count:]
    rules = [unescaped(row[2]) for row in rows[:1] if row[0] == GROUP_BY]
    groups = [unescaped(row[len(COLUMNS)]) for row in rows[1:]] if rules else None
    rows = [row[: len(COLUMNS)] for row in rows[len(rules) :]]
    parts, labels, names, *numbers, digests = zip(*rows, strict=True) if rows else [()] * len(COLUMNS)
    code = {part: i for i, part in enumerate(PARTS)}
    return Manifest(
        classes,
        np.array([code[part] for part in parts], np.int8),
        np.array(labels, dtype=np.int64),
        [unescaped(name) for name in names],
        np.array([[int(value) for value in column] for column in numbers], np.int64).reshape(3, -1).T,
        list(digests),
        groups=groups,
        group_by=rules[0] if rules else None,
    )


def digest_of(content: bytes) -> str:
    """What tells one image's contents from all others'."""
    return _digest(content)


def some(names: list[str], count: int = 2) -> str:
    """The first names of many, as they can be printed in one line."""
    more = f" and {len(names) - count:,} more" if len(names) > count else ""
    return ", ".join(map(shown, names[:count])) + more


def _digest(data: bytes) -> str:
    return blake2b(data, digest_size=16).hexdigest()
