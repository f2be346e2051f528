"""What a data set holds now: the name of every image, and the contents of those that somebody asks about."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from hadaptive.data.manifest import PARTS, Manifest, digest_of
from hadaptive.data.sources import UNKNOWN_STAT, Listed, Opened, Selection
from hadaptive.text import spelt

# A file may change twice within one tick of its file system's clock: what was written so shortly before it was
# read is read again next time.
FRESH = 5_000_000_000  # ns


class Listing:
    """The images of a data set, of all its parts in a row.

    Attributes:
        parts: names of the parts that the data set brings itself.
        classes: names of the classes.
        names: of the images, no two the same.
        origins: int8 (N,), number in `parts` of the part each lies in.
        targets: int64 (N,), class numbers.
        digests: of the contents; None until :meth:`read` was asked, empty where they cannot be read.
        groups: which images are to be kept together, by a name that they share, empty for one of its own; None
            where nobody asked.
        group_by: the rule that says so.
    """

    def __init__(self, opened: Opened) -> None:
        self.opened = opened
        self.parts = [part for part in PARTS if part in opened.parts]
        self.classes = opened.classes
        self.sources: list[Listed] = [opened.parts[part] for part in self.parts]
        sizes = [len(source) for source in self.sources]
        self.origins = np.repeat(np.arange(len(sizes), dtype=np.int8), sizes)
        self.indices = np.concatenate([np.arange(size) for size in sizes])
        self.targets = np.concatenate([source.targets for source in self.sources])
        self.names = _distinct([spelt(source.key(i)) for source in self.sources for i in range(len(source))])
        self.positional = any(source.positional for source in self.sources)
        self.digests: list[str | None] = [None] * len(self.names)
        self.groups: list[str] | None = None
        self.group_by: str | None = None
        self.known_stats = np.zeros(len(self.names), dtype=bool)
        self.all_stats = np.full((len(self.names), 3), UNKNOWN_STAT, np.int64)

    def __len__(self) -> int:
        return len(self.names)

    def stats(self, images: np.ndarray) -> np.ndarray:
        """int64 (n, 3): size, time of the last change in ns and inode of some images, as the sources tell them."""
        for i in images[~self.known_stats[images]].tolist():
            self.all_stats[i] = self.sources[self.origins[i]].stat(int(self.indices[i]))
        self.known_stats[images] = True
        return self.all_stats[images]

    def read(self, images: np.ndarray) -> list[str]:
        """The digests of some images, each read once at most; empty where an image cannot be read."""
        unread = np.array([i for i in images.tolist() if self.digests[i] is None], np.int64)
        self.stats(unread)  # before the contents, so that a change in between shows the next time
        for number, source in enumerate(self.sources):
            mine = unread[self.origins[unread] == number].tolist()
            places = self.indices[mine].tolist()
            if source.threads > 1 and len(mine) > 1:
                with ThreadPoolExecutor(source.threads) as pool:
                    results = list(pool.map(lambda place, source=source: _read(source, place), places))
            else:
                results = [_read(source, place) for place in places]
            for i, (size, digest) in zip(mine, results, strict=True):
                self.digests[i] = digest
                self.all_stats[i, 0] = size
        return [self.digests[i] or "" for i in images.tolist()]

    def select(self, images: np.ndarray, targets: np.ndarray | None = None) -> Selection:
        """Some images as a source, with their class numbers here or with other ones."""
        used, origins = np.unique(self.origins[images], return_inverse=True)
        return Selection(
            [self.sources[origin] for origin in used],  # no more, for they travel to worker processes
            origins.astype(np.int8),
            self.indices[images],
            self.targets[images] if targets is None else targets,
        )

    def manifest(self, division: dict[str, np.ndarray]) -> Manifest:
        """The manifest of a division: which images are in each part, in their order. All are read for it."""
        parts = [part for part in PARTS if len(division.get(part, ()))]
        images = np.concatenate([division[part] for part in parts])
        digests = self.read(images)
        stats = self.stats(images)
        stats[stats[:, 1] > time.time_ns() - FRESH, 1] = 0
        stats[[not digest for digest in digests], 1] = 0
        return Manifest(
            list(self.classes),
            np.concatenate([np.full(len(division[part]), PARTS.index(part), np.int8) for part in parts]),
            self.targets[images],
            [self.names[i] for i in images],
            stats,
            digests,
            groups=None if self.groups is None else [self.groups[i] for i in images],
            group_by=self.group_by,
        )


def unchanged(manifest: Manifest, entries: np.ndarray, stats: np.ndarray) -> np.ndarray:
    """bool (n,): whether size, time and inode alone tell that these entries' files are as they were.

    Args:
        manifest: of the entries.
        entries: int64 (n,), places in the manifest.
        stats: int64 (n, 3), of the files of those names now.
    """
    then = manifest.stats[entries]
    return (then == stats).all(axis=1) & (then[:, 1] != 0)


def _read(source: Listed, place: int) -> tuple[int, str]:
    try:
        content = source.content(place)
    except OSError:
        return -1, ""
    return len(content), digest_of(content)


def _distinct(names: list[str]) -> list[str]:
    """The names, with a number behind the second of two that are the same, as a tar file may hold them."""
    taken = set(names)
    if len(taken) == len(names):
        return names
    seen: set[str] = set()
    for i, name in enumerate(names):
        number = 1
        while name in seen or (number > 1 and name in taken):
            number += 1
            name = f"{names[i]} ({number})"
        seen.add(name)
        names[i] = name
    return names
