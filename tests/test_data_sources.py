"""Where images come from, and how they are divided."""

import gzip
import os
import pickle
import struct
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import fill, names, open_at, pack, picture, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from hadaptive.data import ArraySource, hold_out, named
from hadaptive.data.named import read_idx
from hadaptive.data.sources import Subset

# -- hold_out ---------------------------------------------------------------------------------------------------


def labels_of(targets: list[int]) -> ArraySource:
    """A source of which only the targets matter."""
    return ArraySource(np.zeros((len(targets), 1, 1), np.uint8), np.array(targets, np.int64), "test")


@settings(deadline=None, max_examples=200)
@given(data=st.data(), targets=st.lists(st.integers(0, 5), min_size=2, max_size=120), seed=st.integers(0, 2**32))
def test_hold_out(data: st.DataObject, targets: list[int], seed: int) -> None:
    size = data.draw(st.integers(1, len(targets) - 1))
    source = labels_of(targets)
    rest, held = hold_out(source, size, seed)
    assert (len(rest), len(held)) == (len(targets) - size, size)
    assert sorted([*rest.indices, *held.indices]) == list(range(len(targets)))
    assert rest.targets is not None
    assert held.targets is not None
    for target in set(targets):
        count = targets.count(target)
        assert abs(int((held.targets == target).sum()) - count * size / len(targets)) < 1
        if size <= len(targets) / 2 and count > 1:
            assert (rest.targets == target).any()
    again = hold_out(source, size, seed)
    assert np.array_equal(again[0].indices, rest.indices)
    assert np.array_equal(again[1].indices, held.indices)


@pytest.mark.parametrize("size", range(1, 20))
def test_hold_out_leaves_the_only_image_of_a_class(size: int) -> None:
    rest, held = hold_out(labels_of([0] * 9 + [1] + [2] * 10 + [3] * 20), size, size)
    assert rest.targets is not None
    assert set(rest.targets) == {0, 1, 2, 3}
    assert len(held) == size


def test_hold_out_depends_on_the_seed() -> None:
    source = labels_of([0, 1] * 50)
    assert not np.array_equal(hold_out(source, 20, 0)[1].indices, hold_out(source, 20, 1)[1].indices)


def test_hold_out_without_targets() -> None:
    source = ArraySource(np.zeros((10, 1, 1), np.uint8), None, "test")
    rest, held = hold_out(source, 3, 0)
    assert sorted([*rest.indices, *held.indices]) == list(range(10))


@pytest.mark.parametrize("size", [-1, 0, 4, 5])
def test_hold_out_of_too_many_or_none(size: int) -> None:
    with pytest.raises(ValueError, match="both parts need at least one"):
        hold_out(labels_of([0, 0, 1, 1]), size, 0)


def test_subset_of_a_subset() -> None:
    source = ArraySource(np.arange(10, dtype=np.uint8).reshape(10, 1, 1), np.arange(10), "a")
    inner = Subset(Subset(source, np.array([9, 4, 2, 0])), np.array([2, 0]))
    assert inner.targets is not None
    assert inner.targets.tolist() == [2, 9]
    assert inner.name(0) == "a #2"
    assert inner.read(1)[0].getpixel((0, 0)) == 9


# -- named sets -------------------------------------------------------------------------------------------------


def idx(array: np.ndarray) -> bytes:
    """An array as an IDX file, not yet compressed."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def save_fashion_mnist(folder: Path, train: int = 40, test: int = 20) -> Path:
    """A small stand-in for Fashion-MNIST's four files."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, count in (("train", train), ("t10k", test)):
        images = np.arange(count * 28 * 28).reshape(count, 28, 28) % 251
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(count) % 10)))
    return folder


def test_digits() -> None:
    splits = open_at("digits")
    assert (len(splits.train), len(splits.validation)) == (1293, 144)
    assert splits.in_memory
    assert splits.classes == [str(i) for i in range(10)]
    image, target = splits.train.read(0)
    assert image.size == (8, 8)
    assert 0 <= target < 10
    other = open_at("digits", data_seed=7)
    assert names(splits.test) == names(other.test)
    assert names(splits.validation) != names(other.validation)
    for part in (splits, other):
        assert len(names(part.train) | names(part.validation) | names(part.test)) == 1797


@pytest.mark.parametrize("shape", [(1,), (5,), (3, 2), (2, 3, 4)], ids=str)
def test_read_idx(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(idx(array)))
    assert np.array_equal(read_idx(path), array)
    assert read_idx(path).flags.writeable


GOOD = idx(np.zeros((4, 3), np.uint8))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        pytest.param(None, "does not exist", id="missing"),
        pytest.param(b"", "is not an IDX file", id="empty"),
        pytest.param(GOOD, "not a gzipped", id="not-gzipped"),
        pytest.param(gzip.compress(GOOD)[:-12], "not a gzipped", id="cut-gzip"),
        pytest.param(gzip.compress(GOOD)[:12] + b"\xff" * 20, "not a gzipped", id="garbled-gzip"),
        pytest.param(gzip.compress(GOOD[:-1]), "damaged", id="cut"),
        pytest.param(gzip.compress(GOOD + b"\0"), "damaged", id="too-long"),
        pytest.param(gzip.compress(GOOD[:6]), "damaged", id="cut-header"),
        pytest.param(gzip.compress(b"\0\0\x08\0"), "is not an IDX file", id="no-dimensions"),
        pytest.param(gzip.compress(b"\0\0\x0d" + GOOD[3:]), "is not an IDX file", id="floats"),
        pytest.param(gzip.compress(b"\0\0\x08\x04" + struct.pack(">4I", *[2**16] * 4)), "damaged", id="overflow"),
    ],
)
def test_damaged_idx(tmp_path: Path, data: bytes | None, says: str) -> None:
    path = tmp_path / "a.gz"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(ValueError, match=says):
        read_idx(path)


def test_fashion_mnist_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_fashion_mnist(tmp_path / "fm")
    splits = open_at("fashion-mnist", folder)
    assert (len(splits.train), len(splits.validation), len(splits.test or [])) == (36, 4, 20)
    assert len(splits.classes) == 10
    monkeypatch.setattr(named, "FASHION_MNIST_DEBIAN", folder)
    assert len(open_at("fashion-mnist").train) == 36
    assert len(open_at("fashion-mnist", tmp_path / "elsewhere").train) == 36
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(3, np.uint8))))
    with pytest.raises(ValueError, match="do not match"):
        open_at("fashion-mnist")


@pytest.mark.skipif(not named.FASHION_MNIST_DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not here")
def test_fashion_mnist_of_debian() -> None:
    splits = open_at("fashion-mnist", val_fraction=1 / 60)
    assert (len(splits.train), len(splits.validation), len(splits.test or [])) == (59_000, 1000, 10_000)
    assert splits.validation.targets is not None
    assert np.bincount(splits.validation.targets).tolist() == [100] * 10


class FakeDownload:
    """What a torchvision data set offers, without a network."""

    def __init__(self, root: Path, train: bool, download: bool) -> None:
        assert download
        import torch

        self.root = root
        count = 40 if train else 10
        shape = (count, 28, 28) if type(self).__name__ == "FashionMNIST" else (count, 32, 32, 3)
        self.data: Any = torch.zeros(shape, dtype=torch.uint8)
        self.targets: Any = torch.arange(count) % 10
        self.classes = [f"class {i}" for i in range(10)]
        if type(self).__name__ != "FashionMNIST":
            self.data, self.targets = self.data.numpy(), self.targets.tolist()


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10", "cifar100"])
def test_downloads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    kind = {"fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}[name]
    monkeypatch.setattr(named, "FASHION_MNIST_DEBIAN", tmp_path / "none")
    monkeypatch.setattr(datasets, kind, type(kind, (FakeDownload,), {}))
    splits = open_at(name, tmp_path)
    assert (len(splits.train), len(splits.validation), len(splits.test or [])) == (36, 4, 10)
    assert splits.in_memory
    assert splits.train.read(0)[0].mode == ("L" if name == "fashion-mnist" else "RGB")

    def offline(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no route to host\nand more")

    monkeypatch.setattr(datasets, kind, offline)
    with pytest.raises(ValueError, match=rf"{name} is not under .*\(no route to host\).*--data-dir"):
        open_at(name, tmp_path)


# -- folders and tar files --------------------------------------------------------------------------------------


def test_folder(tmp_path: Path) -> None:
    root = fill(tmp_path / "pets", {"cat10": 20, "cat9": 20, "dog": 10})
    before = snapshot(tmp_path)
    splits = open_at(str(root))
    assert splits.classes == ["cat9", "cat10", "dog"]
    assert (len(splits.train), len(splits.validation), len(splits.test or [])) == (36, 4, 10)
    parts = [names(p) for p in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*parts)) == 50
    assert not splits.in_memory
    assert "held out 10" in splits.notes[0]
    for i in range(len(splits.train)):
        image, target = splits.train.read(i)
        assert Path(splits.train.name(i)).parent.name == splits.classes[target]
        assert image.size == (6, 5)
    assert names(open_at("folder", root).test) == parts[2]
    assert names(open_at("pets", tmp_path).test) == parts[2]
    assert names(open_at(str(root), data_seed=1).test) != parts[2]
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("validation", ["val", "valid", "VALIDATION", "dev", None])
@pytest.mark.parametrize("test", ["test", "testing", None])
def test_folder_with_parts(tmp_path: Path, train: str, validation: str | None, test: str | None) -> None:
    fill(tmp_path / train, {"a": 10, "b": 10})
    (tmp_path / "labels").mkdir()
    if validation:
        fill(tmp_path / validation, {"b": 3})
    if test:
        fill(tmp_path / test, {"a": 2, "b": 2})
    splits = open_at(str(tmp_path))
    assert splits.classes == ["a", "b"]
    assert sum(len(p) for p in (splits.train, splits.validation, splits.test or [])) == 20 + 3 * bool(
        validation
    ) + 4 * bool(test)
    if validation:
        assert splits.validation.targets is not None
        assert splits.validation.targets.tolist() == [1, 1, 1]
        assert (splits.test is None) == (test is None)
    assert not names(splits.train) & names(splits.validation)
    if splits.test is not None:
        assert not names(splits.train) & names(splits.test)


def test_what_is_passed_over(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", {"a": 5, "b": 5})
    (root / "a" / "._0.png").write_bytes(b"mac")
    (root / "a" / "notes.txt").write_text("")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "b" / "deeper").mkdir()
    picture(1, 9).save(root / "b" / "deeper" / "9.webp")
    (root / "b" / "round").symlink_to(root)
    picture(0, 0).save(root / "lost.png")
    splits = open_at(str(root))
    assert len(splits.train) + len(splits.validation) + len(splits.test or []) == 11
    assert any("1 images lie in" in note for note in splits.notes)


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 5, "b": 5})
    os.rename(tmp_path / "a" / "0.png", os.fsencode(tmp_path / "a") + b"/\xff.png")
    splits = open_at(str(tmp_path))
    everything = names(splits.train) | names(splits.validation) | names(splits.test)
    assert "\n".join(everything).encode()
    assert len(everything) == 10


@pytest.mark.parametrize("prefix", [".", "pets", "a/b/pets", "train"])
def test_tar(tmp_path: Path, prefix: str) -> None:
    root = fill(tmp_path / "pets", {"cat": 12, "dog": 9})
    path = pack(root, tmp_path / "pets.tar", prefix)
    before = snapshot(tmp_path)
    splits = open_at(str(path))
    assert splits.classes == ["cat", "dog"]
    assert len(splits.train) + len(splits.validation) + len(splits.test or []) == 21
    for part in (splits.train, splits.validation, splits.test):
        assert part is not None
        assert part.targets is not None
        for i in range(len(part)):
            image, target = part.read(i)
            number = int(Path(part.name(i)).stem)
            assert image.getpixel((0, 0)) == picture(target, number).getpixel((0, 0))
            assert part.targets[i] == target
    assert pickle.loads(pickle.dumps(splits.train)).read(0)[0].size == (6, 5)
    assert names(open_at("tar", path).test) == names(splits.test)
    assert snapshot(tmp_path) == before


def test_tar_with_parts_and_tar_of_tars(tmp_path: Path) -> None:
    fill(tmp_path / "d" / "train", {"a": 10, "b": 10})
    fill(tmp_path / "d" / "val", {"b": 3})
    splits = open_at(str(pack(tmp_path / "d", tmp_path / "parts.tar", "d")))
    assert len(splits.train) == 20
    assert splits.validation.targets is not None
    assert splits.validation.targets.tolist() == [1, 1, 1]
    for name in ("a", "b"):
        pack(tmp_path / "d" / "train" / name, tmp_path / f"{name}.tar")
    with tarfile.open(tmp_path / "outer.tar", "w") as tar:
        for name in ("a", "b"):
            tar.add(tmp_path / f"{name}.tar", arcname=f"{name}.tar")
    nested = open_at(str(tmp_path / "outer.tar"))
    assert nested.classes == ["a", "b"]
    image, target = nested.train.read(0)
    assert image.getpixel((0, 0)) == picture(target, int(Path(nested.train.name(0)).stem)).getpixel((0, 0))
