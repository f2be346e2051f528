"""Images that belong together are in one part, whatever says so, and stay there."""

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from folders import descended, everything, fill, open_at, say
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hadaptive.data import ImageData, Manifest
from hadaptive.data.groups import choose_grouped, units
from hadaptive.errors import UserError


@pytest.fixture
def wards(tmp_path: Path) -> Path:
    """Two classes of pictures of eight patients, six of each, who are in both."""
    rng = np.random.default_rng(0)
    for name in ("ill", "well"):
        (tmp_path / "wards" / name).mkdir(parents=True)
        for number in range(24):
            pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            path = tmp_path / f"wards/{name}/patient{number // 3}_{number}.png"
            Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC).save(path)
    return tmp_path / "wards"


def parts_of(data: ImageData) -> dict[str, set[str]]:
    """The parts of each group of a manifest, as it is read again."""
    manifest = Manifest.loads(data.manifest.dumps())
    assert manifest.groups is not None
    parts: dict[str, set[str]] = defaultdict(set)
    for entry, group in zip(manifest.entries, manifest.groups, strict=True):
        if group:
            parts[group].add(entry.part)
    return parts


def straddling(data: ImageData) -> list[str]:
    return [group for group, parts in parts_of(data).items() if len(parts) > 1]


# ---------------------------------------------------------------- the choice


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_unit_is_ever_divided(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 40))
    names = st.sampled_from(["", *map(str, range(12))])
    groups = data.draw(st.lists(names, min_size=count, max_size=count))
    digests = data.draw(st.lists(names, min_size=count, max_size=count))
    targets = np.array(data.draw(st.lists(st.integers(0, 3), min_size=count, max_size=count)))
    fraction, seed = data.draw(st.floats(0.01, 0.99)), data.draw(st.integers(0, 2**63 - 1))
    unit = units(groups, digests)
    for names_of in (groups, digests):
        for name in {*names_of} - {""}:
            assert len({int(u) for u, of in zip(unit, names_of, strict=True) if of == name}) == 1
    if len({*unit.tolist()}) == 1:
        with pytest.raises(UserError, match="hang together by --group-by"):
            choose_grouped(targets, unit, fraction, seed, "val_fraction")
        return
    held = choose_grouped(targets, unit, fraction, seed, "val_fraction")
    assert 0 < held.sum() < count
    assert not {*unit[held].tolist()} & {*unit[~held].tolist()}
    assert (held == choose_grouped(targets, unit, fraction, seed, "val_fraction")).all()


def test_classes_give_their_shares() -> None:
    targets = np.repeat([0, 1], [300, 100])
    held = choose_grouped(targets, np.arange(400) // 4, 0.2, 0, "test_fraction")
    assert [int(held[targets == label].sum()) for label in (0, 1)] == [60, 20]


# ---------------------------------------------------------------- what says so


def test_by_a_pattern(wards: Path) -> None:
    data = open_at(wards, group_by=r"(patient\d+)_")
    assert straddling(data) == []
    assert len(parts_of(data)) == 8
    assert "48 images are in 8 groups, each of which is kept in one part" in data.notes
    assert set(data.manifest.counts) == {"train", "validation", "test"}
    whole = open_at(wards, group_by=r"patient\d+_")  # all that is matched
    assert everything(whole) == everything(data)
    assert straddling(open_at(wards, group_by=r"(patient\d+)_", data_seed=5)) == []


def test_by_a_column(wards: Path) -> None:
    with open(wards / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "Patient id"])
        for path in wards.rglob("*.png"):
            patient = path.name.partition("_")[0]
            writer.writerow([path.relative_to(wards), path.parent.name, "" if patient == "patient7" else patient])
    data = open_at(wards / "labels.csv", group_by="patient id")
    assert straddling(data) == []
    assert len(parts_of(data)) == 7
    assert any("6 images have no group and may be in any part" in note for note in data.notes)


def test_by_what_looks_alike(wards: Path) -> None:
    """Copies of another size and kind follow what they are copies of, into the class of others too."""
    for number, path in enumerate(sorted(wards.rglob("*.png"))[::3]):
        with Image.open(path) as image:
            image.resize((80, 60)).save(wards / f"well/again{number}.jpg", quality=60)
    data = open_at(wards, group_by="duplicates")
    assert straddling(data) == []
    assert len(parts_of(data)) == 16
    assert any("32 images are in 16 groups" in note for note in data.notes)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("(patient", "--group-by '(patient' is no regular expression: missing ), unterminated subpattern"),
        ("doctor", "--group-by 'doctor' fits no image's name; names are such as ill/patient0_0.png"),
        ("patient", "all 48 images hang together by --group-by"),
    ],
)
def test_a_rule_that_says_nothing(rule: str, sentence: str, wards: Path) -> None:
    assert sentence in say(wards, group_by=rule)


def test_a_class_that_is_not_everywhere_is_said(wards: Path) -> None:
    data = open_at(wards, group_by=r"^(ill|well/patient[0-3])")
    notes = [note for note in data.notes if note.startswith("the class ill is not in ")]
    assert len(notes) == 1
    assert notes[0].endswith("its images are in 1 group")
    assert straddling(data) == []


def test_folders_that_contradict_the_groups_are_said(parted: Path) -> None:
    (parted / "test/cat/test0.png").rename(parted / "test/cat/train3.png")
    data = open_at(parted, group_by=r"(cat/train3)")
    note = next(note for note in data.notes if note.startswith("1 group is in more than one part, as your data"))
    assert note.endswith("test/cat/train3.png in test")


# ---------------------------------------------------------------- what comes later


def picture_at(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((60, 50), Image.Resampling.BICUBIC).save(path)


def test_a_new_image_goes_where_its_group_is(wards: Path, tmp_path: Path) -> None:
    data = open_at(wards, group_by=r"(patient\d+)_")
    (tmp_path / "split.csv").write_text(data.manifest.dumps(), encoding="utf-8", newline="")
    home = {group: next(iter(parts)) for group, parts in parts_of(data).items()}
    for patient in range(8):
        picture_at(wards / f"ill/patient{patient}_new.png", 100 + patient)
    for number in range(12):
        picture_at(wards / f"well/patient{20 + number // 6}_{number}.png", 200 + number)
    gone = next(group for group, part in home.items() if part == "test")
    for path in wards.rglob(f"{gone}_[0-9]*.png"):  # nobody of that patient is left but the new image
        path.unlink()
    for grown in (open_at(wards, split=tmp_path / "split.csv"), descended(data, wards)):
        assert straddling(grown) == []
        found = {group: next(iter(parts)) for group, parts in parts_of(grown).items()}
        assert {group: found[group] for group in home} == home
        assert {"patient20", "patient21"} <= {*found}
        assert any("8 new images go where others of the same group are" in note for note in grown.notes)


def test_a_new_near_duplicate_goes_where_the_first_is(wards: Path, tmp_path: Path) -> None:
    data = open_at(wards, group_by="duplicates")
    (tmp_path / "split.csv").write_text(data.manifest.dumps(), encoding="utf-8", newline="")
    tested = wards / data.manifest.names("test")[0]
    with Image.open(tested) as image:
        image.resize((80, 60)).save(tested.with_suffix(".jpg"), quality=60)
    grown = open_at(wards, split=tmp_path / "split.csv")
    assert tested.with_suffix(".jpg").relative_to(wards).as_posix() in grown.manifest.names("test")


def test_an_older_rule_that_fits_nothing_new_is_said(wards: Path, tmp_path: Path) -> None:
    data = open_at(wards, group_by=r"(patient\d+)_")
    for number, path in enumerate([*wards.rglob("*.png")]):
        path.rename(path.with_name(f"{number}.png"))
    grown = descended(data, wards)
    assert any("no image fits --group-by (patient\\d+)_ of the older division" in note for note in grown.notes)


def test_a_column_is_no_rule_for_a_folder(wards: Path) -> None:
    rows = [f"{path.relative_to(wards)},{path.parent.name},{path.name[:8]}" for path in wards.rglob("*.png")]
    (wards / "labels.csv").write_text("\n".join(["file,label,(who", *rows]), encoding="utf-8")
    data = open_at(wards / "labels.csv", group_by="(who")
    assert straddling(data) == []
    (wards / "labels.csv").unlink()
    grown = descended(data, wards)
    assert any("no image fits --group-by (who of the older division" in note for note in grown.notes)


def test_images_without_groups_are_drawn_as_ever(pets: Path) -> None:
    assert "group" not in open_at(pets).manifest.dumps()


def test_a_grouped_folder_grows(tmp_path: Path) -> None:
    """One image more, which is alone in its group, is trained on."""
    root = fill(tmp_path / "pets", {"cat": 20, "dog": 20})
    data = open_at(root, group_by=r"/(1?\d)")
    (root / "cat/77.png").write_bytes((root / "cat/1.png").read_bytes() + b"more")
    grown = descended(data, root)
    assert len(grown.manifest) == 41


def test_a_copy_without_a_group_follows_the_one_that_has_it(wards: Path) -> None:
    rule = {"group_by": r"(patient\d+)_"}
    first = open_at(wards, **rule)
    (wards.parent / "split.csv").write_text(first.manifest.dumps(), encoding="utf-8", newline="")
    for number in range(8):
        pixels = np.random.default_rng(number + 50).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        for name in (f"patient{number}_new.png", f"stray{number}.png"):
            Image.fromarray(pixels).save(wards / "ill" / name)
    second = open_at(wards, split=wards.parent / "split.csv", **rule)
    parts: dict[str, set[str]] = defaultdict(set)
    for entry in second.manifest.entries:
        parts[entry.digest].add(entry.part)
    assert len(parts) == 48 + 8
    assert all(len(of) == 1 for of in parts.values())
    assert not straddling(second)
