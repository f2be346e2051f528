"""Runs that start from runs that started from others: no image is forgotten that weights have learned from."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import (
    PARTS,
    again,
    attempt,
    contents,
    descended,
    everything,
    file_of,
    fill,
    open_at,
    overwrite,
    picture,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from hadaptive.data import DataConfig, Manifest, open_data
from hadaptive.errors import UserError

PARTS_AND_UNUSED = (*PARTS, "unused")


def recoded(manifest: Manifest, folder: Path, **parts: str) -> Path:
    """Save a manifest in which some parts change their names."""
    numbers = [PARTS_AND_UNUSED.index(parts.get(part, part)) for part in PARTS_AND_UNUSED]
    codes = np.array(numbers, np.int8)[manifest.codes]
    replace(manifest, codes=codes, earlier=None).save(folder / "split.csv")
    return folder


def fill_others(root: Path) -> Path:
    """As `pets`, but fewer and other images."""
    for target, name in enumerate(("cat", "dog", "fox")):
        (root / name).mkdir(parents=True)
        for number in range(10):
            picture(10 + target, number).save(root / name / f"other{number}.png")
    return root


def test_images_that_come_back_are_in_their_parts_of_then(pets: Path, tmp_path: Path) -> None:
    first = open_at(pets)
    before = {part: sorted(c) for part, c in everything(first).items()}
    moved = [path for path in sorted(pets.rglob("*.png")) if int(path.stem) % 2]
    for path in moved:
        (tmp_path / "away" / path.parent.name).mkdir(parents=True, exist_ok=True)
        path.rename(tmp_path / "away" / path.parent.name / path.name)
    second = descended(first, pets)
    earlier = second.manifest.earlier
    assert earlier is not None
    assert sorted(earlier.names_of_all) == [f"{path.parent.name}/{path.name}" for path in moved]
    for entry in earlier.entries:
        assert entry.name in first.manifest.names(entry.part)
        assert earlier.classes[entry.label] == entry.name.split("/")[0]
    assert len(second.manifest) == sum(second.manifest.counts.values()) == 30
    assert set(second.parts) == set(PARTS)
    assert again(second, exact=True).notes == []
    for path in moved:
        (tmp_path / "away" / path.parent.name / path.name).rename(path.with_name(f"back-{path.name}"))
    third = descended(second, pets)
    assert {part: sorted(c) for part, c in everything(third).items()} == before
    assert third.notes == ["60 images keep the parts that an older division gave them"]
    assert third.manifest.earlier is None
    assert third.manifest.fingerprint == first.manifest.fingerprint


def test_a_run_on_other_images_in_between(pets: Path, tmp_path: Path) -> None:
    first, plain = open_at(pets), open_at(fill_others(tmp_path / "others"))
    between = descended(first, tmp_path / "others")
    assert everything(between) == everything(plain)
    assert between.notes == plain.notes
    assert between.manifest.counts == plain.manifest.counts
    assert between.manifest.fingerprint == plain.manifest.fingerprint
    last = descended(between, pets, data_seed=3)
    assert everything(last) == everything(first)
    assert set(contents(open_at(pets, data_seed=3).test)) != set(contents(first.test))
    assert last.manifest.earlier is not None
    assert last.manifest.earlier.counts == plain.manifest.counts


def test_what_a_file_held_before_it_was_changed_is_remembered(pets: Path, tmp_path: Path) -> None:
    first = open_at(pets)
    name, path = first.manifest.names("test")[0], file_of(first, "test")
    shutil.copy(path, tmp_path / "old.png")
    overwrite(path, 7)
    second = descended(first, pets)
    assert name in second.manifest.names("test")
    shutil.copy(tmp_path / "old.png", pets / "cat" / "old.png")
    third = descended(second, pets)
    assert {"cat/old.png", name} <= set(third.manifest.names("test"))


def test_a_division_and_weights_that_know_different_images(pets: Path, tmp_path: Path) -> None:
    weights, division = open_at(pets), open_at(fill_others(tmp_path / "others"))
    before = {part: {*contents(weights.parts[part]), *contents(division.parts[part])} for part in PARTS}
    division.manifest.save(tmp_path / "split.csv")
    shutil.copytree(tmp_path / "others", pets, dirs_exist_ok=True)
    both = descended(weights, pets, split=tmp_path)
    assert {part: set(c) for part, c in everything(both).items()} == before
    weights_only = fill(tmp_path / "pets-only", {"cat": 20, "dog": 20, "fox": 20})
    with pytest.raises(UserError, match="not one image of the division"):
        descended(weights, weights_only, split=tmp_path)
    others_only = descended(weights, tmp_path / "others", split=tmp_path)
    assert others_only.manifest.earlier is not None
    assert others_only.manifest.earlier.counts == weights.manifest.counts


def test_of_two_memories_the_one_that_learned_counts(pets: Path, tmp_path: Path) -> None:
    weights, division = open_at(pets, data_seed=5), open_at(pets)
    division.manifest.save(tmp_path / "split.csv")
    place = fill_others(tmp_path / "others")
    both = sorted({*weights.manifest.names("train")} & {*division.manifest.names("train")})
    shutil.copy(pets / both[0], place / "cat" / "common.png")
    newer = descended(weights, place, split=tmp_path)
    assert newer.manifest.earlier is not None
    assert len(newer.manifest.earlier) == 59
    for entry in newer.manifest.earlier.entries:
        parts = [m.names(p) for m in (weights.manifest, division.manifest) for p in (entry.part,)]
        assert any(entry.name in names for names in parts)
        if entry.part == "test":
            assert all(entry.name in names for names in parts)
        if entry.part == "validation":
            assert not any(entry.name in d.manifest.names("train") for d in (weights, division))


def test_weights_that_were_chosen_by_test_images(pets: Path, tmp_path: Path) -> None:
    older = open_at(pets)
    split = recoded(older.manifest, tmp_path, validation="test", test="validation")
    with pytest.raises(UserError, match=r"--split puts 5 images into the test part .* were chosen by"):
        descended(older, pets, split=split)
    first = descended(older, fill_others(tmp_path / "others"))  # they were so a generation ago
    with pytest.raises(UserError, match="--split puts 5 images"):
        descended(first, pets, split=split)


def test_what_was_learned_is_not_forgotten_over_train_size(pets: Path, tmp_path: Path) -> None:
    first = open_at(pets)
    second = descended(first, pets, train_size=10)
    assert second.manifest.counts["unused"] == 33
    split = recoded(second.manifest, tmp_path, unused="test", test="train")
    with pytest.raises(UserError, match="--split puts 33 images"):
        descended(second, pets, split=split)
    never = open_at(pets, train_size=10)
    assert never.manifest.earlier is None
    assert len(descended(never, pets, split=recoded(never.manifest, tmp_path, unused="test")).test or ()) == 45


def test_an_unused_copy_of_a_test_image_stays_held_out_while_it_is_away(parted: Path, tmp_path: Path) -> None:
    """A memory that keeps one part of each image forgot that it was tested."""
    unused = open_at(parted, train_size=4).manifest.names("unused")[0]
    tested = next(parted.glob("test/cat/*.png"))
    shutil.copy(tested, parted / unused)
    first = open_at(parted, train_size=4)
    assert unused in first.manifest.names("unused")
    away = [path.rename(tmp_path / f"away{i}.png") for i, path in enumerate((tested, parted / unused))]
    second = descended(first, parted)
    away[1].rename(parted / unused)
    assert unused in descended(second, parted).manifest.names("test")


@settings(deadline=None, max_examples=30)
@given(
    generations=st.lists(
        st.tuples(st.sets(st.integers(0, 29), min_size=5), st.sampled_from([None, 3]), st.integers(0, 2)),
        min_size=2,
        max_size=5,
    ),
    renamed=st.booleans(),
)
def test_no_number_of_runs_turns_training_into_testing(generations: list[Any], renamed: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        part_of: dict[str, str] = {}
        known: Manifest | None = None
        for number, (images, train_size, seed) in enumerate(generations):
            root = Path(folder) / str(number)
            for image in images:
                (root / f"class{image % 3}").mkdir(parents=True, exist_ok=True)
                name = image * (1 + number * renamed)
                picture(image % 3, image).save(root / f"class{image % 3}" / f"{name}.png")
            config = DataConfig(str(root), train_size=train_size, data_seed=seed, val_fraction=0.2)
            sentences = "part is here", "are left besides", "only one class", "without any"
            data = attempt(lambda config=config, known=known: open_data(config, known=known), *sentences)
            if data is None:
                continue
            for entry in data.manifest.entries:
                part = "train" if entry.part == "unused" else entry.part
                assert part_of.setdefault(entry.digest, part) == part
            known = Manifest.loads(data.manifest.dumps())
            assert set(part_of) == {*known.digests, *(known.earlier.digests if known.earlier else ())}
