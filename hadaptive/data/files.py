"""A person's own images: a folder or a tar file with a folder of images per class."""

from pathlib import Path

import numpy as np

from hadaptive.data.manifest import some
from hadaptive.data.scan import IMAGE_SUFFIXES, Tree, left_out, order, scan_folder, scan_tar
from hadaptive.data.sources import FileSource, Listed, Opened
from hadaptive.errors import UserError
from hadaptive.text import natural_key

PART_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}


def open_folder(path: Path) -> Opened:
    """Images in ``path/<class>/`` or ``path/<train, val or test>/<class>/``, at any depth below a class.

    Which files count is said in :mod:`hadaptive.data.scan`; the folders of runs are passed over.

    Raises:
        UserError: the folder is not laid out like that, has fewer than two classes, or may not be read.
    """
    root = scan_folder(path)
    return _divide(root, root, path, packed=False, runs=root.leave_out_runs())


def open_tar(path: Path) -> Opened:
    """As :func:`open_folder`, inside an uncompressed tar file; tar files in it count as folders.

    Raises:
        UserError: also, the file is no tar file, a compressed one or a damaged one.
    """
    whole = root = scan_tar(path)
    runs = root.leave_out_runs()
    # Whoever packs a folder packs its name too: data/cat/1.png. Parts and classes begin where it branches.
    while len(root.folders) == 1 and not root.images and next(iter(root.folders.values())).folders:
        root = next(iter(root.folders.values()))
    return _divide(whole, root, path, packed=True, runs=runs)


def _divide(whole: Tree, root: Tree, place: Path, packed: bool, runs: list[str]) -> Opened:
    """The parts and classes of what was scanned, which begin at `root`."""
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
    if said := left_out(whole.all_left_out()):
        notes.append(said)
    for folder in [root, *found.values()] if found else [root]:
        if folder.images:
            notes.append(
                f"{len(folder.images):,} images lie in {folder.label} outside its class folders; not used"
            )
    parted = {id(folder) for folder in found.values()}
    beside = [f for f in root.folders.values() if found and id(f) not in parted and any(f.all_images())]
    if beside:
        number, names = sum(len([*folder.all_images()]) for folder in beside), some([f.label for f in beside])
        notes.append(
            f"{number:,} images lie beside {train.label} in {names}; not used: move the classes among them into it"
        )
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
            raise UserError(
                f"{folder.label} has no images in class folders: add them or remove that folder{_but(folder)}"
            )
    return Opened(parts, classes, notes=notes)


def _classes(train: Tree) -> list[str]:
    classes = sorted(train.folders, key=lambda name: (natural_key(name), name))
    if not classes:
        held = f"holds {len(train.images)} images but no class folders" if train.images else "has no class folders"
        raise UserError(
            f"{train.label} {held}: put the images of each class into a folder of their own there{_but(train)}"
        )
    empty = [name for name in classes if not any(train.folders[name].all_images())]
    if len(empty) == len(classes):
        raise UserError(
            f"no images were found in the folders of {train.label}: files count whose names end in "
            f"{', '.join(IMAGE_SUFFIXES)}{_but(train)}"
        )
    if empty:
        first = train.folders[empty[0]]
        raise UserError(
            f"the class folder {first.label} holds no images: add some or remove it{_but(first)}"
            + (f" (and so for {len(empty) - 1} more)" if len(empty) > 1 else "")
        )
    if len(classes) == 1:
        only = train.folders[classes[0]]
        hint = f"; or did you mean {only.label}?" if len(only.folders) > 1 else ""
        raise UserError(f"{train.label} has only one class, {classes[0]!r}: two at least are needed{hint}")
    return classes


def _but(folder: Tree) -> str:
    """What was left out in a folder in which something is missed."""
    said = left_out(folder.all_left_out())
    return f" ({said})" if said else ""


def _source(folder: Tree, classes: list[str], place: Path, packed: bool) -> FileSource:
    labelled = [
        (image, target)
        for target, name in enumerate(classes)
        if name in folder.folders
        for image in folder.folders[name].all_images()
    ]
    labelled.sort(key=lambda item: order(item[0]))
    spans = np.array([(image.offset, image.size) for image, _ in labelled], np.int64).reshape(-1, 2)
    return FileSource(
        place,
        [image.path for image, _ in labelled],
        np.array([target for _, target in labelled], np.int64),
        spans if packed else None,
    )
