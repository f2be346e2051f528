"""The data sets that have a name here: digits, Fashion-MNIST, CIFAR-10, CIFAR-100, and one that is generated."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from hadaptive.data import generated
from hadaptive.data.draw import choose
from hadaptive.data.sources import ArraySource, Listed, Opened
from hadaptive.errors import UserError

FASHION_MNIST_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
FASHION_MNIST_CLASSES = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
NAMED = ("digits", "fashion-mnist", "cifar10", "cifar100", generated.NAME)


def open_named(name: str, root: Path | None) -> Opened:
    """Open one of NAMED, with its own test part.

    Args:
        name: which.
        root: where its files lie or a download goes; default is the user's cache.

    Raises:
        UserError: the files are damaged, or neither there nor to be downloaded.
    """
    if name == "digits":
        return _digits()
    if name == generated.NAME:
        return generated.open_cooccurrence()
    if name == "fashion-mnist":
        return _fashion_mnist(root)
    return _cifar(name, root)


def _digits() -> Opened:
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = (digits.images * (255 / 16)).round().astype(np.uint8)
    targets = digits.target.astype(np.int64)
    held = choose(targets, 360, seed=0)  # a fixed test part, whatever the seed of the run
    parts: dict[str, Listed] = {
        part: ArraySource(images[numbers], targets[numbers], "digits", numbers)
        for part, numbers in (("train", np.flatnonzero(~held)), ("test", np.flatnonzero(held)))
    }
    return Opened(parts, [str(c) for c in digits.target_names], in_memory=True)


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes (MNIST's format) as a uint8 array of the shape it states.

    Raises:
        UserError: the file is missing, not of that format, or cut short.
    """
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is not a gzipped IDX file, or a damaged one: {error}") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or data[3] == 0:
        raise UserError(f"{path} is not an IDX file of unsigned bytes")
    offset = 4 + 4 * data[3]
    shape = struct.unpack_from(f">{data[3]}I", data, 4) if len(data) >= offset else (-1,)
    if len(data) - offset != math.prod(shape):
        raise UserError(f"{path} is damaged: its length is not what its header says")
    return np.frombuffer(data, np.uint8, offset=offset).reshape(shape).copy()


def _fashion_mnist(root: Path | None) -> Opened:
    parts: dict[str, Listed] = {}
    for folder in (root, FASHION_MNIST_DEBIAN):
        if folder is None or not (folder / "train-images-idx3-ubyte.gz").is_file():
            continue
        for part, prefix in (("train", "train"), ("test", "t10k")):
            images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
            targets = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz").astype(np.int64)
            fits = images.ndim == 3 and targets.shape == images.shape[:1] and targets.max(initial=0) < 10
            if not fits or not len(images):
                raise UserError(f"the {prefix} files in {folder} are not Fashion-MNIST's: they do not match")
            parts[part] = ArraySource(images, targets, f"fashion-mnist {part}")
        return Opened(parts, FASHION_MNIST_CLASSES, in_memory=True)
    from torchvision.datasets import FashionMNIST

    for part in ("train", "test"):
        data = _download(FashionMNIST, root, part == "train", "fashion-mnist")
        parts[part] = ArraySource(data.data.numpy(), data.targets.numpy(), f"fashion-mnist {part}")
    return Opened(parts, FASHION_MNIST_CLASSES, in_memory=True)


def _cifar(name: str, root: Path | None) -> Opened:
    from torchvision.datasets import CIFAR10, CIFAR100

    parts: dict[str, Listed] = {}
    classes: list[str] = []
    for part in ("train", "test"):
        # torchvision's files are pickles; it loads them only after checking their published MD5 sums.
        data = _download(CIFAR10 if name == "cifar10" else CIFAR100, root, part == "train", name)
        parts[part] = ArraySource(np.asarray(data.data), np.asarray(data.targets, np.int64), f"{name} {part}")
        classes = list(data.classes)
    return Opened(parts, classes, in_memory=True)


def _download(dataset: Any, root: Path | None, train: bool, name: str) -> Any:
    folder = root if root is not None else Path.home() / ".cache" / "hadaptive"
    try:
        return dataset(folder, train=train, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name} is not under {folder} and could not be downloaded ({reason}); "
            "put torchvision's files there or pass --data-dir"
        ) from None
