"""A new run that takes an older division over, and random edits that must never turn training into testing."""

import shutil
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import (
    PARTS,
    attempt,
    contents,
    everything,
    file_of,
    fill,
    fill_parts,
    open_at,
    overwrite,
    pack,
    picture,
    say,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hadaptive.data import DataConfig, ImageData, Manifest, open_data
from hadaptive.errors import UserError


def extended(data: ImageData, **fields: Any) -> ImageData:
    """A new run on the folder of an older one that takes its division over."""
    run = Path(data.location.data).parent / "run"
    run.mkdir(exist_ok=True)
    data.manifest.save(run / "split.csv")
    return open_at(data.location.data, split=run, **fields)


def pictures(source: Any) -> set[str]:
    return {content.split()[0] for content in contents(source)}


def kept(before: dict[str, list[str]], newer: ImageData) -> bool:
    """Whether every part has all that it had."""
    return all(set(before[part]) <= set(contents(newer.parts[part])) for part in before)


@pytest.mark.parametrize("fields", [{}, {"train_size": 30}, {"data_seed": 3}], ids=str)
def test_nothing_new(fields: dict[str, Any], pets: Path) -> None:
    data = open_at(pets, **fields)
    newer = extended(data, **fields)
    assert everything(newer) == everything(data)
    assert list(newer.manifest.entries) == list(data.manifest.entries)
    assert newer.notes == ["60 images keep the parts that an older division gave them"]
    assert newer.location.split == pets.parent / "run"


def test_a_folder_that_grew(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    for number in range(10):
        picture(0, 100 + number).save(pets / "cat" / f"{number}a.png")
    for number in range(2):
        picture(5, number).save(pets / "dog" / f"{number}a.png")
    newer = extended(data)
    assert kept(before, newer)
    assert newer.notes[1:] == ["12 images are new since: 9 in train, 1 in validation, 2 in test"]
    assert newer.manifest.counts == {"train": 52, "validation": 6, "test": 14}
    assert extended(data).manifest.fingerprint == newer.manifest.fingerprint
    assert extended(data, data_seed=1).manifest.fingerprint != newer.manifest.fingerprint
    third = extended(newer)
    assert everything(third) == everything(newer)


def test_a_class_that_is_new_gets_into_every_part(pets: Path) -> None:
    data = open_at(pets)
    (pets / "ant").mkdir()
    for number in range(3):
        picture(9, number).save(pets / "ant" / f"{number}.png")
    newer = extended(data)
    assert newer.classes == ["ant", "cat", "dog", "fox"]
    assert newer.notes[1:] == ["3 images are new since: 1 in train, 1 in validation, 1 in test"]
    for part in PARTS:
        labels = newer.parts[part].targets
        assert labels is not None
        assert np.bincount(labels)[0] == 1
        assert {c[:32] for c in contents(data.parts[part])} < {c[:32] for c in contents(newer.parts[part])}


def test_names_and_classes_of_now_and_parts_of_then(pets: Path) -> None:
    data = open_at(pets)
    tested, trained = file_of(data, "test"), file_of(data, "train")
    tested.rename(tested.with_name("renamed.png"))
    shutil.copy(trained, trained.with_name("copy.png"))
    overwrite(file_of(data, "test", 1), 7)
    file_of(data, "test", 2).unlink()
    (pets / "dog").rename(pets / "hound")
    newer = extended(data)
    assert newer.classes == ["cat", "fox", "hound"]
    counts = newer.manifest.counts
    assert counts == {"train": 44, "validation": 5, "test": 11}
    assert f"{tested.parent.name}/renamed.png".replace("dog", "hound") in newer.manifest.names("test")
    assert f"{trained.parent.name}/copy.png".replace("dog", "hound") in newer.manifest.names("train")
    assert [note for note in newer.notes if "not here" in note] == [
        f"1 image of the older division is not here: {data.manifest.names('test')[2]}"
    ]


def test_a_name_that_was_given_to_another_image(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    path = file_of(data, "test")
    path.rename(path.with_name("renamed.png"))
    overwrite(path, 7)
    newer = extended(data)
    assert kept(before, newer)
    assert newer.notes[1:] == ["1 image is new since: 1 in train"]


def test_part_folders(parted: Path) -> None:
    data = open_at(parted)
    before = everything(data)
    for part in ("train", "test"):
        picture(0, 200 + len(part)).save(parted / part / "cat" / "new.png")
    name = file_of(data, "train").name
    file_of(data, "train").rename(parted / "test" / "cat" / name)
    file_of(data, "test").rename(parted / "train" / "cat" / "old-test.png")
    newer = extended(data)
    assert kept(before, newer)
    assert newer.notes == [
        "34 images keep the parts that an older division gave them",
        "1 image lies in train and stays in test, as in the older division: train/cat/old-test.png",
        f"1 image lies in test and stays in train, as in the older division: test/cat/{name}",
        "2 images are new since: 1 in train, 1 in test",
    ]
    assert newer.test is not None
    assert "test/cat/new.png" in newer.manifest.names("test")


def test_train_size(pets: Path) -> None:
    data = open_at(pets, train_size=20)
    for number in range(10):
        picture(0, 100 + number).save(pets / "cat" / f"{number}a.png")
    newer = extended(data)
    assert newer.manifest.counts == {"train": 50, "validation": 6, "test": 14}
    fewer = extended(data, train_size=45)
    assert fewer.manifest.counts == {"train": 45, "validation": 6, "test": 14, "unused": 5}
    assert fewer.manifest.names("test") == newer.manifest.names("test")
    with pytest.raises(UserError, match="only 50 images are left"):
        extended(data, train_size=51)


def test_a_division_of_other_images(pets: Path, tmp_path: Path) -> None:
    digits, data = open_at("digits").manifest, open_at(pets)
    digits.save(tmp_path / "split.csv")
    assert "not one image of the division" in say(pets, split=tmp_path)
    assert "check the path" in say(pets, split=tmp_path / "none")
    fresh = open_data(DataConfig(str(pets)), known=digits)
    assert everything(fresh) == everything(data)
    assert fresh.notes == data.notes


def test_the_run_whose_weights_a_new_one_starts_from(pets: Path, tmp_path: Path) -> None:
    older = open_at(pets, data_seed=5)
    newer = open_data(DataConfig(str(pets)), known=older.manifest)
    assert everything(newer) == everything(older)
    assert set(contents(open_at(pets).test)) != set(contents(older.test))
    other = open_at(pets)
    other.manifest.save(tmp_path / "split.csv")
    with pytest.raises(UserError, match=r"--split puts \d+ images into the test part"):
        open_data(DataConfig(str(pets), split=tmp_path), known=older.manifest)
    older.manifest.save(tmp_path / "split.csv")
    same = open_data(DataConfig(str(pets), split=tmp_path), known=older.manifest)
    assert everything(same) == everything(older)


def test_a_part_that_is_gone(pets: Path) -> None:
    data = open_at(pets)
    for number in range(12):
        file_of(data, "test", number).unlink()
    with pytest.raises(UserError, match="in its test part is here"):
        extended(data)


# -- settings without an effect ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fields", "flag"),
    [
        ("pets", {"data_dir": Path(".")}, "--data-dir"),
        ("digits", {"data_dir": Path(".")}, "--data-dir"),
        ("pets", {"train_split": "training"}, "--train-split"),
        ("pets", {"val_split": "val"}, "--val-split"),
        ("digits", {"test_split": None}, "--test-split"),
        ("pets", {"num_classes": 3}, "--num-classes"),
        ("digits", {"train_samples": 3}, "--train-samples"),
    ],
)
def test_settings_without_an_effect(
    name: str, fields: dict[str, Any], flag: str, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pets.parent)
    root = fields.pop("data_dir", None)
    assert say(name, root, **fields).startswith(f"{flag} has no effect here")
    data = open_at(name)  # a run of an older version may have recorded such a setting
    config = DataConfig(name, root, **fields)
    assert everything(open_data(config, data.manifest)) == everything(data)
    assert everything(open_data(config, drawn_before_manifests=True)) == everything(data)


def test_fractions_that_the_data_decide(pets: Path, parted: Path, tmp_path: Path) -> None:
    assert open_at(pets).ignored == set()
    assert open_at(parted).ignored == {"test_fraction"}
    assert open_at("digits").ignored == {"test_fraction"}
    shutil.copytree(parted / "test", parted / "val")
    assert open_at(parted).ignored == {"test_fraction", "val_fraction", "data_seed"}
    assert open_at(parted, train_size=9).ignored == {"test_fraction", "val_fraction"}


def test_settings_that_an_older_division_leaves_nothing_to_decide(pets: Path, parted: Path) -> None:
    data = open_at(pets)
    unchanged = extended(data, val_fraction=0.3)
    assert unchanged.ignored == {"val_fraction", "test_fraction", "data_seed"}
    with pytest.raises(UserError, match="--val-fraction has no effect here"):
        unchanged.refuse_ignored({"val_fraction"})
    assert extended(data, train_size=10).ignored == {"val_fraction", "test_fraction"}
    assert extended(data, train_size=43).ignored == {"val_fraction", "test_fraction", "data_seed"}
    picture(9, 0).save(pets / "cat" / "new0.png")
    assert extended(data).ignored == {"val_fraction", "test_fraction", "data_seed"}  # one alone is trained on
    for number in range(1, 4):
        picture(9, number).save(pets / "cat" / f"new{number}.png")
    assert extended(data).ignored == set()
    data = open_at(parted)
    for number in range(4):
        picture(9, number).save(parted / "train" / "cat" / f"new{number}.png")
    assert extended(data).ignored == {"test_fraction"}


@pytest.mark.parametrize("name", ["wds/shards", "tfds/mnist", "hfids/mnist"])
def test_streams_are_refused(name: str) -> None:
    assert "is a stream" in say(name)


def test_an_unused_copy_of_a_test_image_is_not_trained_on(parted: Path) -> None:
    """Left over by train_size, it was no training image when its copy was tested."""
    unused = open_at(parted, train_size=4).manifest.names("unused")[0]
    shutil.copy(next(parted.glob("test/cat/*.png")), parted / unused)
    data = open_at(parted, train_size=4)
    assert unused in data.manifest.names("unused")
    newer = extended(data)
    assert unused in newer.manifest.names("unused")
    assert not pictures(newer.parts["train"]) & pictures(newer.parts["test"])


def test_an_image_trained_on_is_not_taken_for_a_copy_of_a_test_image(parted: Path) -> None:
    """It lay in both parts from the beginning, and was unused in a run in between."""
    trained = open_at(parted).manifest.names("train")[0]
    shutil.copy(next(parted.glob("test/cat/*.png")), parted / trained)
    first = open_at(parted)
    assert trained in first.manifest.names("train")
    second = extended(first, train_size=4)
    assert trained in second.manifest.names("unused")
    third = extended(second)
    assert everything(third) == everything(first)


def test_train_size_leaves_copies_of_held_out_images_over(parted: Path) -> None:
    first = open_at(parted)
    copied = first.manifest.names("train")[:3]
    for name in copied:
        shutil.copy(next(parted.glob("test/cat/*.png")), parted / name)
    size = len(first.manifest.names("train")) - 3
    data = open_at(parted, train_size=size)
    assert data.manifest.names("unused") == sorted(copied)
    assert everything(extended(data, train_size=size)) == everything(data)
    with pytest.raises(
        UserError, match=f"only {size} images are left besides the other parts and copies of theirs"
    ):
        open_at(parted, train_size=size + 1)


# -- any edits --------------------------------------------------------------------------------------------------


def copy_to(one: Path, other: Path, copy: Callable[[Path, Path], object]) -> None:
    """Copy a file, unless it lies there already under that name."""
    if one != other:
        copy(one, other)


EDITS: dict[str, Callable[[Path, Path, int], object]] = {
    "add": lambda one, other, n: picture(30, n).save(one.with_name(f"add{n}.png")),
    "delete": lambda one, other, n: one.unlink(),
    "rename": lambda one, other, n: one.rename(one.with_name(f"rename{n}.png")),
    "move": lambda one, other, n: one.rename(other.with_name(f"move{n}.png")),
    "replace": lambda one, other, n: one.replace(other),
    "swap": lambda one, other, n: [one.rename(x := one.with_name("x")), other.rename(one), x.rename(other)],
    "copy": lambda one, other, n: copy_to(one, other.with_name(f"copy{n}.png"), shutil.copy),
    "overwrite": lambda one, other, n: other.write_bytes(one.read_bytes()),
    "rewrite": lambda one, other, n: picture(31, n % 3).save(one),
    "copy2": lambda one, other, n: copy_to(one, other, shutil.copy2),
}


def apply(root: Path, edits: list[tuple[str, int, int]]) -> None:
    """Edit a folder, but never take a class's last image."""
    for number, (edit, one, other) in enumerate(edits):
        files = sorted(root.rglob("*.png"))
        first, second = files[one % len(files)], files[other % len(files)]
        takes = edit in ("delete", "move", "replace") and len(list(first.parent.glob("*.png"))) < 2
        if not takes and not (first == second and edit in ("replace", "swap", "overwrite")):
            EDITS[edit](first, second, number)


edit = st.tuples(st.sampled_from(sorted(EDITS)), st.integers(0, 99), st.integers(0, 99))


@settings(deadline=None, max_examples=30)
@given(
    before=st.lists(edit, max_size=4),
    edits=st.lists(edit, max_size=8),
    more=st.lists(edit, max_size=4),
    parts=st.booleans(),
    packed=st.booleans(),
    train_size=st.sampled_from([None, 9]),
)
def test_no_edit_turns_training_into_testing(
    before: list[Any], edits: list[Any], more: list[Any], parts: bool, packed: bool, train_size: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, place = Path(folder) / "data", Path(folder) / "data.tar"
        if parts:
            fill_parts(root)
        else:
            fill(root, {"cat": 9, "dog": 8, "fox": 7})

        def opened(**options: Any) -> ImageData:
            split = options.pop("split", None)
            config = DataConfig(
                str(pack(root, place) if packed else root), split=split, train_size=train_size, val_fraction=0.2
            )
            return open_data(config, **options)

        def check(newer: ImageData) -> None:
            for part, source in newer.parts.items():
                for content in contents(source):
                    owners = parts_of.get(content[:32])
                    assert owners is None or part in owners

        apply(root, before)
        data = opened()
        parts_of: dict[str, set[str]] = defaultdict(set)
        for part, source in data.parts.items():
            for content in contents(source):
                parts_of[content[:32]].add(part)
        assert everything(opened(manifest=data.manifest, exact=True)) == everything(data)
        data.manifest.save(Path(folder) / "split.csv")
        manifest = Manifest.load(Path(folder))
        for edited in (edits, more):
            apply(root, edited)
            for needs in (PARTS, ("test",)):
                sentences = "none of the", "seems to be called"
                first = attempt(lambda needs=needs: opened(manifest=manifest, needs=needs), *sentences)
                second = attempt(lambda needs=needs: opened(manifest=manifest, needs=needs), *sentences)
                assert (first is None) == (second is None)
                if first is None or second is None:
                    continue
                check(first)
                assert everything(first) == everything(second)
                assert first.notes == second.notes
            sentences = "part is here", "not one image", "are left besides"
            newer = attempt(lambda: opened(split=Path(folder)), *sentences)
            if newer is None:
                continue
            check(newer)
            assert everything(opened(manifest=newer.manifest, exact=True)) == everything(newer)
            newer.manifest.save(Path(folder) / "newer.csv")
            assert everything(opened(split=Path(folder) / "newer.csv")) == everything(newer)
