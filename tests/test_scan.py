"""Which files of a folder or a tar file count, in which order, and that nothing is left out without a word."""

import io
import json
import os
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from folders import again, everything, fill, names, open_at, pack, picture, say
from PIL import Image
from processes import run_python

from hadaptive.data import DataConfig, Manifest, heif, open_data, scan
from hadaptive.data.images import decode
from hadaptive.predict import find_images
from hadaptive.text import spelt

Opener = Callable[[Path], Path]  # from a folder to what is opened: itself, or a tar file of it


def as_tar(root: Path) -> Path:
    return pack(root, root.with_suffix(".tar"))


both = pytest.mark.parametrize("place", [lambda root: root, as_tar], ids=["folder", "tar"])


def listed(data: Any) -> list[str]:
    """The images of all parts, in the order in which the manifest has them."""
    return data.manifest.names_of_all


def line(notes: list[str]) -> str:
    """The one line about what was left out."""
    (said,) = [note for note in notes if note.startswith("left out: ")]
    return said


def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heif, "readable", lambda: False)


# -- what counts ------------------------------------------------------------------------------------------------


@both
def test_whatever_is_left_out_is_counted_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Opener
) -> None:
    no_heif(monkeypatch)
    root = fill(tmp_path / "data", {"a": 10, "b": 10})
    for number in range(40):
        (root / "a" / f"IMG_{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    for number in range(3):
        (root / "b" / f"notes{number}").write_text("BMW, P2 and other words")
        (root / "b" / f"words{number}.txt").write_text("")
    (root / "a" / "._0.png").write_bytes(b"mac")
    (root / ".cache").mkdir()
    for folder in ("@eaDir", "System Volume Information", "lost+found", "__MACOSX"):
        fill(root / "b" / folder, {"thumbs": 2})
    (root / "$RECYCLE.BIN").mkdir()
    (root / "a" / "Thumbs.db").write_bytes(b"x")
    (root / "a" / "gone.png").symlink_to("nowhere.png")
    data = open_at(place(root))
    assert data.classes == ["a", "b"]
    assert len(listed(data)) == 20
    said = line(data.notes)
    assert '40 .heic files (pip install "hadaptive[heic]" to read them)' in said
    assert "3 files without suffix that are no images" in said
    assert "3 .txt files" in said
    assert "2 hidden" in said
    assert "others" in said  # the rest, by number
    every = scan.scan_folder(root).all_left_out()
    assert sum(every.values()) == 40 + 3 + 3 + 2 + 5 + 1 + 1
    whole = scan.left_out(every, shown=99)
    for reason in ("1 @eaDir folder", "1 lost+found folder", "1 Thumbs.db file", "1 link to nothing"):
        assert reason in whole


def test_nothing_is_said_where_nothing_is_left_out(pets: Path) -> None:
    assert not [note for note in open_at(pets).notes if "left out" in note]


@both
def test_images_without_suffix_are_known_by_their_contents(tmp_path: Path, place: Opener) -> None:
    root = fill(tmp_path / "data", {"a": 6, "b": 6})
    for number, kind in enumerate(("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM")):
        picture(5, number).save(root / "a" / f"photo{number}", kind)
    picture(5, 99).save(root / "b" / "photo.1", "PNG")  # a number is no suffix
    data = open_at(place(root))
    assert len(listed(data)) == 20
    assert not [note for note in data.notes if "left out" in note]


@both
def test_photos_of_phones_are_read_with_the_extra(tmp_path: Path, place: Opener) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    root = fill(tmp_path / "data", {"a": 10, "b": 10})
    image = Image.new("RGB", (32, 16), (200, 30, 30))
    for path in (root / "a" / "x.heic", root / "b" / "y"):
        pillow_heif.from_pillow(image).save(str(path), format="HEIF")
    data = open_at(place(root))
    assert len(listed(data)) == 22
    code = "from pathlib import Path; from hadaptive.data import decode; import sys\n"
    code += "print(decode(Path(sys.argv[1]).read_bytes()).size)"
    assert run_python(code, str(root / "a" / "x.heic")).stdout.strip() == "(32, 16)"  # as a loader's worker begins


def test_a_phones_photo_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hadaptive.data.images.readable", lambda: False)
    no_heif(monkeypatch)
    with pytest.raises(OSError, match=r"hadaptive\[heic\]"):
        decode(b"\0\0\0\x18ftypheic" + bytes(20))
    (tmp_path / "data" / "b").mkdir(parents=True)
    fill(tmp_path / "data", {"a": 3})
    (tmp_path / "data" / "b" / "1.heic").write_bytes(b"")
    assert r"b holds no images: add some or remove it (left out: 1 .heic file (pip" in say(tmp_path / "data")
    monkeypatch.setattr(scan, "_avif", lambda: False)
    assert "pillow>=11.3" in scan.reason_against("x.avif", io.BytesIO).one  # pyright: ignore


@both
def test_classes_beside_the_training_folder_are_said(tmp_path: Path, place: Opener) -> None:
    root = fill(tmp_path / "data" / "train", {"a": 8, "b": 8}).parent
    fill(root, {"cats": 3})
    fill(root / "val", {"a": 2, "b": 2})
    picture(1, 1).save(root / "val" / "stray.png")
    picture(1, 2).save(root / "top.png")
    notes = open_at(place(root)).notes
    assert any("3 images lie beside" in note and "cats" in note for note in notes)
    assert any("1 images lie in" in note and "val outside" in note for note in notes)
    assert sum("outside its class folders" in note for note in notes) == 2


# -- order and links --------------------------------------------------------------------------------------------

ODD = ["1.png", "2.png", "3²a.png", "10.png", "10².png", "①.png", "٣.png", "x" + "9" * 200 + ".png"]


def test_order_is_natural_everywhere(tmp_path: Path) -> None:
    for number, name in enumerate(ODD):
        for target, kind in enumerate(("10²", "①", "2")):
            (tmp_path / "data" / kind).mkdir(parents=True, exist_ok=True)
            picture(target, number).save(tmp_path / "data" / kind / name)
    data = open_at(tmp_path / "data")
    packed = open_at(as_tar(tmp_path / "data"))
    assert data.classes == packed.classes == ["2", "10²", "①"]
    assert everything(data) == everything(packed)
    predicted = [str(path.relative_to(tmp_path / "data")) for path in find_images([tmp_path / "data"])[0]]
    images = sorted(scan.scan_folder(tmp_path / "data").all_images(), key=scan.order)
    assert predicted == [found.path for found in images]
    assert [Path(path).name for path in predicted[:5]][:2] == ["1.png", "2.png"]
    assert predicted.index("2/2.png") < predicted.index("2/10.png")


@both
def test_links_are_followed_without_loops(tmp_path: Path, place: Opener) -> None:
    root = fill(tmp_path / "data", {"a": 4, "b": 4})
    (root / ".pool").mkdir()
    for number in range(3):
        picture(7, number).save(root / ".pool" / f"{number}", "PNG")
        (root / "a" / f"linked{number}.png").symlink_to(f"../.pool/{number}")
    (root / "a" / "again.png").symlink_to("linked0.png")
    (root / "c").symlink_to("b")
    (root / "b" / "round").symlink_to("..")
    (root / "b" / "itself.png").symlink_to("itself.png")
    (root / "b" / "out.png").symlink_to("/nowhere/at/all.png")
    os.link(root / "b" / "0.png", root / "b" / "hard.png")
    data = open_at(place(root))
    assert data.classes == ["a", "b", "c"]
    found = sorted(listed(data))
    if place is not as_tar:
        predicted, _ = find_images([root])
        assert sorted(str(path.relative_to(root)) for path in predicted) == found
    within = [name.removeprefix("./") for name in found]
    assert {name for name in within if name.startswith("a/")} == {
        *(f"a/{n}.png" for n in range(4)),
        *(f"a/linked{n}.png" for n in range(3)),
        "a/again.png",
    }
    inside = {kind: {name[2:] for name in within if name[0] == kind} for kind in "bc"}
    assert inside["b"] == inside["c"]
    said = line(data.notes)
    assert "to nothing" in said
    assert "back to" in said
    for part in data.parts.values():
        assert all(part.read(i)[0].size == (6, 5) for i in range(len(part)))
    assert everything(again(data)) == everything(data)


def test_prediction_says_what_it_leaves_out(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    for name in ("10.png", "1.png", "2.png"):
        picture(0, 1).save(tmp_path / "more" / name)
    (tmp_path / "in" / ".x").mkdir(parents=True)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "in" / "notes.txt").write_text("")
    found, said = find_images([tmp_path / "in"])
    assert [path.name for path in found] == ["1.png", "2.png", "10.png"]
    assert said == "left out: 1 .txt file, 1 hidden"


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    """Reading a pipe would wait for ever."""
    root = fill(tmp_path / "data", {"a": 4, "b": 4})
    os.mkfifo(root / "a" / "pipe.png")
    assert "1 entry that is no file" in line(open_at(root).notes)


# -- names ------------------------------------------------------------------------------------------------------

COMPOSED, APART = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")


@both
def test_two_spellings_of_a_class_are_one(tmp_path: Path, place: Opener) -> None:
    root = tmp_path / "data"
    for offset, name in ((0, COMPOSED), (50, APART), (100, "tea")):
        (root / name).mkdir(parents=True)
        for number in range(8):
            picture(1, offset + number).save(root / name / f"{offset + number}.png")
    data = open_at(place(root))
    assert data.classes == [COMPOSED, "tea"]
    assert len(listed(data)) == 24
    assert sorted(path.name for path in root.iterdir()) == sorted([COMPOSED, APART, "tea"])
    assert everything(again(data)) == everything(data)


@pytest.mark.parametrize("older", [False, True], ids=["this-version", "older-version"])
def test_a_run_finds_its_classes_in_another_spelling(tmp_path: Path, older: bool) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root, name in ((one, APART), (other, COMPOSED)):
        fill(root, {name: 10, "tea": 10})
        picture(3, 3).save(root / "tea" / f"{name}.png")
    data = open_at(one)
    text = data.manifest.dumps()
    if older:  # it kept names as the file system has them
        entries = text.rpartition("end,")[0].replace(COMPOSED, APART)
        from hadaptive.data.manifest import digest_of

        text = f"{entries}end,{digest_of(entries.encode())}\r\n"
    moved = open_data(DataConfig(str(other)), Manifest.loads(text), exact=True)
    assert everything(moved) == everything(data)
    assert not moved.notes
    grown = open_data(DataConfig(str(other)), known=Manifest.loads(text))
    for part, images in everything(data).items():
        assert sorted(everything(grown)[part]) == sorted(images)
    assert not any("not here" in note or "new since" in note for note in grown.notes)


def test_names_that_are_no_utf8_are_found_again(tmp_path: Path) -> None:
    root = fill(tmp_path / "data", {"a": 8})
    latin = os.fsencode(root) + b"/caf\xe9"
    os.mkdir(latin)
    for number in range(8):
        with open(latin + f"/\xff{number}.png".encode("latin-1"), "wb") as file:
            picture(1, number).save(file, "PNG")
    data = open_at(root)
    assert data.classes == ["a", "caf\udce9"]
    loaded = Manifest.loads(data.manifest.dumps().encode().decode())
    opened = open_data(data.location, loaded, exact=True)
    assert everything(opened) == everything(data)
    assert all(name.isprintable() for part in data.parts.values() for name in names(part))
    packed = open_at(as_tar(root))
    assert packed.classes == data.classes
    assert everything(packed) == everything(data)
    assert spelt("caf\udce9") == "caf\udce9"


# -- streams ----------------------------------------------------------------------------------------------------


def test_a_stream_without_that_split_says_which_there_are(tmp_path: Path) -> None:
    from hadaptive.data.streams import _shard_folder
    from hadaptive.errors import UserError

    (tmp_path / "_info.json").write_text(json.dumps({"splits": {"train": {}, "validation": {}}}))
    with pytest.raises(UserError) as caught:
        _shard_folder("wds/d", tmp_path, "test")
    assert "'train', 'validation'" in str(caught.value)
    assert "--test-split None" in str(caught.value)
    (tmp_path / "_info.json").write_text("[]")
    with pytest.raises(UserError, match="does not say which shards"):
        _shard_folder("wds/d", tmp_path, "test")


def test_a_damaged_tar_within_a_tar_is_a_sentence(tmp_path: Path) -> None:
    fill(tmp_path / "d", {"a": 3, "b": 3})
    with tarfile.open(tmp_path / "o.tar", "w") as tar:
        tar.add(tmp_path / "d", arcname="d")
        info = tarfile.TarInfo("d/c.tar")
        info.size = 700
        tar.addfile(info, io.BytesIO(b"x" * 700))
    assert "is not a tar file, or a damaged one" in say(tmp_path / "o.tar")
