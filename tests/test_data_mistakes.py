"""What a person is told when data cannot be used: one sentence, saying what is wrong and what to do."""

import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import fill, names, open_at, pack, picture, say


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("digist", "did you mean digits?"),
        ("cifar-100", "did you mean cifar100?"),
        ("Fashion_MNIST", "did you mean fashion-mnist?"),
        ("xyzzy", "there is no data set 'xyzzy'"),
        ("no/such/folder", "does not exist"),
        ("folder", "--data-dir"),
        ("tar", "--data-dir"),
    ],
)
def test_unknown_names(name: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in say(name)


def test_misspelt_path(tmp_path: Path) -> None:
    (tmp_path / "flowers").mkdir()
    assert f"did you mean {tmp_path / 'flowers'}?" in say(tmp_path / "flower")
    assert "does not exist" in say("folder", tmp_path / "gone")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        pytest.param(lambda p: p.mkdir(), "has no class folders", id="empty"),
        pytest.param(lambda p: fill(p, {".": 3}), "holds 3 images but no class folders", id="flat"),
        pytest.param(lambda p: fill(p, {"a": 3}), "only one class, 'a'", id="one-class"),
        pytest.param(lambda p: fill(p / "inner", {"a": 3, "b": 3}), "did you mean", id="one-level-too-high"),
        pytest.param(lambda p: fill(p, {"a": 3, "b": 0}), "b holds no images", id="empty-class"),
        pytest.param(lambda p: fill(p, {"a": 0, "b": 0}), "no images were found", id="no-images"),
        pytest.param(lambda p: fill(p, {"a": 1, "b": 1}), "gather more images", id="too-few"),
        pytest.param(lambda p: fill(p, {"test": 3, "b": 3}), "no train folder beside it", id="test-but-no-train"),
        pytest.param(
            lambda p: [fill(p / n, {"a": 3, "b": 3}) for n in ("train", "val", "valid")],
            "both taken for the validation",
            id="two-vals",
        ),
        pytest.param(
            lambda p: [fill(p / "train", {"a": 3, "b": 3}), fill(p / "test", {"a": 1, "z": 1})],
            "has classes that .*train lacks: z",
            id="unknown-class",
        ),
        pytest.param(
            lambda p: [fill(p / "train", {"a": 3, "b": 3}), fill(p / "test", {"a": 0})],
            "test has no images",
            id="empty-test",
        ),
    ],
)
def test_folders_laid_out_wrongly(tmp_path: Path, make: Callable[[Path], Any], says: str) -> None:
    root = tmp_path / "data"
    make(root)
    assert re.search(says, say(root))
    if says != "did you mean":  # a tar file may well hold its folder's name
        assert re.search(says, say(pack(root, tmp_path / "data.tar")))


def test_files_that_are_no_tar(tmp_path: Path) -> None:
    text, image = tmp_path / "a.tar", tmp_path / "cat.png"
    text.write_text("not a tar file at all" * 100)
    picture(0, 0).save(image)
    assert "is not a tar file" in say(text)
    assert "is a single image" in say(image)
    whole = pack(fill(tmp_path / "d", {"a": 5, "b": 5}), tmp_path / "whole.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"\x89PNG") + 20])
    assert "damaged" in say(tmp_path / "cut.tar")
    (tmp_path / "empty.tar").write_bytes(b"")
    assert "is not a tar file" in say(tmp_path / "empty.tar")
    packed = pack(tmp_path / "d", tmp_path / "d.tar.gz", mode="w:gz")
    assert "is compressed" in say(packed)


def test_a_cut_tar_file_gives_unreadable_images(tmp_path: Path) -> None:
    path = pack(fill(tmp_path / "d", {"a": 5, "b": 5}), tmp_path / "d.tar")
    splits = open_at(str(path))
    os.truncate(path, 1024)
    with pytest.raises(OSError, match=r"empty|truncated|not an image"):
        splits.train.read(len(splits.train) - 1)


def test_permission_denied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, for tests may run as root, who may read everything."""
    root = fill(tmp_path / "data", {"a": 5, "b": 5})
    path = pack(root, tmp_path / "data.tar")
    scandir = os.scandir

    def denied_folder(folder: Any) -> Any:
        if str(folder).endswith("b"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    def denied_file(file: Any, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(file))

    def denied_stat(self: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", denied_folder)
        assert f"{root / 'b'} cannot be read: Permission denied" in say(root)
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", denied_file)
        assert "cannot be read: Permission denied" in say(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", denied_stat)
        assert "may not be read: permission denied" in say(root)


@pytest.mark.parametrize("label", ["val_fraction", "test_fraction"])
@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, 2.0, float("nan")])
def test_fractions(label: str, value: float) -> None:
    assert f"{label} must lie between 0 and 1" in say("digits", **{label: value})


def test_train_size() -> None:
    splits, smaller = open_at("digits"), open_at("digits", train_size=100)
    assert len(smaller.train) == 100
    assert names(smaller.train) < names(splits.train)
    assert names(smaller.validation) == names(splits.validation)
    assert len(open_at("digits", train_size=1293).train) == 1293
    assert "only 1293 images are left" in say("digits", train_size=1294)
    assert "must be positive" in say("digits", train_size=0)


def test_fractions_that_leave_nothing(tmp_path: Path) -> None:
    assert "val_fraction 0.0001 of 1437 images" in say("digits", val_fraction=0.0001)
    assert "val_fraction 0.9999 of 1437 images" in say("digits", val_fraction=0.9999)
