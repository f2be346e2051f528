"""A person's own images: a folder or a tar file with a folder of images per class."""

import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hadaptive.data.manifest import some
from hadaptive.data.sources import FileSource, Listed, Opened
from hadaptive.errors import UserError

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"),
)
PART_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
RUN_FILES = ("split.csv", "model.json", "space.json")  # a folder with one of them and config.json is that of a run


class Found(NamedTuple):
    """An image file: `path` within the folder or tar file, and in the latter what it is called and where it lies.

    `member` decides the order of the images. Within tar files in a tar file it is not the whole path.
    """

    member: str
    offset: int
    size: int
    path: str


@dataclass
class Tree:
    """A folder's images, the folders in it, and which of the files that a run's folder has."""

    label: str
    images: list[Found] = field(default_factory=list)
    folders: dict[str, "Tree"] = field(default_factory=dict)
    run_files: set[str] = field(default_factory=set)

    def all_images(self) -> Iterator[Found]:
        """The images here and in the folders below."""
        yield from self.images
        for folder in self.folders.values():
            yield from folder.all_images()

    def enter(self, name: str) -> None:
        """Note a file that is no image."""
        if name == "config.json" or name in RUN_FILES:
            self.run_files.add(name)

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


def open_folder(path: Path) -> Opened:
    """Images in ``path/<class>/`` or ``path/<train, val or test>/<class>/``, at any depth below a class.

    Hidden files, files without an image's suffix, and the folders of runs are passed over.

    Raises:
        UserError: the folder is not laid out like that, has fewer than two classes, or may not be read.
    """
    root = _scan(path, "", ())
    return _divide(root, path, packed=False, runs=root.leave_out_runs())


def open_tar(path: Path) -> Opened:
    """As :func:`open_folder`, inside an uncompressed tar file; tar files in it count as folders.

    Raises:
        UserError: also, the file is no tar file, a compressed one or a damaged one.
    """
    root = Tree(str(path))
    try:
        with tarfile.open(path, "r:") as tar:
            _index(tar, 0, root, "")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except tarfile.TarError as error:
        if path.suffix.lower() in (".gz", ".tgz", ".bz2", ".xz", ".zst"):
            raise UserError(
                f"{path} is compressed, and its images cannot be reached one by one: unpack it and pass the folder"
            ) from None
        raise UserError(f"{path} is not a tar file, or a damaged one: {error}") from None
    runs = root.leave_out_runs()
    # Whoever packs a folder packs its name too: data/cat/1.png. Parts and classes begin where it branches.
    while len(root.folders) == 1 and not root.images and next(iter(root.folders.values())).folders:
        root = next(iter(root.folders.values()))
    return _divide(root, path, packed=True, runs=runs)


def is_image(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its suffix, and not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES


def natural_key(name: str) -> list[int | str]:
    """Sorts "9" before "10"; upper and lower case are the same."""
    return [int(step) if step.isdecimal() else step for step in re.split(r"(\d+)", name.lower())]


def _scan(path: Path, within: str, above: tuple[str, ...]) -> Tree:
    tree, real = Tree(str(path)), os.path.realpath(path)
    if real in above:  # a symbolic link to a folder that it lies in
        return tree
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                if entry.is_dir():
                    tree.folders[entry.name] = _scan(path / entry.name, f"{within}{entry.name}/", (*above, real))
                elif is_image(entry.name):
                    tree.images.append(Found(within + entry.name, 0, 0, within + entry.name))
                else:
                    tree.enter(entry.name)
    except OSError as error:
        raise UserError(f"the folder {path} cannot be read: {error.strerror or error}") from None
    return tree


def _index(tar: tarfile.TarFile, start: int, root: Tree, within: str) -> None:
    """Enter the images of a tar file that begins at byte `start` of the file on disk, in the folder `within`."""
    for member in tar:
        *above, name = [step for step in member.name.split("/") if step not in ("", ".")] or [""]
        if not (member.isfile() or member.isdir()) or member.issparse() or any(s.startswith(".") for s in above):
            continue
        inside = within + "".join(f"{step}/" for step in above)
        nested = member.isfile() and name.lower().endswith(".tar") and not name.startswith(".")
        folder = root
        for step in [*above, *([name] if member.isdir() and name else []), *([name[:-4]] if nested else [])]:
            folder = folder.folders.setdefault(step, Tree(f"{folder.label}/{step}"))
        if nested:
            with tarfile.open(fileobj=tar.extractfile(member), mode="r:") as inner:
                _index(inner, start + member.offset_data, folder, f"{inside}{name[:-4]}/")
        elif member.isfile() and is_image(name):
            folder.images.append(Found(member.name, start + member.offset_data, member.size, inside + name))
        elif member.isfile():
            folder.enter(name)


def _divide(root: Tree, place: Path, packed: bool, runs: list[str]) -> Opened:
    found: dict[str, Tree] = {}
    for part, names in PART_FOLDERS.items():
        matches = [folder for name, folder in root.folders.items() if name.lower() in names]
        if len(matches) > 1:
            labels = " and ".join(sorted(folder.label for folder in matches))
            raise UserError(f"{labels} are both taken for the {part} part: merge or rename one of them")
        if matches:
            found[part] = matches[0]
    if found and "train" not in found:
        other = next(iter(found.values())).label
        raise UserError(f"{other} has no train folder beside it: add one, or rename it if it is a class")
    train = found.get("train", root)
    classes = _classes(train)
    parts: dict[str, Listed] = {"train": _source(train, classes, place, packed)}
    notes = []
    if train.images:
        notes.append(f"{len(train.images)} images lie in {train.label} outside its class folders; not used")
    if runs:
        said = "1 folder of a run is" if len(runs) == 1 else f"{len(runs):,} folders of runs are"
        notes.append(f"{said} passed over: {some(sorted(runs))}")
    for part in ("validation", "test"):
        if part not in found:
            continue
        folder = found[part]
        unknown = sorted(n for n, f in folder.folders.items() if n not in classes and any(f.all_images()))
        if unknown:
            raise UserError(
                f"{folder.label} has classes that {train.label} lacks: {', '.join(unknown[:5])}; "
                "every part needs the same class folders"
            )
        # The same class numbers as in training, even where this part lacks a class.
        parts[part] = _source(folder, classes, place, packed)
        if not len(parts[part]):
            raise UserError(f"{folder.label} has no images in class folders: add them or remove that folder")
    return Opened(parts, classes, notes=notes)


def _classes(train: Tree) -> list[str]:
    classes = sorted(train.folders, key=lambda name: (natural_key(name), name))
    if not classes:
        held = f"holds {len(train.images)} images but no class folders" if train.images else "has no class folders"
        raise UserError(f"{train.label} {held}: put the images of each class into a folder of their own there")
    empty = [name for name in classes if not any(train.folders[name].all_images())]
    if len(empty) == len(classes):
        raise UserError(
            f"no images were found in the folders of {train.label}: files count whose names end in "
            f"{', '.join(IMAGE_SUFFIXES)}"
        )
    if empty:
        raise UserError(
            f"the class folder {train.folders[empty[0]].label} holds no images: add some or remove it"
            + (f" (and so for {len(empty) - 1} more)" if len(empty) > 1 else "")
        )
    if len(classes) == 1:
        only = train.folders[classes[0]]
        hint = f"; or did you mean {only.label}?" if len(only.folders) > 1 else ""
        raise UserError(f"{train.label} has only one class, {classes[0]!r}: two at least are needed{hint}")
    return classes


def _source(folder: Tree, classes: list[str], place: Path, packed: bool) -> FileSource:
    labelled = [
        (image, target)
        for target, name in enumerate(classes)
        if name in folder.folders
        for image in folder.folders[name].all_images()
    ]
    labelled.sort(key=lambda item: (natural_key(item[0].member), item[0]))
    spans = np.array([(image.offset, image.size) for image, _ in labelled], np.int64).reshape(-1, 2)
    return FileSource(
        place,
        [image.path for image, _ in labelled],
        np.array([target for _, target in labelled], np.int64),
        spans if packed else None,
    )
