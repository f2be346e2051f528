"""A run's images found again: whatever became of the folder is said, and no trained image is tested."""

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from folders import (
    PARTS,
    again,
    contents,
    everything,
    file_of,
    fill,
    open_at,
    overwrite,
    pack,
    picture,
    refused,
)
from test_data_sources import save_fashion_mnist

from hadaptive.data import DataConfig, named, open_data
from hadaptive.data.manifest import digest_of


def test_a_folder_that_grows_keeps_its_test_images(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    assert len(before["test"]) == 12
    picture(0, 99).save(pets / "cat" / "1a.png")
    assert set(contents(open_at(pets).test)) != set(before["test"])  # why a manifest is needed
    for exact in (False, True):
        grown = again(data, exact=exact)
        assert everything(grown) == before
        assert grown.notes == ["1 image is new since and not used: cat/1a.png"]


def test_images_that_are_missing(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    for number in range(3):
        file_of(data, "test", number).unlink()
    file_of(data, "train").unlink()
    smaller = again(data)
    assert everything(smaller) == before | {"test": before["test"][3:], "train": before["train"][1:]}
    assert len(smaller.notes) == 1
    assert smaller.notes[0].startswith("4 images are missing and left out (1 of train, 3 of test): ")
    assert "and 2 more" in smaller.notes[0]
    assert "4 are missing" in refused(data, exact=True)
    assert "--split" in refused(data, exact=True)
    assert "1 is missing" in refused(data, exact=True, needs=("train",))
    for number in range(3, 12):
        file_of(data, "test", number).unlink()
    assert "none of the 12 images of the test part" in refused(data)
    assert set(again(data, needs=("train", "validation")).parts) == {"train", "validation"}


def test_images_that_were_changed(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    overwrite(file_of(data, "test"), 7)
    changed = again(data)
    assert everything(changed)["train"] == before["train"]
    assert contents(changed.test)[1:] == before["test"][1:]
    assert contents(changed.test)[0] not in [c for part in before.values() for c in part]
    name = data.manifest.names("test")[0]
    assert changed.notes == [f"1 image has other contents than then (1 of test): {name}"]
    assert "1 has other contents" in refused(data, exact=True)
    again(data, exact=True, needs=("train", "validation"))


def test_a_change_that_keeps_size_time_and_name_is_seen(pets: Path) -> None:
    """Two files of one size and time change places, as `mv` leaves them."""
    for path in pets.rglob("*.png"):
        path.write_bytes(path.read_bytes().ljust(200, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    data = open_at(pets)
    before = everything(data)
    assert all(entry.modified == 10**18 for entry in data.manifest.entries)
    trained, tested = file_of(data, "train"), file_of(data, "test")
    trained.rename(pets / "x")
    tested.rename(trained)
    (pets / "x").rename(tested)
    assert everything(again(data))["test"] == before["test"]
    assert everything(again(data))["train"] == before["train"]


def test_files_that_did_not_change_are_not_read(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in pets.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    data = open_at(pets)
    read: list[str] = []

    def count(content: bytes) -> str:
        read.append(digest_of(content))
        return read[-1]

    monkeypatch.setattr("hadaptive.data.listing.digest_of", count)
    again(data, exact=True)
    assert read == []
    overwrite(file_of(data, "test"), 7)
    overwrite(file_of(data, "train"), 8)
    again(data, needs=("test",))
    assert len(read) <= 2
    picture(3, 3).save(pets / "cat" / "new.png")
    read.clear()
    open_at(pets)
    assert len(read) == 61
    data.manifest.save(pets.parent / "split.csv")
    read.clear()
    open_at(pets, split=pets.parent)
    assert len(read) == 3


def test_what_was_just_written_is_read_again(pets: Path) -> None:
    """A file may be written twice within one tick of the clock that its time is taken from."""
    data = open_at(pets)
    path = file_of(data, "test")
    before, size = os.stat(path), path.stat().st_size
    other = next(p for p in sorted(pets.rglob("*.png")) if p != path and p.stat().st_size == size)
    with open(path, "r+b") as file:
        file.write(other.read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert any("contents" in note or "another part" in note for note in again(data).notes)


def test_images_that_were_renamed_or_moved(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    file_of(data, "test").rename(pets / "cat" / "other.png")
    (pets / "cat" / "deeper").mkdir()
    file_of(data, "train").rename(pets / "cat" / "deeper" / "0.png")
    for exact in (False, True):
        found = again(data, exact=exact)
        assert everything(found) == before
        assert len(found.notes) == 1
        assert (
            "2 images have another name or place now and keep their parts (1 of train, 1 of test)"
            in found.notes[0]
        )


@pytest.mark.parametrize("direction", [("train", "test"), ("test", "train"), ("validation", "test")], ids="-".join)
def test_a_file_that_holds_an_image_of_another_part_now(pets: Path, direction: tuple[str, str]) -> None:
    data = open_at(pets)
    before = everything(data)
    source, target = direction
    overwrite(file_of(data, target), file_of(data, source))
    found = everything(again(data))
    assert found == before | {target: before[target][1:]}
    assert f"1 image holds one of another part now and is left out (1 of {target})" in again(data).notes[0]
    assert "1 has other contents" in refused(data, exact=True)


def test_a_copy_of_a_training_image_is_not_tested(pets: Path, parted: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    shutil.copy(file_of(data, "train"), pets / "fox" / "copy.png")
    assert everything(again(data)) == before
    data = open_at(parted)
    before = everything(data)
    shutil.copy(file_of(data, "train"), parted / "test" / "cat" / "copy.png")
    shutil.copy(file_of(data, "test"), parted / "train" / "cat" / "copy.png")
    found = again(data, exact=True)
    assert everything(found) == before
    assert found.notes[0].startswith("2 images are new since and not used (1 in train, 1 in test)")


def test_images_that_moved_between_part_folders(parted: Path) -> None:
    data = open_at(parted)
    before = everything(data)
    name = file_of(data, "train").name
    file_of(data, "train").rename(parted / "test" / "cat" / name)
    file_of(data, "test").rename(parted / "train" / "cat" / "x.png")
    assert everything(again(data)) == before
    assert "2 images have another name or place" in again(data).notes[0]


def test_one_new_image_in_two_parts_is_used_in_neither(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    overwrite(file_of(data, "train"), 5)
    overwrite(file_of(data, "test"), 5)
    assert everything(again(data)) == before | {"train": before["train"][1:], "test": before["test"][1:]}


def test_a_test_image_that_an_older_run_learned_from_now(pets: Path) -> None:
    """Its weights, from which this run began, learned from what this file holds now."""
    older = open_at(pets)
    learned = file_of(older, "train")
    kept = learned.rename(pets.parent / "away.png")
    data = open_data(older.location, known=older.manifest)
    before = everything(data)
    assert again(data, exact=True).notes == []
    overwrite(file_of(data, "test"), kept)
    found = again(data)
    assert everything(found) == before | {"test": before["test"][1:]}
    assert found.notes[0].startswith("1 image holds one of another part now and is left out (1 of test)")
    assert "1 has other contents" in refused(data, exact=True)
    shutil.copy(kept, pets / "cat" / "back.png")
    assert everything(again(data)) == everything(found)


def test_a_class_that_was_renamed(pets: Path) -> None:
    data = open_at(pets)
    (pets / "dog").rename(pets / "hound")
    for exact in (False, True):
        assert "the class 'dog' seems to be called 'hound' now" in refused(data, exact=exact)
    assert "the class 'dog' seems to be called 'hound' now" in refused(data, needs=("test",))
    (pets / "hound").rename(pets / "ant")  # the numbers of all classes shift
    assert "the class 'dog' seems to be called 'ant' now" in refused(data)


def test_classes_that_changed_names_with_each_other(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    for old, new in (("cat", "x"), ("dog", "cat"), ("x", "dog")):
        (pets / old).rename(pets / new)
    found = again(data)
    assert everything(found) == before
    assert any("40 images lie in another class now and keep their labels" in note for note in found.notes)
    assert "40 lie in another class" in refused(data, exact=True)


def test_a_class_that_is_new_or_gone(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    fill(pets, {"ant": 0, "bee": 0})
    (pets / "bee").rmdir()
    for number in range(4):
        picture(9, number).save(pets / "ant" / f"{number}.png")
    found = again(data, exact=True)
    assert everything(found) == before
    assert found.classes == ["cat", "dog", "fox"]
    assert "1 class is new since and not used: ant" in found.notes
    shutil.rmtree(pets / "dog")
    left = again(data)
    assert everything(left) == {part: [c for c in kept if c[-1] != "1"] for part, kept in before.items()}
    assert left.classes == ["cat", "dog", "fox"]
    assert left.notes[0].startswith("20 images are missing")


def test_an_image_that_moved_to_another_class(pets: Path) -> None:
    data = open_at(pets)
    before = everything(data)
    path = file_of(data, "test")
    path.rename(pets / ("fox" if path.parent.name != "fox" else "cat") / "moved.png")
    found = again(data)
    assert everything(found) == before
    assert any("1 image lies in another class now and keeps its label (1 of test)" in note for note in found.notes)
    assert "1 lies in another class" in refused(data, exact=True)
    again(data, exact=True, needs=("train",))


def test_a_folder_that_moved(pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = open_at("pets")
    assert data.location.data == str(pets)
    before = everything(data)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    assert everything(again(data, exact=True)) == before
    pets.rename(tmp_path / "moved")
    assert str(pets) in refused(data)
    assert "--data" in refused(data)
    assert everything(again(data, tmp_path / "moved", exact=True)) == before
    shutil.copytree(tmp_path / "moved", tmp_path / "copied")
    assert everything(again(data, tmp_path / "copied", exact=True)) == before
    elsewhere = open_data(DataConfig("folder", Path("../moved")))
    assert elsewhere.location == DataConfig("folder", tmp_path / "moved")
    beside = open_data(DataConfig("moved", Path("..")))
    assert beside.location == DataConfig(str(tmp_path / "moved"))
    (tmp_path / "moved").rename(tmp_path / "gone")
    assert "pass --data-dir" in refused(elsewhere)


def test_an_unreadable_image_goes_by_its_name(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, for tests may run as root, who may read everything."""
    from hadaptive.data.sources import FileSource

    data = open_at(pets)
    name, content = data.manifest.names("test")[0], FileSource.content

    def damaged(self: FileSource, index: int) -> bytes:
        if self.paths[index] == name:
            raise OSError(5, "Input/output error")
        return content(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(FileSource, "content", damaged)
        assert [len(again(data, exact=True).parts[part]) for part in PARTS] == [43, 5, 12]
        then = open_at(pets)
    assert sorted(then.manifest.names("test")) == sorted(data.manifest.names("test"))
    assert [entry.name for entry in then.manifest.entries if not entry.digest] == [name]
    assert everything(again(then, exact=True)) == everything(then)
    overwrite(pets / name, file_of(then, "train"))
    assert len(again(then).test or ()) == 11


@pytest.mark.parametrize("kind", ["tar", "parts"])
def test_tar_files(kind: str, pets: Path, parted: Path, tmp_path: Path) -> None:
    folder, path = (pets if kind == "tar" else parted), tmp_path / "d.tar"
    data = open_at(pack(folder, path, "d"))
    before = everything(data)
    assert everything(again(data, exact=True)) == before
    picture(0, 99).save(folder / ("cat" if kind == "tar" else "train/cat") / "0a.png")
    pack(folder, path, "d")
    assert everything(again(data, exact=True)) == before
    assert "1 image is new since" in again(data).notes[0]
    data.manifest.save(tmp_path / "split.csv")
    wider = everything(open_at(path, split=tmp_path))
    assert {part: set(kept) >= set(before[part]) for part, kept in wider.items()} == dict.fromkeys(PARTS, True)
    for path_of_one in sorted(folder.rglob("[1-9].png" if kind == "tar" else "t*.png"))[:4]:
        path_of_one.unlink()
    pack(folder, path, "other-prefix")
    assert {
        part: set(kept) <= set(before[part]) for part, kept in everything(again(data)).items()
    } == dict.fromkeys(PARTS, True)
    assert "4 images are missing" in again(data).notes[0]


def test_a_tar_file_with_a_name_twice(tmp_path: Path) -> None:
    pets = fill(tmp_path / "pets", {"cat": 5, "dog": 5})
    path = pack(pets, tmp_path / "d.tar")
    with tarfile.open(path, "a") as tar:
        overwrite(pets / "cat" / "0.png", 5)
        tar.add(pets / "cat" / "0.png", arcname="cat/0.png")
    data = open_at(path)
    assert len(set(data.manifest.names_of_all)) == 11
    assert everything(again(data, exact=True)) == everything(data)


def test_named_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_at("fashion-mnist", save_fashion_mnist(tmp_path / "fm", 60, 20))
    assert data.manifest.names("test")[3] == "fashion-mnist test #3"
    assert everything(again(data, exact=True)) == everything(data)
    digits = open_at("digits")
    assert everything(again(digits, exact=True)) == everything(digits)
    save_fashion_mnist(tmp_path / "other", 60, 20)
    read_idx = named.read_idx

    def other(path: Path) -> np.ndarray:
        array = read_idx(path)
        return array if array.ndim == 1 or "t10k" not in path.name else 255 - array

    monkeypatch.setattr(named, "read_idx", other)
    assert "20 have other contents" in refused(data, exact=True)
    assert "20 images have other contents" in again(data).notes[0]
    again(data, exact=True, needs=("train", "validation"))
    shutil.rmtree(tmp_path / "fm")
    assert str(tmp_path / "fm") in refused(data)
    assert "--data-dir" in refused(data)
