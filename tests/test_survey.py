"""What ``hadaptive data`` says of a folder as people have them, and what it leaves."""

import csv
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from folders import open_at
from PIL import Image

from hadaptive import packages
from hadaptive.cli import main
from hadaptive.data.alike import alike, look
from hadaptive.data.config import DataConfig
from hadaptive.data.listing import Listing
from hadaptive.data.places import find
from hadaptive.survey.report import Survey, survey


def photo(seed: int, size: tuple[int, int] = (96, 80)) -> Image.Image:
    """A picture that is like no other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def mess(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of two words in two parts, uneven, with copies, look-alikes, leaks and what cannot be read."""
    root = tmp_path_factory.mktemp("mess") / "mess"
    seed = 0
    for place, count in (
        ("train/black cat", 30),
        ("train/big dog", 5),
        ("test/black cat", 6),
        ("test/big dog", 3),
    ):
        (root / place).mkdir(parents=True)
        for number in range(count):
            photo(seed := seed + 1, (96 + number, 80)).save(root / place / f"{number}.png")
    cats, dogs = root / "train/black cat", root / "train/big dog"
    (cats / "copy.png").write_bytes((cats / "3.png").read_bytes())
    (root / "test/black cat/leak.png").write_bytes((cats / "5.png").read_bytes())
    with Image.open(cats / "0.png") as image:
        image.resize((150, 120)).save(dogs / "again.jpg", quality=50)
    with Image.open(dogs / "1.png") as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # shown as it was
        turned.save(dogs / "turned.jpg", exif=exif, quality=95)
    (dogs / "empty.png").write_bytes(b"")
    (dogs / "empty2.png").write_bytes(b"")  # no copy worth a word
    for name in ("1.png", "again.jpg"):
        content = (dogs / name).read_bytes()
        (dogs / f"cut-{name}").write_bytes(content[: len(content) // 2])
    (dogs / "text.png").write_text("no picture", encoding="utf-8")
    photo(500).convert("L").save(dogs / "grey.png")
    photo(501).convert("RGBA").save(dogs / "clear.png")
    photo(502).convert("P").save(dogs / "palette.gif")
    photo(503).convert("CMYK").save(dogs / "print.jpg")
    deep: Any = np.asarray(photo(504).convert("L")).astype(np.uint16) * 256
    Image.fromarray(deep).save(dogs / "deep.png")
    return root


def at(place: Path | str, **options: Any) -> Survey:
    return survey(Listing(find(DataConfig(str(place))).opened), **options)


# ---------------------------------------------------------------- what is found


@pytest.fixture(scope="module")
def found(mess: Path) -> Survey:
    return at(mess)


def test_figures(found: Survey) -> None:
    assert found.images == 58
    assert found.parts == {"train": 48, "test": 10}
    assert found.classes == {"big dog": {"train": 17, "test": 3}, "black cat": {"train": 31, "test": 7}}
    assert found.imbalance == 1.9
    assert found.sizes["width"][::2] == (96, 150)
    assert found.sizes["height"] == (80, 80, 120)
    assert found.modes == {"RGB": 48, "grey": 1, "RGB, transparent": 1, "palette": 1, "CMYK": 1, "16-bit grey": 1}
    assert found.formats == {"PNG": 49, "JPEG": 3, "GIF": 1}


def test_what_cannot_be_read_and_why(found: Survey) -> None:
    reasons = {Path(image).name: reason for image, _, reason in found.unreadable}
    assert {*reasons} == {"cut-1.png", "cut-again.jpg", "empty.png", "empty2.png", "text.png"}
    assert "truncated" in reasons["cut-1.png"]
    assert "truncated" in reasons["cut-again.jpg"]
    assert reasons["empty.png"] == "the file is empty"
    assert reasons["text.png"] == "it is not an image of a kind that Pillow reads"


def test_what_looks_alike(found: Survey) -> None:
    groups = {tuple(member.image for member in group.members): group for group in found.groups}
    assert {names: (g.kind, g.leaks, g.contradicts) for names, g in groups.items()} == {
        ("train/black cat/5.png", "test/black cat/leak.png"): ("exact", True, False),
        ("train/big dog/again.jpg", "train/black cat/0.png"): ("near", False, True),
        ("train/black cat/3.png", "train/black cat/copy.png"): ("exact", False, False),
        ("train/big dog/1.png", "train/big dog/turned.jpg"): ("near", False, False),
    }
    assert found.groups[0].leaks
    assert found.groups[1].contradicts
    assert found.groups[1].members[1].like == "train/big dog/again.jpg"


def test_the_same_of_a_tar_file_and_a_label_file(mess: Path, found: Survey, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "mess.tar", "w") as tar:
        tar.add(mess, arcname="mess")
    packed = at(tmp_path / "mess.tar").to_dict()
    text = json.dumps(found.to_dict())
    assert json.loads(json.dumps(packed).replace("mess/", "")) == json.loads(text)
    with open(mess.parent / "labels.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "label", "split"])
        for path in mess.rglob("*.*"):
            writer.writerow([path.relative_to(mess.parent), path.parent.name, path.parts[-3]])
    listed = at(mess.parent / "labels.csv").to_dict()
    assert json.loads(json.dumps(listed).replace("mess/", "")) == json.loads(text)


def test_memory_and_published_data() -> None:
    digits = at("digits")
    assert digits.images == 1797
    assert digits.formats == {"pixels": 1797}
    assert max(len(group.members) for group in digits.groups) < 10


def test_plain_pictures_are_not_all_alike(tmp_path: Path) -> None:
    """Those without anything on them have hashes that say nothing."""
    for name, colours in (("red", range(100, 200, 20)), ("blue", range(0, 100, 20))):
        (tmp_path / name).mkdir()
        for colour in colours:
            Image.new("RGB", (50, 50), (colour, 0, 0)).save(tmp_path / f"{name}/{colour}.png")
    assert at(tmp_path).groups == []


def test_images_are_joined_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(9):
            photo(number).save(tmp_path / name / f"{number}.jpg", quality=95 if name == "a" else 60)
    listing = Listing(find(DataConfig(str(tmp_path))).opened)
    looks = look(listing)
    whole = alike(looks)
    assert whole.groups.tolist() == [*range(9), *range(9)]
    monkeypatch.setattr("hadaptive.data.alike.BLOCK", 4)
    monkeypatch.setattr("hadaptive.data.alike.PAIRS", 1)
    blocks = alike(looks)
    for one, other in zip(vars(whole).values(), vars(blocks).values(), strict=True):
        assert (one == other).all()


# ---------------------------------------------------------------- the command


def test_tables_rows_and_a_sheet(
    mess: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", str(mess), "--csv", "suspects.csv", "--sheet", "suspects.png"]) == 0
    out = capsys.readouterr().out
    for said in (
        "58 (train 48, test 10)",
        "black cat │     38 │    31 │    7",
        "cannot be read: 5",
        "4 groups of images look alike: 2 of exact copies, 2 of suspected near-duplicates",
        "1 of them has different labels: look which is right",
        "1 of them is in more than one part, so that figures are too good: leave each in one part",
    ):
        assert said in out
    with open("suspects.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["leaks"] for row in rows] == ["1", "1", *"000000"]
    assert {row["image"]: row["like"] for row in rows}["test/black cat/leak.png"] == "train/black cat/5.png"
    with Image.open("suspects.png") as sheet:
        assert sheet.height > 155
    for flag, name in (("--csv", "suspects.csv"), ("--sheet", "suspects.png"), ("--csv", "no/where.csv")):
        assert main(["data", str(mess), flag, name]) == 1
    err = capsys.readouterr().err
    assert "suspects.csv exists already and is not overwritten: choose another --csv" in err
    assert "suspects.png exists already and is not overwritten: choose another --sheet" in err
    assert "there is no folder no to write where.csv into" in err


def test_json_is_one_line_of_it(mess: Path, found: Survey, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", str(mess), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.pop("data") == str(mess)
    assert document == json.loads(json.dumps(found.to_dict()))


def test_the_parts_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Near-duplicates that a run has in two parts, which exact copies never are; and images that it lacks."""
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(12):
            picture = photo(number + 50 * (name == "dog"))
            picture.save(tmp_path / f"pets/{name}/{number}.png")
            picture.save(tmp_path / f"pets/{name}/{number}-again.jpg", quality=60)
    data = open_at(tmp_path / "pets")
    (tmp_path / "split.csv").write_text(data.manifest.dumps(), encoding="utf-8", newline="")
    photo(1000).save(tmp_path / "pets/cat/new.png")
    flags = ["--split", str(tmp_path / "split.csv")]
    assert main(["data", str(tmp_path / "pets"), *flags, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parts"] == {**data.manifest.counts, "new": 1}
    leaks = [group for group in document["groups"] if group["leaks"]]
    assert leaks
    assert main(["data", str(tmp_path / "pets"), *flags]) == 0
    assert "figures are too good: train anew with --group-by duplicates" in capsys.readouterr().out
    grouped = open_at(tmp_path / "pets", group_by="duplicates")
    (tmp_path / "split.csv").write_text(grouped.manifest.dumps(), encoding="utf-8", newline="")
    assert main(["data", str(tmp_path / "pets"), *flags, "--json"]) == 0
    assert not any(group["leaks"] for group in json.loads(capsys.readouterr().out)["groups"])
    assert main(["data", "digits", *flags]) == 1
    assert "not one of these images is in the division of --split: check both" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("nowhere", "there is no data set 'nowhere'"),
        ("wds/shards", "wds/shards is a stream"),
        ("digits --label-column x", "--label-column has no effect here: only label files"),
        ("digits --split nowhere", "there is no division of images at nowhere"),
    ],
)
def test_mistakes(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", *words.split()]) == 1
    assert sentence in capsys.readouterr().err


def test_without_imagehash_only_copies_are_found(mess: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hadaptive.data.alike.obstacle", lambda module: "is not installed")
    found = at(mess)
    assert [group.kind for group in found.groups] == ["exact", "exact"]
    assert any('only exact copies are looked for: pip install "hadaptive[duplicates]"' in n for n in found.notes)
    assert packages.EXTRAS["duplicates"] == ("imagehash",)
