"""The first division of a data set, and the file that keeps it."""

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from folders import (
    PARTS,
    again,
    contents,
    everything,
    file_of,
    fill,
    open_at,
    pack,
    picture,
    refused,
    say,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from test_data_sources import save_fashion_mnist

from hadaptive.data import DataConfig, Manifest, open_data
from hadaptive.data.draw import Sizing, choose, choose_apart, choose_each
from hadaptive.data.manifest import digest_of
from hadaptive.errors import UserError

# -- the first division -----------------------------------------------------------------------------------------

# Number of images and digest of pixels and labels in order, of every part, as drawn before there were manifests.
DRAWN = {
    "digits": [(1293, "5fb187995796"), (144, "2aa0725d5b35"), (360, "eff19ade6c90")],
    "digits-seed": [(1293, "7726829ad666"), (144, "e369d7bdf0a2"), (360, "eff19ade6c90")],
    "digits-200": [(200, "a176224fbfe5"), (144, "2aa0725d5b35"), (360, "eff19ade6c90")],
    "fashion": [(360, "c960e4cbbdf0"), (40, "f9127c0a0e13"), (100, "e1146caf4408")],
    "fashion-100": [(100, "94af6f32d2fd"), (20, "63ec838c8639"), (100, "e1146caf4408")],
    "folder": [(36, "c12b58b4fb7a"), (4, "ddbbbbfd76b5"), (10, "311a924f11e7")],
    "folder-20": [(20, "64d21a9a13fd"), (4, "ea06c91865cb"), (10, "23089e69d1de")],
    "uneven": [(46, "b7defc07654d"), (11, "19e11470247e"), (14, "fd5f46fadfcf")],
    "parts": [(27, "e88b2cecc4b7"), (3, "469b4924bd25"), (7, "9468532b4cf2")],
    "tar": [(36, "c12b58b4fb7a"), (4, "ddbbbbfd76b5"), (10, "311a924f11e7")],
}


@pytest.mark.parametrize("before", [False, True], ids=["new", "before-manifests"])
@pytest.mark.parametrize("name", DRAWN)
def test_draws_are_those_of_older_versions(name: str, before: bool, tmp_path: Path) -> None:
    counts = {"cat10": 20, "cat9": 20, "dog": 10}
    if name.startswith("fashion"):
        save_fashion_mnist(tmp_path, 400, 100)
    elif name.startswith("folder"):
        fill(tmp_path, counts)
    elif name == "uneven":
        fill(tmp_path, {"a": 37, "b": 11, "c": 23})
    elif name == "parts":
        fill(tmp_path / "train", {"a": 15, "b": 15})
        fill(tmp_path / "test", {"a": 4, "b": 3})
    tar = pack(fill(tmp_path / "d", counts), tmp_path / "d.tar") if name == "tar" else tmp_path
    config = {
        "digits": DataConfig("digits"),
        "digits-seed": DataConfig("digits", data_seed=3),
        "digits-200": DataConfig("digits", train_size=200),
        "fashion": DataConfig("fashion-mnist", tmp_path),
        "fashion-100": DataConfig("fashion-mnist", tmp_path, val_fraction=1 / 20, data_seed=5, train_size=100),
        "folder": DataConfig(str(tmp_path)),
        "folder-20": DataConfig(str(tmp_path), data_seed=4, train_size=20),
        "uneven": DataConfig(str(tmp_path), data_seed=1, val_fraction=0.2),
        "parts": DataConfig(str(tmp_path)),
        "tar": DataConfig(str(tar)),
    }[name]
    data = open_data(config, drawn_before_manifests=before)
    found = []
    for part in PARTS:
        digest = hashlib.blake2b(digest_size=6)
        source = data.parts[part]
        for i in range(len(source)):
            image, target = source.read(i)
            digest.update(image.tobytes() + bytes([target]))
        found.append((len(source), digest.hexdigest()))
    assert found == DRAWN[name]
    assert everything(again(data)) == everything(data)


@settings(deadline=None, max_examples=300)
@given(
    targets=st.lists(st.integers(0, 6), min_size=2, max_size=60),
    fraction=st.floats(0.05, 0.5),
    seed=st.integers(0, 100),
)
def test_no_class_is_left_out(targets: list[int], fraction: float, seed: int) -> None:
    labels = np.array(targets, np.int64)
    size = max(1, round(fraction * len(labels)))
    held, plain = choose_each(labels, size, seed), choose(labels, size, seed)
    for label in set(targets):
        count = targets.count(label)
        assert held[labels == label].any() or count == 1
        assert not held[labels == label].all() or (count == 1 or plain[labels == label].all())
        assert abs(held[labels == label].sum() - count * size / len(targets)) < 1
    if all(plain[labels == label].any() or targets.count(label) == 1 for label in targets):
        assert np.array_equal(held, plain)
    assert held.sum() >= size


@settings(deadline=None, max_examples=200)
@given(
    images=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([*"abcdefgh", ""])), min_size=4, max_size=40),
    seed=st.integers(0, 100),
)
def test_copies_stay_together(images: list[tuple[int, str]], seed: int) -> None:
    labels, digests = np.array([label for label, _ in images]), [digest for _, digest in images]
    sizes = []

    class Third(Sizing):
        def __call__(self, count: int, files: int | None = None) -> int:
            sizes.append((count, files))
            return count // 3

    held = choose_apart(labels, digests, Third(1 / 3), seed)
    assert sizes == [(len(set(digests) - {""}) + digests.count(""), len(digests))]
    for digest in set(digests) - {""}:
        assert len({bool(held[i]) for i, other in enumerate(digests) if other == digest}) == 1


def test_a_rare_class_is_tested_and_validated(tmp_path: Path) -> None:
    data = open_at(fill(tmp_path / "d", {"many": 60, "few": 3, "pair": 2, "one": 1}))
    held = {part: {data.classes[t] for t in source.targets} for part, source in data.parts.items()}
    assert held == {
        "train": {"many", "few", "pair", "one"},
        "validation": {"many", "few"},
        "test": {"many", "few", "pair"},
    }


def test_copies_in_a_folder_are_drawn_into_one_part(pets: Path) -> None:
    for number in range(20):
        for copy in range(2):
            shutil.copy(pets / "cat" / f"{number}.png", pets / "cat" / f"{number}-{copy}.png")
    data = open_at(pets)
    parts = {part: set(contents(source)) for part, source in data.parts.items()}
    assert not parts["train"] & parts["test"]
    assert not parts["train"] & parts["validation"]
    assert not parts["validation"] & parts["test"]
    assert not any("both in" in note for note in data.notes)


def test_copies_in_two_part_folders_are_said_and_left(parted: Path) -> None:
    shutil.copy(parted / "train" / "cat" / "train3.png", parted / "test" / "cat" / "x.png")
    data = open_at(parted)
    assert len(data.test or ()) == 11
    said = [note for note in data.notes if "both in" in note]
    assert len(said) == 1
    assert said[0].startswith("1 image is both in ")
    assert "train/cat/train3.png, test/cat/x.png" in said[0]


def test_a_folder_of_copies_says_why_it_cannot_be_divided(tmp_path: Path) -> None:
    pets = fill(tmp_path / "d", {"cat": 1, "dog": 1})
    for name, copies in (("cat", 19), ("dog", 9)):
        for copy in range(copies):
            shutil.copy(pets / name / "0.png", pets / name / f"copy{copy}.png")
    assert say(pets).startswith(
        "30 images are exact copies of 2, and test_fraction 0.2 of 2 images would leave a part without any: "
    )
    fewer = fill(tmp_path / "fewer", {"cat": 1, "dog": 1})
    assert say(fewer).startswith("test_fraction 0.2 of 2 images would leave a part without any: ")


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar"])
@pytest.mark.parametrize("other", ["split.csv", "model.json", "space.json"])
def test_runs_within_the_data_are_no_classes(pets: Path, other: str, packed: bool) -> None:
    """`cd pets; hadaptive train --data .` writes pets/runs/..., with curves.png in it."""
    before = open_at(pets)
    for run in ("runs/first", "runs/deeper/second", "cat/third", "fourth"):
        for folder in (pets / run, pets / run / "export"):
            folder.mkdir(parents=True)
            picture(7, len(run)).save(folder / "curves.png")
        for name in ("config.json", other):
            (pets / run / name).write_text("{}", encoding="utf-8")
    place = pack(pets, pets.parent / "pets.tar") if packed else pets
    data = open_at(place)
    assert data.classes == ["cat", "dog", "fox"]
    assert data.manifest.fingerprint == before.manifest.fingerprint
    said = [note for note in data.notes if "passed over" in note]
    assert len(said) == 1
    assert said[0].startswith("4 folders of runs are passed over: ")
    picture(7, 9).save(pets / "runs" / "1.png")
    (pets / "fourth" / other).unlink()
    place = pack(pets, pets.parent / "pets.tar") if packed else pets
    assert open_at(place).classes == ["cat", "dog", "fourth", "fox", "runs"]
    (pets / "empty").mkdir()
    if not packed:
        assert "empty holds no images" in say(pets)


def test_what_a_manifest_says(pets: Path, tmp_path: Path) -> None:
    data = open_at(pets, train_size=30)
    manifest = data.manifest
    assert manifest.counts == {"train": 30, "validation": 5, "test": 12, "unused": 13}
    for entry in manifest.entries:
        assert (pets / entry.name).parent.name == manifest.classes[entry.label]
        assert entry.digest == digest_of((pets / entry.name).read_bytes())
        assert entry.size == (pets / entry.name).stat().st_size
    manifest.save(tmp_path / "split.csv")
    assert manifest.dumps().encode() == (tmp_path / "split.csv").read_bytes()
    for loaded in (
        Manifest.load(tmp_path / "split.csv"),
        Manifest.load(tmp_path),
        Manifest.loads(manifest.dumps()),
    ):
        assert loaded.earlier is None
        assert loaded.classes == manifest.classes
        assert list(loaded.entries) == list(manifest.entries)
        assert loaded.fingerprint == manifest.fingerprint
    moved = open_at(shutil.move(pets, tmp_path / "elsewhere"), train_size=30)
    assert moved.manifest.fingerprint == manifest.fingerprint
    assert open_at(tmp_path / "elsewhere", train_size=31).manifest.fingerprint != manifest.fingerprint
    assert open_at(tmp_path / "elsewhere", train_size=30, data_seed=1).manifest.fingerprint != manifest.fingerprint
    (tmp_path / "elsewhere" / "cat").rename(tmp_path / "elsewhere" / "cut")
    assert open_at(tmp_path / "elsewhere", train_size=30).manifest.fingerprint != manifest.fingerprint


def test_files_that_are_no_manifest(pets: Path, tmp_path: Path) -> None:
    def message(path: Path) -> str:
        with pytest.raises(UserError) as caught:
            Manifest.load(path)
        return str(caught.value)

    assert "check the path" in message(tmp_path / "none.csv")
    assert "has no split.csv" in message(tmp_path)
    path = tmp_path / "split.csv"
    open_at(pets).manifest.save(path)
    whole = path.read_bytes()
    with pytest.raises(UserError, match="the division in x is damaged"):
        Manifest.loads(whole.decode().replace("train,", "test,", 1), "the division in x")
    with pytest.raises(UserError, match="this is not a division"):
        Manifest.loads("")
    for damaged in (
        whole[:-1000],
        whole[:-3],
        whole.replace(b"train,", b"test,", 1),
        whole[: len(whole) // 2],
        whole * 2,
    ):
        path.write_bytes(damaged)
        assert "damaged" in message(path)
    for other in (b"", b"a,b\n1,2\n", b"\xff\xfe\x00"):
        path.write_bytes(other)
        assert "is not a division of images" in message(path)


@pytest.mark.parametrize(
    "name",
    [
        b"\xff\xfe.png",
        "größe-雪-🦊.png".encode(),
        b"two\nlines.png",
        b"return\r.png",
        b"a\r\nend,0.png",
        b'"quoted", and more.png',
        b"  spaces before.png",
        b"'=1+1.png",
        b"back\\slash\\\\udcff\\udcff.png",
    ],
    ids=ascii,
)
def test_names_of_all_kinds(name: bytes, pets: Path, tmp_path: Path) -> None:
    data = open_at(pets, test_fraction=0.5)
    old = file_of(data, "test")
    os.rename(old, os.fsencode(old.parent) + b"/" + name)
    data = open_at(pets, test_fraction=0.5)
    data.manifest.save(tmp_path / "split.csv")
    loaded = Manifest.load(tmp_path)
    assert os.fsdecode(old.parent.name.encode() + b"/" + name) in loaded.names_of_all
    assert list(loaded.entries) == list(data.manifest.entries)
    save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors", {"manifest": data.manifest.dumps()})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        travelled = Manifest.loads(file.metadata()["manifest"])
    assert list(travelled.entries) == list(data.manifest.entries)
    before = everything(data)
    assert everything(open_data(data.location, loaded, exact=True)) == before
    os.rename(os.fsencode(old.parent) + b"/" + name, os.fsencode(old.parent) + b"/2" + name)
    said = open_data(data.location, loaded)
    assert everything(said) == before
    assert "\n".join(said.notes).encode().count(b"\n") == len(said.notes) - 1
    os.remove(os.fsencode(old.parent) + b"/2" + name)
    assert "1 is missing" in refused(data, exact=True)
