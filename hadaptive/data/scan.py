"""What lies in a folder or a tar file: its images, and what is left out and why.

The one rule for training, evaluation and prediction:

- Images are the files whose names end in one of IMAGE_SUFFIXES, and files without a suffix that Pillow identifies
  by their first bytes. Whether the rest of the file is sound shows when it is read.
- Photos of phones (HEIC) count where the extra ``hadaptive[heic]`` is installed, AVIF where Pillow reads it.
- Hidden files and folders are left out, and folders that systems and programs keep for themselves (SERVICE).
- Links are followed, to files and to folders, in tar files too; not those that lead back to where they lie.
- The order is natural (1, 2, 10) and the same on every machine: names are compared as UTF-8, letters composed.
- Whatever is left out is counted with its reason, and said in one line by :func:`left_out`.
"""

import functools
import os
import posixpath
import re
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image, features

from hadaptive.data import heif
from hadaptive.errors import UserError
from hadaptive.text import from_disk, natural_key, spelt

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"),
)
SERVICE = {
    *("__macosx", "@eadir", "@recycle", "#recycle", "#snapshot", "$recycle.bin", "recycler", "lost+found"),
    *("system volume information", "__pycache__", "thumbs.db", "ehthumbs.db", "desktop.ini"),
}
RUN_FILES = ("split.csv", "model.json", "space.json")  # a folder with one of them and config.json is that of a run
# What is identified without a suffix: kinds with a signature of their own. Pillow takes nearly anything for a TGA.
_IDENTIFIED = ("PNG", "JPEG", "MPO", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", "AVIF")
_SUFFIX = re.compile(r"\.[a-z][a-z0-9_~+-]{0,15}$", re.IGNORECASE)  # "cat.1" has none


class Found(NamedTuple):
    """An image file: `path` within the folder or tar file, and in the latter what it is called and where it lies.

    `member` decides the order of the images. Within tar files in a tar file it is not the whole path.
    """

    member: str
    offset: int
    size: int
    path: str


class Reason(NamedTuple):
    """Why a file or folder is left out, as it is said of one and of many."""

    one: str
    many: str


HIDDEN = Reason("hidden", "hidden")
LOOSE_END = Reason("link to nothing", "links to nothing")
LOOP = Reason("link back to a folder that it lies in", "links back to folders that they lie in")
SPECIAL = Reason("entry that is no file", "entries that are no files")
NO_IMAGE = Reason("file without suffix that is no image", "files without suffix that are no images")


@dataclass
class Tree:
    """A folder's images, the folders in it by their spelling, and what else there is in it.

    Attributes:
        label: what to call it in a message.
        images: directly in it.
        folders: those in it; two spellings of one name are one.
        run_files: which of the files that a run's folder has.
        left_out: how many entries are left out for each reason.
    """

    label: str
    images: list[Found] = field(default_factory=list)
    folders: dict[str, "Tree"] = field(default_factory=dict)
    run_files: set[str] = field(default_factory=set)
    left_out: Counter[Reason] = field(default_factory=Counter)

    def all_images(self) -> Iterator[Found]:
        """The images here and in the folders below."""
        yield from self.images
        for folder in self.folders.values():
            yield from folder.all_images()

    def all_left_out(self) -> Counter[Reason]:
        """What is left out here and in the folders below."""
        return sum((folder.all_left_out() for folder in self.folders.values()), self.left_out.copy())

    def folder(self, name: str) -> "Tree":
        """The folder of a name in this one, new if there is none."""
        return self.folders.setdefault(spelt(name), Tree(f"{self.label}/{name}"))

    def enter(self, name: str, found: Found, open_file: Callable[[], BinaryIO]) -> None:
        """Enter a file, as an image or as one that is left out."""
        reason = reason_against(name, open_file)
        if reason is None:
            self.images.append(found)
            return
        if name == "config.json" or name in RUN_FILES:
            self.run_files.add(name)
        self.left_out[reason] += 1

    def leave_out_runs(self) -> list[str]:
        """Take away the folders of runs, and those that hold nothing besides; return what the runs are called."""
        left_out = []
        for name, folder in [*self.folders.items()]:
            if "config.json" in folder.run_files and len(folder.run_files) > 1:
                runs, rest = [folder.label], False
            else:
                runs = folder.leave_out_runs()
                rest = any(folder.all_images())
            if runs and not rest:
                del self.folders[name]
            left_out += runs
        return left_out


def scan_folder(path: Path) -> Tree:
    """The images of a folder, and what is left out.

    Raises:
        UserError: a folder may not be read.
    """
    root = Tree(str(path))
    _scan(path, "", (), root)
    return root


def scan_tar(path: Path) -> Tree:
    """The images of an uncompressed tar file, and what is left out; tar files in it count as folders.

    Raises:
        UserError: the file is no tar file, a compressed one or a damaged one.
    """
    root = Tree(str(path))
    try:
        with tarfile.open(path, "r:", encoding="utf-8", errors="surrogateescape") as tar:
            _Index(tar, 0, root, "").fill()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except tarfile.TarError as error:
        if path.suffix.lower() in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
            raise UserError(
                f"{path} is compressed, and its images cannot be reached one by one: unpack it and pass the folder"
            ) from None
        raise UserError(f"{path} is not a tar file, or a damaged one: {error}") from None
    return root


def order(found: Found) -> tuple[list[tuple[int, str]], Found]:
    """What images are sorted by."""
    return natural_key(found.member), found


def left_out(counts: Counter[Reason], shown: int = 8) -> str:
    """One line about what was left out and why; empty where nothing was."""
    if not counts:
        return ""
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    said = [f"{count:,} {reason.one if count == 1 else reason.many}" for reason, count in most[:shown]]
    if len(most) > shown:
        said.append(f"{sum(count for _, count in most[shown:]):,} others")
    return f"left out: {', '.join(said)}"


def reason_against(name: str, open_file: Callable[[], BinaryIO]) -> Reason | None:
    """Why a file is left out; None for an image.

    Args:
        name: of the file, without its folder.
        open_file: opens it at its first byte; called only where the name does not tell.
    """
    if not_for_us := _not_for_us(name, "file"):
        return not_for_us
    found = _SUFFIX.search(name)
    suffix = found[0].lower() if found else ""
    if suffix in heif.SUFFIXES:
        return None if heif.readable() else _needing(f"{suffix} file", heif.INSTALL)
    if suffix == ".avif" and not _avif():
        return _needing(".avif file", 'pip install "pillow>=11.3"')
    if suffix in IMAGE_SUFFIXES:
        return None
    return Reason(f"{suffix} file", f"{suffix} files") if suffix else _identified(open_file)


def _identified(open_file: Callable[[], BinaryIO]) -> Reason | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with open_file() as file:
                if heif.is_heif(file.read(12)):
                    return None if heif.readable() else _needing("HEIC file without suffix", heif.INSTALL)
                file.seek(0)
                Image.init()
                Image.open(file, formats=[kind for kind in _IDENTIFIED if kind in Image.OPEN])
        except Image.DecompressionBombError:  # an image, and a large one
            return None
        except Exception:  # each format's reader has its own
            return NO_IMAGE
    return None


def _needing(what: str, remedy: str) -> Reason:
    many = what.replace("file", "files", 1)
    return Reason(f"{what} ({remedy} to read it)", f"{many} ({remedy} to read them)")


@functools.cache
def _avif() -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an older Pillow does not know the feature
        return bool(features.check("avif"))


def _not_for_us(name: str, kind: str) -> Reason | None:
    """Why a file or folder is left out by its name alone."""
    if name.startswith("."):
        return HIDDEN
    if name.lower() in SERVICE:
        return Reason(f"{name} {kind}", f"{name} {kind}s")
    return None


def _scan(path: Path, within: str, above: tuple[str, ...], tree: Tree) -> None:
    real = os.path.realpath(path)
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                is_folder, is_file = _what(entry)
                inside = f"{within}{entry.name}"
                if reason := _not_for_us(entry.name, "folder" if is_folder else "file"):
                    tree.left_out[reason] += 1
                elif is_folder:
                    if os.path.realpath(entry.path) in (*above, real):
                        tree.left_out[LOOP] += 1
                    else:
                        _scan(path / entry.name, f"{inside}/", (*above, real), tree.folder(from_disk(entry.name)))
                elif is_file:
                    found = Found(spelt(from_disk(inside)), 0, 0, inside)
                    tree.enter(entry.name, found, functools.partial(open, entry.path, "rb"))
                else:
                    tree.left_out[LOOSE_END if entry.is_symlink() else SPECIAL] += 1
    except OSError as error:
        raise UserError(f"the folder {path} cannot be read: {error.strerror or error}") from None


def _what(entry: os.DirEntry) -> tuple[bool, bool]:
    """Whether an entry is a folder and whether it is a file, at the end of all links."""
    try:
        return entry.is_dir(), entry.is_file()
    except OSError:  # links in a circle
        return False, False


class _Index:
    """The images of a tar file that begins at byte `start` of the file on disk, in the folder `within`."""

    def __init__(self, tar: tarfile.TarFile, start: int, root: Tree, within: str) -> None:
        self.tar, self.start, self.root, self.within = tar, start, root, within
        self.files: dict[tuple[str, ...], tarfile.TarInfo] = {}
        self.links: dict[tuple[str, ...], tarfile.TarInfo] = {}
        self.passed: set[tuple[str, ...]] = set()

    def fill(self) -> None:
        """Enter them all."""
        for member in self.tar:
            steps = _steps(member.name)
            if not steps:
                continue
            if self._passed_over(steps, member):
                if member.isfile():  # links may lead to it all the same
                    self.files[steps] = member
                continue
            if member.isdir():
                self._at(steps)
            elif member.issym() or member.islnk():
                self.links[steps] = member
            elif not member.isfile() or member.issparse():
                self._at(steps[:-1]).left_out[SPECIAL] += 1
            else:
                self.files[steps] = member
                self._enter(steps, member, member)
        self._follow()

    def _passed_over(self, steps: tuple[str, ...], member: tarfile.TarInfo) -> bool:
        """Whether it lies in a hidden or service folder, or is one; counted once for all that is in it."""
        for depth in range(1, len(steps) + member.isdir()):
            if reason := _not_for_us(steps[depth - 1], "folder"):
                if steps[:depth] not in self.passed:
                    self.passed.add(steps[:depth])
                    self._at(steps[: depth - 1]).left_out[reason] += 1
                return True
        return False

    def _at(self, steps: tuple[str, ...]) -> Tree:
        folder = self.root
        for step in steps:
            folder = folder.folder(step)
        return folder

    def _enter(self, steps: tuple[str, ...], named: tarfile.TarInfo, holding: tarfile.TarInfo) -> None:
        """Enter a file, or a link with the member that holds its contents."""
        *above, name = steps
        if name.lower().endswith(".tar") and not name.startswith("."):
            folder = self._at((*above, name[:-4]))
            with tarfile.open(
                fileobj=self.tar.extractfile(holding), mode="r:", encoding="utf-8", errors="surrogateescape"
            ) as inner:
                inside = self.within + "".join(f"{step}/" for step in above) + f"{name[:-4]}/"
                _Index(inner, self.start + holding.offset_data, folder, inside).fill()
            return
        path = self.within + "/".join(steps)
        found = Found(spelt(named.name), self.start + holding.offset_data, holding.size, path)
        self._at(tuple(above)).enter(name, found, lambda: self.tar.extractfile(holding))  # pyright: ignore

    def _follow(self) -> None:
        """Enter what the links lead to: files first, then folders, those first that hold no more links."""
        folders: dict[tuple[str, ...], tuple[str, ...]] = {}
        for steps, link in self.links.items():
            target = self._resolved(steps)
            if (reason := _not_for_us(steps[-1], "file")) is not None:
                self._at(steps[:-1]).left_out[reason] += 1
            elif target in self.files:
                self._enter(steps, link, self.files[target])
            elif target is not None and (not target or self._existing(target) is not None):
                folders[steps] = target
            else:
                self._at(steps[:-1]).left_out[LOOSE_END] += 1
        for steps in [s for s, t in folders.items() if s[: len(t)] == t]:
            self._at(steps[:-1]).left_out[LOOP] += 1
            del folders[steps]
        while ready := [s for s, t in folders.items() if not any(o[: len(t)] == t for o in folders)]:
            for steps in ready:
                target = self._existing(folders.pop(steps))
                assert target is not None
                _graft(target, self._at(steps), self.within + "/".join(steps))
        for steps in folders:
            self._at(steps[:-1]).left_out[LOOP] += 1

    def _resolved(self, steps: tuple[str, ...]) -> tuple[str, ...] | None:
        """Where a path leads when all links in it are followed; None for out of the tar file or in a circle."""
        for _ in range(40):
            depth = next((d for d in range(1, len(steps) + 1) if steps[:d] in self.links), None)
            if depth is None:
                return steps
            link = self.links[steps[:depth]]
            above = "" if link.islnk() else "/".join(steps[: depth - 1])
            target = posixpath.normpath(posixpath.join(above, link.linkname))
            if target.startswith(("/", "..")):
                return None
            steps = (*_steps(target), *steps[depth:])
        return None

    def _existing(self, steps: tuple[str, ...]) -> Tree | None:
        folder: Tree | None = self.root
        for step in steps:
            folder = None if folder is None else folder.folders.get(step)
        return folder


def _steps(path: str) -> tuple[str, ...]:
    return tuple(spelt(step) for step in path.split("/") if step not in ("", "."))


def _graft(source: Tree, target: Tree, within: str) -> None:
    """Copy a folder's images and folders to where a link shows them."""
    for image in source.images:
        path = f"{within}/{image.path.rpartition('/')[2]}"
        target.images.append(image._replace(member=path, path=path))
    target.left_out += source.left_out
    for name, folder in [*source.folders.items()]:
        _graft(folder, target.folder(name), f"{within}/{name}")
