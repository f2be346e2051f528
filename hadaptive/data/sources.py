"""Where images come from: named data sets, a person's own folder, and whatever timm can read.

A source is random access: ``read(i) -> (PIL image, target)``. Streams (webdataset, tfds) have their own path in
:mod:`hadaptive.data.loading`.
"""

import gzip
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

FASHION_MNIST_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot".split(",")
NAMED = ("digits", "fashion-mnist", "cifar10", "cifar100")
STREAMS = ("wds/", "tfds/", "hfids/")
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


class Source(Protocol):
    """Random access to labelled images."""

    targets: np.ndarray | None

    def __len__(self) -> int: ...

    def read(self, index: int) -> tuple[Image.Image, int]:
        """The image, not yet decoded to a mode, and its class number; OSError when it cannot be read."""
        ...

    def name(self, index: int) -> str:
        """What to call the image in a message."""
        ...


@dataclass
class ArraySource:
    """Images in memory. `images` is uint8 (N, H, W) or (N, H, W, 3); `targets` is int64 (N,)."""

    images: np.ndarray
    targets: np.ndarray | None
    label: str

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> tuple[Image.Image, int]:
        assert self.targets is not None
        return Image.fromarray(self.images[index]), int(self.targets[index])

    def name(self, index: int) -> str:
        return f"{self.label} #{index}"


class ReaderSource:
    """A timm reader (folder, tar, Hugging Face data set) as a source."""

    def __init__(self, reader: Any) -> None:
        self.reader = reader
        samples = getattr(reader, "samples", None)
        pairs = isinstance(samples, list) and samples and isinstance(samples[0], tuple) and len(samples[0]) == 2
        self.targets = np.array([s[1] for s in samples]) if pairs else None

    def __len__(self) -> int:
        return len(self.reader)

    def read(self, index: int) -> tuple[Image.Image, int]:
        image, target = self.reader[index][:2]
        return (image if isinstance(image, Image.Image) else Image.open(image)), int(target)

    def name(self, index: int) -> str:
        try:
            return str(self.reader.filename(index, absolute=True))
        except (AttributeError, AssertionError, TypeError, KeyError, IndexError):
            return f"#{index}"


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


@dataclass
class Splits:
    """The parts of a data set, and what its classes are called. `test` is None where there is none."""

    train: Source
    validation: Source
    test: Source | None
    classes: list[str]
    in_memory: bool = False
    notes: list[str] = field(default_factory=list)


def hold_out(source: Source, size: int, seed: int) -> tuple[Subset, Subset]:
    """Split `source` into (rest, held-out part of `size` images), seeded, stratified where targets are known.

    Raises:
        ValueError: `size` leaves one of the parts empty.
    """
    n = len(source)
    if not 0 < size < n:
        raise ValueError(f"cannot hold {size} images out of {n}: both parts need at least one; change the fraction")
    order = np.random.default_rng(seed).permutation(n)
    if source.targets is not None:
        order = order[np.argsort(source.targets[order], kind="stable")]
    # Evenly spaced places of the shuffled, class-sorted order: exact size, every class in proportion.
    held = np.zeros(n, dtype=bool)
    held[((np.arange(size) + 0.5) * n / size).astype(np.int64)] = True
    return Subset(source, np.sort(order[~held])), Subset(source, np.sort(order[held]))


def open_splits(
    name: str,
    root: Path | None = None,
    *,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    train_size: int | None = None,
    split_names: tuple[str, str | None, str | None] = ("train", None, "test"),
    seed: int = 0,
) -> Splits:
    """Open a data set and divide it.

    Args:
        name: "digits", "fashion-mnist", "cifar10", "cifar100", "folder", "tar", "hfds/<name>", or a path to a
            folder or tar file.
        root: where the data lie; for named sets, where a download goes (default: the user's cache).
        val_fraction: share of the training data held out for validation where there is no such part already.
        test_fraction: share held out for testing where there is no such part already.
        train_size: use only this many training images, chosen at random after the validation part was held out.
        split_names: names of train, validation and test parts in a Hugging Face data set.
        seed: of every random choice here.

    Raises:
        ValueError: no such data set, or it cannot be divided as asked.
    """
    for label, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise ValueError(f"{label} must lie between 0 and 1, got {fraction}")
    parts, classes, in_memory = _open(name, root, split_names)
    train, validation, test = parts.get("train"), parts.get("validation"), parts.get("test")
    if train is None:
        raise ValueError(f"{name}: no training images were found")
    notes = []
    if test is None and validation is None:
        train, test = hold_out(train, round(len(train) * test_fraction), seed)
        notes.append(f"no test part: held out {len(test)} images, seed {seed}")
    if validation is None:
        train, validation = hold_out(train, round(len(train) * val_fraction), seed + 1)
    if train_size is not None and train_size < len(train):
        if train_size < 1:
            raise ValueError(f"train_size must be positive, got {train_size}")
        train = hold_out(train, train_size, seed + 2)[1]
    return Splits(train, validation, test, classes, in_memory, notes)


def _open(
    name: str, root: Path | None, split_names: tuple[str, str | None, str | None]
) -> tuple[dict[str, Source], list[str], bool]:
    if name == "digits":
        return _digits()
    if name == "fashion-mnist":
        return _fashion_mnist(root)
    if name in ("cifar10", "cifar100"):
        return _cifar(name, root)
    if name.startswith("hfds/"):
        return _hugging_face(name, root, split_names)
    path = Path(root) if name in ("folder", "tar") and root is not None else Path(name)
    if path.is_dir():
        return _folder(path)
    if path.is_file() and ".tar" in path.suffixes:
        reader = _timm_reader("", path)
        return {"train": ReaderSource(reader)}, _class_names(reader), False
    raise ValueError(
        f"no data set {name!r}: it is neither a folder or tar file that exists nor one of {', '.join(NAMED)}, "
        "hfds/<name>, wds/<name>, tfds/<name>"
    )


def _digits() -> tuple[dict[str, Source], list[str], bool]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    source = ArraySource(images, digits.target.astype(np.int64), "digits")
    train, test = hold_out(source, 360, seed=0)  # a fixed test part, whatever the seed of the run
    return {"train": train, "test": test}, [str(c) for c in digits.target_names], True


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes (MNIST's format) as an array.

    Raises:
        ValueError: the file is not of that format or is cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError) as error:
        raise ValueError(f"{path} is not a gzipped IDX file: {error}") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack_from(f">{data[3]}I", data, 4)
    offset = 4 + 4 * data[3]
    if len(data) - offset != int(np.prod(shape)):
        raise ValueError(f"{path} is cut short")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape).copy()


def _fashion_mnist(root: Path | None) -> tuple[dict[str, Source], list[str], bool]:
    folder = FASHION_MNIST_DEBIAN if root is None else Path(root)
    parts: dict[str, Source] = {}
    if (folder / "train-images-idx3-ubyte.gz").is_file():
        for part, prefix in (("train", "train"), ("test", "t10k")):
            images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
            targets = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
            parts[part] = ArraySource(images, targets, f"fashion-mnist {part}")
        return parts, list(FASHION_MNIST_CLASSES), True
    from torchvision.datasets import FashionMNIST

    for part in ("train", "test"):
        data = _download(FashionMNIST, root, part == "train", "fashion-mnist")
        parts[part] = ArraySource(data.data.numpy(), data.targets.numpy(), f"fashion-mnist {part}")
    return parts, list(FASHION_MNIST_CLASSES), True


def _cifar(name: str, root: Path | None) -> tuple[dict[str, Source], list[str], bool]:
    from torchvision.datasets import CIFAR10, CIFAR100

    parts: dict[str, Source] = {}
    classes: list[str] = []
    for part in ("train", "test"):
        # torchvision's files are pickles; it loads them only after checking their published MD5 sums.
        data = _download(CIFAR10 if name == "cifar10" else CIFAR100, root, part == "train", name)
        parts[part] = ArraySource(np.asarray(data.data), np.asarray(data.targets, np.int64), f"{name} {part}")
        classes = list(data.classes)
    return parts, classes, True


def _download(dataset: Any, root: Path | None, train: bool, name: str) -> Any:
    folder = Path(root) if root is not None else Path.home() / ".cache" / "hadaptive"
    try:
        return dataset(folder, train=train, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{name} is not under {folder} and could not be downloaded ({reason}); "
            "put torchvision's files there or pass --data-dir"
        ) from None


def _timm_reader(name: str, root: Path, **kwargs: Any) -> Any:
    from timm.data import create_dataset

    try:
        return create_dataset(name, str(root), search_split=False, **kwargs).reader
    except ImportError as error:
        raise ValueError(f"{name} needs a package that is not installed: {error}") from None
    except (RuntimeError, AssertionError, OSError) as error:
        raise ValueError(f"{root} holds no images that can be read: {error}") from None


def _class_names(reader: Any) -> list[str]:
    mapping = reader.class_to_idx
    return [str(c) for c in sorted(mapping, key=mapping.__getitem__)]


def _folder(path: Path) -> tuple[dict[str, Source], list[str], bool]:
    folders = {
        part: next((path / name for name in names if (path / name).is_dir()), None)
        for part, names in SPLIT_FOLDERS.items()
    }
    train = folders["train"] or path
    if folders["train"] is None and (folders["validation"] or folders["test"]):
        raise ValueError(f"{path} has a {folders['validation'] or folders['test']} but no train folder")
    if not any(child.is_dir() for child in train.iterdir()):
        raise ValueError(f"{train} must hold one folder of images per class")
    reader = _timm_reader("", train)
    parts: dict[str, Source] = {"train": ReaderSource(reader)}
    classes = _class_names(reader)
    if len(classes) < 2:
        raise ValueError(f"{train} holds images of only one class, {classes[0]!r}; two at least are needed")
    if folders["train"] is not None:
        for part in ("validation", "test"):
            folder = folders[part]
            if folder is None:
                continue
            unknown = {c.name for c in folder.iterdir() if c.is_dir()} - set(classes)
            if unknown:
                raise ValueError(f"{folder} has classes that {train} lacks: {', '.join(sorted(unknown)[:5])}")
            # The same class numbers as in training, even where this part lacks a class.
            parts[part] = ReaderSource(_timm_reader("", folder, class_map=dict(reader.class_to_idx)))
    return parts, classes, False


def _hugging_face(
    name: str, root: Path | None, split_names: tuple[str, str | None, str | None]
) -> tuple[dict[str, Source], list[str], bool]:
    parts: dict[str, Source] = {}
    classes: list[str] = []
    for part, split in zip(("train", "validation", "test"), split_names, strict=True):
        if split is None:
            continue
        try:
            reader = _timm_reader(name, Path(root) if root else Path(), split=split)
        except ValueError:
            if part == "train" or split != "test":
                raise
            continue  # "test" is only this function's guess
        parts[part] = ReaderSource(reader)
        if part == "train":
            feature = reader.dataset.features[reader.label_key]
            names = getattr(feature, "names", None)
            classes = list(names) if names else [str(i) for i in sorted(set(reader.dataset[reader.label_key]))]
    return parts, classes, False
