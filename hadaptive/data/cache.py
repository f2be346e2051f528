"""Pixels kept on disk from epoch to epoch, and from run to run: an image is decoded and reduced once.

An entry is a safetensors file of pixels and their checksum, known by the digest of the image's contents and by all
that was done to it. What is not there, does not fit or is damaged is made anew, with the same pixels: entries only
save time. So any number of processes may read and write them without locks, and one may be killed at any moment.
"""

import contextlib
import hashlib
import math
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features
from PIL.Image import Resampling
from safetensors.numpy import load, save

from hadaptive.data.config import Preprocessing
from hadaptive.data.images import check_size
from hadaptive.data.manifest import digest_of
from hadaptive.data.sources import Source, Subset
from hadaptive.data.transforms import Decode, eval_transform
from hadaptive.errors import UserError
from hadaptive.files import json_text, umask

TAG = "CACHEDIR.TAG"  # by which backups know what to leave out: https://bford.info/cachedir/
SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"
OURS = f"{SIGNATURE}\n# Pixels kept by hadaptive: the folder can be deleted whenever no training uses it.\n"
SUFFIX = ".safetensors"
BEGUN = ".begun-"
REDUCED = 2  # times the side of the network's input: what the short side of an image to learn from is reduced to
RESERVE = 2**30  # bytes of the disk that are left free
SHARE = 20  # of the room that was left when a process last looked, the part that it fills before it looks again
LOOK_AGAIN = 60.0  # seconds, where there was no room
STALE = 3600.0  # seconds after which a file that was begun is taken for one of a process that was killed


class Reduce:
    """PIL image, read or only opened -> 8-bit PIL image whose short side is `side` at most, to learn from."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        # What is padded afterwards, by pixels of the original, is not reduced.
        self.side = math.inf if preprocessing.pad else REDUCED * preprocessing.image_size
        self.max_pixels = preprocessing.max_pixels
        self.modes = _modes(preprocessing)
        self.decode = Decode(preprocessing, keep_grey=preprocessing.fit == "stretch")

    def __call__(self, image: Any) -> Any:
        check_size(image, self.max_pixels)
        if (short := min(image.size)) > self.side:  # a JPEG is reduced while it is read, as far as that goes
            image.draft(None, tuple(-(-n * self.side // short) for n in image.size))
        image = self.decode(image)
        if (short := min(image.size)) > self.side:
            size = tuple(max(1, round(n * self.side / short)) for n in image.size)
            image = image.resize(size, Resampling.LANCZOS, reducing_gap=3.0)
        return image

    def fits(self, image: Image.Image) -> bool:
        """Whether an image may be a result."""
        return image.mode in self.modes and min(image.size) <= self.side


class Final:
    """PIL image, read or only opened -> the 8-bit PIL image that evaluation normalises."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.size = (preprocessing.image_size, preprocessing.image_size)
        self.modes = _modes(preprocessing)
        self.steps = eval_transform(preprocessing).steps

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image

    def fits(self, image: Image.Image) -> bool:
        """Whether an image may be a result."""
        return image.mode in self.modes and image.size == self.size


def _modes(preprocessing: Preprocessing) -> set[str]:
    """Of images that a network may take."""
    return {"L"} if preprocessing.in_chans == 1 else {"RGB", "L"} if preprocessing.fit == "stretch" else {"RGB"}


def kind_of(preprocessing: Preprocessing, training: bool) -> str:
    """What tells entries apart that are of one image: all that decides their pixels, versions included."""
    libraries = {name: _version(name) for name in ("pillow", "pillow_heif", "timm", "torchvision")}
    how = {**preprocessing.to_dict(), "training": training, "reduced": REDUCED, "jpeg": features.version("jpg")}
    for name in ("mean", "std"):
        del how[name]
    text = json_text({"format": 1, **libraries, **how}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


class PixelStore:
    """A folder of entries that takes no more than `limit` bytes.

    Args:
        folder: of entries.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.folder, self.limit = folder, limit
        self.left = 0.0  # bytes that may still be filled, when they were last counted
        self.added = 0  # bytes since then
        self.looked = -LOOK_AGAIN

    def path(self, kind: str, digest: str) -> Path:
        """Of an entry."""
        return self.folder / kind / digest[:2] / f"{digest}{SUFFIX}"

    def files(self) -> Iterator[os.DirEntry]:
        """Everything in the folder that was written by us."""
        for kind in _folders(self.folder):
            for part in _folders(kind.path):
                try:
                    with os.scandir(part.path) as found:
                        yield from (file for file in found if file.is_file(follow_symlinks=False))
                except OSError:
                    continue

    def read(self, kind: str, digest: str, fits: Callable[[Image.Image], bool]) -> Image.Image | None:
        """The pixels that are kept, or None; what is damaged is deleted."""
        path = self.path(kind, digest)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        try:
            found = load(content)
            pixels, check = found["pixels"], int(found["check"][0])
            image = Image.fromarray(pixels)
            if check == zlib.crc32(pixels.data) and fits(image):
                return image
        except Exception:  # safetensors raises its own class
            pass
        with contextlib.suppress(OSError):
            path.unlink()
        return None

    def write(self, kind: str, digest: str, image: Image.Image) -> None:
        """Keep pixels, if there is room; nothing is lost where they cannot be written."""
        pixels = np.asarray(image)
        if not self._takes(pixels.nbytes):
            return
        content = save({"pixels": pixels, "check": np.array([zlib.crc32(pixels.data)], np.int64)})
        path, temporary = self.path(kind, digest), None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(suffix=".tmp", dir=path.parent)
            with open(handle, "wb") as file:
                file.write(content)
            os.chmod(temporary, 0o666 & ~umask())
            os.replace(temporary, path)
        except OSError:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            return
        self.added += len(content)

    def _takes(self, size: int) -> bool:
        """Whether there is room for so many bytes, which several processes may fill at the same time."""
        if self.added + size > self.left / SHARE:
            if size > self.left / SHARE and time.monotonic() - self.looked < LOOK_AGAIN:
                return False
            self.left, self.added, self.looked = self.room(), 0, time.monotonic()
        return self.added + size <= self.left / SHARE

    def room(self) -> float:
        """Bytes that may still be written: within the limit, and without filling the disk."""
        used = 0
        for file in self.files():
            try:
                used += file.stat(follow_symlinks=False).st_size
            except OSError:  # another process has deleted it
                continue
        try:
            free = shutil.disk_usage(self.folder).free - RESERVE
        except OSError:
            return 0.0
        return max(0.0, min(self.limit - used, free))

    def open(self) -> None:
        """Make the folder, or see that it is one of ours, and clear away what killed processes have left.

        Raises:
            UserError: it holds something else, or nothing can be written there.
        """
        tag = self.folder / TAG
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            others = (path for path in self.folder.iterdir() if not path.name.startswith(BEGUN))
            if not tag.is_file() and any(others) and not tag.is_file():  # another process may have begun it
                raise UserError(f"{self.folder} holds other files: --cache takes a folder that is new or empty")
            if tag.is_file() and tag.read_text(encoding="ascii", errors="replace") != OURS:
                raise UserError(f"{self.folder} is a cache of another program: choose another folder for --cache")
            handle, temporary = tempfile.mkstemp(prefix=BEGUN, dir=self.folder)  # which shows that it can be
            with open(handle, "w", encoding="ascii") as file:
                file.write(OURS)
            os.replace(temporary, tag)
        except OSError as error:
            raise UserError(f"nothing can be kept in --cache {self.folder}: {error.strerror or error}") from None
        for file in self.files():
            if file.name.endswith(".tmp"):
                _delete_if(file, lambda stat: time.time() - stat.st_mtime > STALE)

    def make_room(self, wanted: dict[str, set[str]], needed: float) -> None:
        """Mark the entries that are wanted as used now, and delete others, the longest unused first, for `needed`.

        Args:
            wanted: digests by kind.
            needed: bytes.
        """
        others: list[tuple[float, int, str]] = []
        for file in self.files():
            path = Path(file.path)
            try:
                if path.stem in wanted.get(path.parent.parent.name, ()):
                    os.utime(path)
                elif path.suffix == SUFFIX:
                    stat = file.stat(follow_symlinks=False)
                    others.append((stat.st_mtime, stat.st_size, file.path))
            except OSError:
                continue
        missing = needed - self.room()
        for _, size, name in sorted(others):
            if missing <= 0:
                break
            Path(name).unlink(missing_ok=True)
            missing -= size


def _folders(path: str | Path) -> list[os.DirEntry]:
    try:
        with os.scandir(path) as found:
            return [entry for entry in found if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _delete_if(file: os.DirEntry, wanted: Callable[[os.stat_result], bool]) -> None:
    try:
        if wanted(file.stat(follow_symlinks=False)):
            os.unlink(file.path)
    except OSError:
        pass


class Kept:
    """A source whose images are prepared once and then read from a store.

    Args:
        source: images.
        digests: of their contents, one for each; an empty one is of an image that could not be read.
        prepare: of an image as the source gives it.
        kind: of what is made of them.
        store: where it is kept.
    """

    def __init__(
        self, source: Source, digests: list[str], prepare: "Reduce | Final", kind: str, store: PixelStore
    ) -> None:
        assert source.targets is not None
        assert len(digests) == len(source)
        self.source, self.digests, self.prepare, self.kind, self.store = source, digests, prepare, kind, store
        self.targets = source.targets

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: int) -> tuple[Image.Image, int]:
        digest = self.digests[index]
        kept = self.store.read(self.kind, digest, self.prepare.fits) if digest else None
        if kept is not None:
            return kept, int(self.targets[index])
        image, target = self.source.read(index)
        image = self.prepare(image)
        if digest and self._is(index, digest):
            self.store.write(self.kind, digest, image)
        return Image.fromarray(np.asarray(image)), target  # pixels alone, as a store has them

    def _is(self, index: int, digest: str) -> bool:
        """Whether an image is what it was when it was listed: it may be changed while a training runs."""
        source: Any = self.source
        while isinstance(source, Subset):
            source, index = source.source, int(source.indices[index])
        try:
            return digest_of(source.content(index)) == digest
        except OSError:
            return False

    def name(self, index: int) -> str:
        return self.source.name(index)
