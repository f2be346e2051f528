"""Hugging Face data sets that lie on this machine."""

import io
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from folders import again, everything, fill, open_at, picture, refused, say, snapshot

from hadaptive.data import hugging_face as hugging_face_room
from hadaptive.data import open_data


def test_missing_datasets_package(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("datasets", "datasets.load"):
        monkeypatch.setitem(sys.modules, module, None)
    assert 'pip install "hadaptive[hfds]"' in say("hfds/mnist")


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The datasets package, kept off the network and out of the home folder."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return datasets


def table(datasets: Any, count: int, kind: Any = None, targets: list[Any] | None = None, **columns: Any) -> Any:
    """A small data set of pictures."""
    targets = [i % 2 for i in range(count)] if targets is None else targets
    data = {columns.get("image", "image"): [], columns.get("label", "label"): targets}
    for number in range(count):
        buffer = io.BytesIO()
        picture(number % 2, number).save(buffer, "PNG")
        data[columns.get("image", "image")].append({"bytes": buffer.getvalue(), "path": f"{number}.png"})
    features = {
        columns.get("image", "image"): datasets.Image(),
        columns.get("label", "label"): kind or datasets.ClassLabel(names=["cat", "dog"]),
    }
    return datasets.Dataset.from_dict(data, features=datasets.Features(features))


@pytest.mark.parametrize("form", ["folder", "saved", "saved-alone"])
def test_hugging_face(form: str, tmp_path: Path, hugging_face: Any) -> None:
    root = tmp_path / "data"
    if form == "folder":
        fill(root / "train", {"cat": 20, "dog": 20})
        fill(root / "test", {"cat": 3, "dog": 2})
    elif form == "saved":
        parts = {"train": table(hugging_face, 40), "test": table(hugging_face, 5)}
        hugging_face.DatasetDict(parts).save_to_disk(str(root))
    else:
        table(hugging_face, 40).save_to_disk(str(root))
    before = snapshot(root)
    splits = open_at(f"hfds/{root}", tmp_path / "cache")
    assert splits.classes == ["cat", "dog"]
    assert splits.test is not None
    if form != "saved-alone":
        assert (len(splits.train), len(splits.validation), len(splits.test)) == (36, 4, 5)
    assert splits.train.targets is not None
    for i in range(len(splits.train)):
        image, target = splits.train.read(i)
        assert image.size == (6, 5)
        assert target == splits.train.targets[i]
        pixel = image.getpixel((0, 0))
        assert isinstance(pixel, tuple)
        assert pixel[0] == 10 * target
    assert ".png" in splits.train.name(0)
    assert pickle.loads(pickle.dumps(splits.train)).read(0)[0].size == (6, 5)
    assert snapshot(root) == before


def test_hugging_face_columns(tmp_path: Path, hugging_face: Any) -> None:
    value = hugging_face.Value("string")
    words = table(hugging_face, 40, value, ["no", "yes"] * 20, image="img", label="fine_label")
    words.save_to_disk(str(tmp_path / "words"))
    splits = open_at(f"hfds/{tmp_path / 'words'}")
    assert splits.classes == ["no", "yes"]
    hugging_face.Dataset.from_dict({"text": ["a"], "label": [0]}).save_to_disk(str(tmp_path / "text"))
    assert "no column of images; its columns are text, label" in say(f"hfds/{tmp_path / 'text'}")
    words.rename_column("fine_label", "mood").save_to_disk(str(tmp_path / "moods"))
    assert "no column of labels" in say(f"hfds/{tmp_path / 'moods'}")


def test_hugging_face_splits(tmp_path: Path, hugging_face: Any) -> None:
    root = tmp_path / "data"
    blind = table(hugging_face, 4, targets=[-1] * 4)
    parts = {"train": table(hugging_face, 40), "held": table(hugging_face, 8), "test": blind}
    hugging_face.DatasetDict(parts).save_to_disk(str(root))
    splits = open_at(f"hfds/{root}", train_split="train", val_split="held", test_split="test")
    assert (len(splits.train), len(splits.validation), splits.test) == (40, 8, None)
    assert "known label" in splits.notes[0]
    same = open_at(f"hfds/{root}", train_split="train", val_split="held", test_split=None)
    assert same.test is None
    assert "known label" in say(f"hfds/{root}", train_split="test", val_split=None, test_split=None)
    assert "cannot be two parts" in say(f"hfds/{root}", train_split="train", val_split="train", test_split=None)
    assert "cannot be two parts" in say(f"hfds/{root}", train_split="train", val_split=None, test_split="train")
    assert "no split 'dev', only train, held, test" in say(
        f"hfds/{root}", train_split="train", val_split="dev", test_split=None
    )
    assert open_at(f"hfds/{root}", train_split="held", val_split="train", test_split="test").test is None


def test_hugging_face_that_is_not_there(tmp_path: Path, hugging_face: Any) -> None:
    assert "cannot be opened" in say("hfds/nobody/nothing", tmp_path)
    assert "must be followed by" in say("hfds/")
    fill(tmp_path / "d" / "train", {"a": 4, "b": 4})
    assert "dev" in say(f"hfds/{tmp_path / 'd'}", train_split="train", val_split="dev", test_split="test")
    assert open_at(f"hfds/{tmp_path / 'd'}", test_fraction=0.25, val_fraction=0.25).classes == ["a", "b"]


def test_hugging_face_images_that_are_damaged(tmp_path: Path, hugging_face: Any) -> None:
    features = hugging_face.Features(
        {"image": hugging_face.Image(), "label": hugging_face.ClassLabel(names=["a", "b"])}
    )
    images = [{"bytes": b"text", "path": None}, None] * 10
    dataset = hugging_face.Dataset.from_dict({"image": images, "label": [0, 1] * 10}, features=features)
    dataset.save_to_disk(str(tmp_path / "d"))
    splits = open_at(f"hfds/{tmp_path / 'd'}")
    for i in range(len(splits.train)):
        with pytest.raises(OSError, match=r"not an image|no image"):
            splits.train.read(i)
        assert splits.train.name(i).startswith("hfds/")


class Feature:
    """A column's kind, as `datasets` has classes for."""

    def __init__(self, names: list[str] | None = None, decode: bool = True) -> None:
        self.names = names


class ImageFeature(Feature):
    """The kind of a column of images."""


class Table:
    """As much of a `datasets.Dataset` as a source asks of it."""

    def __init__(self, numbers: list[int], names: list[str]) -> None:
        self.features = {"image": ImageFeature(), "label": Feature(names)}
        self.rows = []
        for number in numbers:
            buffer = io.BytesIO()
            picture(number % 2, number).save(buffer, "PNG")
            image = {"bytes": buffer.getvalue(), "path": f"{number}.png"}
            self.rows.append({"image": image, "label": number % 2})

    def cast_column(self, column: str, feature: Feature) -> "Table":
        return self

    def __getitem__(self, key: int | str) -> Any:
        return self.rows[key] if isinstance(key, int) else [row[key] for row in self.rows]


def test_a_set_that_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package, of which only the columns matter here."""
    package = types.SimpleNamespace(ClassLabel=Feature, Image=ImageFeature)
    monkeypatch.setitem(sys.modules, "datasets", package)
    monkeypatch.setattr(hugging_face_room, "require", lambda *names: None)
    held: dict[str, Table] = {}
    monkeypatch.setattr(hugging_face_room, "_load", lambda name, root, split: held[split])

    def now(train: list[int], test: list[int], names: tuple[str, ...] = ("cat", "dog")) -> None:
        held.update(train=Table(train, list(names)), test=Table(test, list(names)))

    now([*range(40)], [*range(100, 108)])
    data = open_at("hfds/pets")
    before = everything(data)
    assert data.manifest.names("test")[:2] == ["test #0", "test #1"]
    assert everything(again(data, exact=True)) == before
    # One more in front gives all the others another place.
    now([50, *range(40)], [*range(100, 108)])
    grown = again(data, exact=True)
    assert everything(grown) == before
    assert grown.notes == ["1 image is new since and not used (1 in train): train #0"]
    wider = open_data(data.location, known=data.manifest)
    assert {part: set(before[part]) <= set(kept) for part, kept in everything(wider).items()} == dict.fromkeys(
        before, True
    )
    # A trained image among the test images, and one test image less.
    trained = int(data.manifest.names("train")[0].split("#")[1])
    now([*range(40)], [trained, *range(101, 108)])
    assert everything(again(data)) == before | {"test": before["test"][1:]}
    assert "1 has other contents" in refused(data, exact=True)
    now([*range(40)], [*range(100, 108)], ("cat", "hound"))
    assert "the class 'dog' seems to be called 'hound' now" in refused(data, needs=("test",))
