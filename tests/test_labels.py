"""Label files: a table that lists images behaves as the folder they lie in, and its mistakes are sentences."""

import csv
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
from folders import again, everything, fill, names, open_at, picture, say
from safetensors.torch import load_file
from tiny import tiny_config

from hadaptive.cli import main
from hadaptive.data import Manifest, open_data
from hadaptive.data.labels import listed_files
from hadaptive.errors import UserError
from hadaptive.predict import find_images
from hadaptive.train import train

CLASSES = ("black cat", "dög", "fox")


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A folder of three classes, one of two words and one that is not ASCII."""
    return fill(tmp_path / "zoo", dict.fromkeys(CLASSES, 12))


def write(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] | None = ("file", "label")) -> Path:
    """A table, in the form that its suffix says."""
    if path.suffix == ".parquet":
        assert header is not None
        pandas.DataFrame(rows, columns=list(header)).to_parquet(path)
        return path
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writerows([*([] if header is None else [header]), *rows])
    return path


def rows_of(zoo: Path) -> list[list[str]]:
    """The file and class of each image, in no order."""
    rows = [[path.relative_to(zoo).as_posix(), path.parent.name] for path in zoo.rglob("*.png")]
    random.Random(0).shuffle(rows)
    return rows


# ---------------------------------------------------------------- as the folder


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_divided_as_the_folder_whatever_the_order_of_the_rows(suffix: str, zoo: Path) -> None:
    labels = open_at(write(zoo / f"labels{suffix}", rows_of(zoo)))
    folder = open_at(zoo)
    assert labels.manifest.dumps() == folder.manifest.dumps()
    assert everything(labels) == everything(folder)
    assert labels.classes == list(CLASSES)


@pytest.mark.parametrize(
    ("encoding", "separator"), [("utf-8-sig", ","), ("utf-16", ";"), ("utf-8", "|"), ("utf-8", "\t")]
)
def test_as_spreadsheets_save_it(encoding: str, separator: str, zoo: Path) -> None:
    lines = ["File_Name" + separator + "Class", *(separator.join(row) for row in rows_of(zoo)), "", separator]
    (zoo / "labels.csv").write_text("\r\n".join(lines), encoding=encoding)
    assert open_at(zoo / "labels.csv").manifest.dumps() == open_at(zoo).manifest.dumps()


def test_absolute_paths_windows_paths_and_other_spellings(zoo: Path) -> None:
    rows = rows_of(zoo)
    rows[0][0] = str(zoo / rows[0][0])
    rows[1][0] = f" ./{rows[1][0]} "
    rows[2][0] = rows[2][0].replace("/", "\\")
    rows = [[file.replace("ö", "o\u0308"), " " + name.replace("ö", "o\u0308")] for file, name in rows]
    assert open_at(write(zoo / "labels.csv", rows)).manifest.dumps() == open_at(zoo).manifest.dumps()


def test_files_elsewhere_are_read_and_said(zoo: Path, tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    rows = [[f"../zoo/{file}", name] for file, name in rows_of(zoo)[1:]]
    rows.append([str(zoo / (first := rows_of(zoo)[0])[0]), first[1]])
    data = open_at(write(tmp_path / "tables/labels.csv", rows))
    assert "36 images lie outside the folder of labels.csv: they have to stay where they are" in data.notes
    assert sum(data.manifest.counts.values()) == 36
    assert everything(again(data)) == everything(data)


def test_parts_of_a_column_are_those_of_folders(parted: Path, tmp_path: Path) -> None:
    rows = [[p.relative_to(parted).as_posix(), p.parent.name, p.parts[-3]] for p in parted.rglob("*.png")]
    words = {"train": "Training", "test": " TEST"}
    table = write(parted / "labels.csv", [[f, c, words[p]] for f, c, p in rows], ("image", "category", "Subset"))
    labels, folder = open_at(table), open_at(parted)
    assert labels.manifest.dumps() == folder.manifest.dumps()
    assert labels.manifest.counts["test"] == 10


def test_columns_by_name(zoo: Path) -> None:
    rows = [[name, "x", file, "train" if i % 3 else "val"] for i, (file, name) in enumerate(rows_of(zoo))]
    table = write(zoo / "labels.csv", rows, ("species", "file", "Bild", "where"))
    assert "2 of" not in say(table, label_column="species")
    data = open_at(table, file_column="bild", label_column="species", split_column="where")
    assert data.manifest.counts == {"train": 24, "validation": 12}
    assert data.location.file_column == "bild"
    images = everything(data)
    assert everything(again(data, exact=True)) == images
    moved = zoo.rename(zoo.with_name("moved")) / "labels.csv"
    assert everything(open_data(replace(data.location, data=str(moved)), data.manifest, exact=True)) == images


def test_values_of_parquet(zoo: Path) -> None:
    rows = [[file, number] for file, name in rows_of(zoo) for number in [float(CLASSES.index(name))]]
    data = open_at(write(zoo / "labels.parquet", rows))
    assert data.classes == ["0", "1", "2"]
    table = zoo / "nested.parquet"
    pandas.DataFrame({"image": [{"bytes": b"x"}] * 2, "label": ["a", "b"]}).to_parquet(table)
    assert "holds dict values, not names" in say(table)
    (zoo / "broken.parquet").write_bytes(b"PAR1 and no more")
    assert "is not a Parquet file, or a damaged one" in say(zoo / "broken.parquet")


# ---------------------------------------------------------------- mistakes

Change = Callable[[list[list[str]]], object]


def doubled(rows: list[list[str]], label: str | None = None) -> None:
    rows.append([rows[0][0], label or rows[0][1]])


CELLS: dict[str, tuple[Change, str]] = {
    "missing": (lambda rows: rows[3].__setitem__(0, "fox/99.png"), "1 file is not there that"),
    "no suffix": (
        lambda rows: rows[0].__setitem__(0, rows[0][0][:-4]),
        ", with their suffix (there is ",
    ),
    "two labels": (lambda rows: doubled(rows, "wolf"), "two labels, "),
    "no label": (lambda rows: rows[1].__setitem__(1, " "), "line 3 of "),
    "no file": (lambda rows: rows[1].__setitem__(0, ""), "line 3 of "),
    "a folder": (lambda rows: rows[0].__setitem__(0, "fox"), "1 file is not there that"),
    "one class": (lambda rows: [row.__setitem__(1, "cat") for row in rows], "has only one class, 'cat'"),
    "no rows": (list.clear, "has a header and no rows"),
    "cells": (lambda rows: rows[0].append("more"), "line 2 of "),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_mistake_in_the_rows(name: str, zoo: Path) -> None:
    change, sentence = CELLS[name]
    rows = rows_of(zoo)
    change(rows)
    assert sentence in say(write(zoo / "labels.csv", rows))


HEADERS: dict[str, tuple[Sequence[str] | None, str]] = {
    "no file": (
        ("thing", "label"),
        "has no column called file, filename, path, image or the like; its columns are",
    ),
    "no label": (("file", "thing"), "name one with --label-column"),
    "two files": (("file", "path"), "has the columns file and path, and each may be meant: say which with"),
    "twice": (("file", "file"), "each may be meant"),
    "none": (None, "has no header, for its first line names the file "),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_mistake_in_the_header(name: str, zoo: Path) -> None:
    header, sentence = HEADERS[name]
    assert sentence in say(write(zoo / "labels.csv", rows_of(zoo), header))


FIELDS: dict[str, tuple[dict[str, str], str]] = {
    "file": ({"file_column": "bild"}, "has no column 'bild' (--file-column); its columns are file, label"),
    "both": ({"label_column": "file"}, "cannot be both file and label"),
    "split": ({"split_column": "label"}, "in its column label, which is no part: write one of train"),
    "group": ({"group_by": "pateint"}, "fits no image's name (nor is it a column: file, label)"),
}


@pytest.mark.parametrize("name", FIELDS)
def test_a_mistake_in_the_flags(name: str, zoo: Path) -> None:
    fields, sentence = FIELDS[name]
    assert sentence in say(write(zoo / "labels.csv", rows_of(zoo)), **fields)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty: it needs a header"),
        ("file,label\nd\xf6g/1.png,d\xf6g\n".encode("latin-1"), "is not UTF-8 (line 2): save it as UTF-8"),
        (b'file,label\n"fox/1.png,fox\n', "is damaged in line 2"),
        (b"file,label\nfox\0/1.png,fox\n", "is no table of text"),
    ],
)
def test_a_file_that_is_no_table(content: bytes, sentence: str, zoo: Path) -> None:
    (zoo / "labels.csv").write_bytes(content)
    assert sentence in say(zoo / "labels.csv")


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (("train", "tset"), "has 'tset' in its column set, which is no part"),
        (("train", ""), "has nothing in its column set"),
        (("val", "test"), "has train in its column set: there is nothing to learn from"),
    ],
)
def test_a_mistake_in_the_parts(values: Sequence[str], sentence: str, zoo: Path) -> None:
    rows = [[*row, values[i % 2]] for i, row in enumerate(rows_of(zoo))]
    assert sentence in say(write(zoo / "labels.csv", rows, ("file", "label", "set")))


def test_what_is_said_and_used_all_the_same(zoo: Path) -> None:
    rows = rows_of(zoo)
    doubled(rows)
    rows = [[file, "Fox" if file == "fox/1.png" else name, "left leg"] for file, name in rows]
    data = open_at(write(zoo / "labels.csv", rows, ("file", "label", "part")))
    said = " ".join(data.notes)
    assert f"1 row names a file once more and counts once: {rows[0][0]} in line 38" in said
    assert "classes that differ in their spelling only: Fox and fox" in said or "fox and Fox" in said
    assert "the column part is not used, for none of its values is a part" in said


def test_flags_of_label_files_are_refused_elsewhere(zoo: Path) -> None:
    assert "--label-column has no effect here: only label files" in say(zoo, label_column="label")
    assert "--group-by has no effect here: published" in say("digits", group_by="x")


# ---------------------------------------------------------------- a run on one


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that learned from a label file with columns of unusual names, and its folder."""
    root = tmp_path_factory.mktemp("run")
    zoo = fill(root / "zoo", dict.fromkeys(CLASSES, 12))
    write(zoo / "labels.csv", rows_of(zoo), ("bild", "art"))
    settings: dict[str, Any] = {"image_size": 8, "epochs": 1, "batch_size": 8, "train_size": None}
    given = {"data": str(zoo / "labels.csv"), "file_column": "bild", "label_column": "art"}
    train(tiny_config(root, "table", **settings, **given), quiet=True)
    train(tiny_config(root, "folder", **settings, data=str(zoo)), quiet=True)
    return root


def test_the_same_weights_as_from_the_folder(run: Path) -> None:
    table, folder = (load_file(run / name / "last.safetensors") for name in ("table", "folder"))
    assert all(table[name].equal(folder[name]) for name in folder)
    division = (run / "table/split.csv").read_bytes()
    assert division == (run / "folder/split.csv").read_bytes()


def test_commands_read_it_again(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(run)
    assert main(["evaluate", "table"]) == 0
    assert main(["export", "table", "--format", "safetensors", "--images", "8"]) == 0
    fill(tmp_path / "others", {"fox": 3, "black cat": 3}, "bmp")
    rows = [[path.relative_to(tmp_path).as_posix(), path.parent.name] for path in tmp_path.rglob("*.bmp")]
    other = write(tmp_path / "test.csv", rows, ("bild", "art"))
    assert main(["evaluate", "table", "--on", str(other)]) == 0
    usual = write(tmp_path / "usual.csv", rows, ("file", "species"))
    assert main(["evaluate", "table", "--on", str(usual), "--file-column", "file"]) == 1
    assert "has no column 'art' (--label-column); its columns are file, species" in capsys.readouterr().err
    flags = ["--file-column", "file", "--label-column", "species"]
    assert main(["evaluate", "table", "--on", str(usual), *flags]) == 0
    assert main(["evaluate", "table", *flags]) == 1
    assert "leave --file-column out" in capsys.readouterr().err
    assert main(["predict", "table", str(usual), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {Path(json.loads(line)["image"]) for line in lines if line[:1] == "{"} == {*tmp_path.rglob("*.bmp")}


def test_images_that_are_gone_are_left_out_and_new_ones_are_drawn(zoo: Path) -> None:
    rows = sorted(rows_of(zoo))
    data = open_at(write(zoo / "labels.csv", rows[:30]))
    gone = zoo / data.manifest.names("train")[0]
    gone.unlink()
    back = again(data)
    assert any("1 image is missing and left out (1 of train)" in note for note in back.notes)
    assert "1 file is not there that" in say(zoo / "labels.csv")
    (zoo / "split.csv").write_text(data.manifest.dumps(), encoding="utf-8", newline="")
    write(zoo / "labels.csv", [row for row in rows if row[0] != gone.relative_to(zoo).as_posix()])
    grown = open_at(zoo / "labels.csv", split=zoo / "split.csv")
    assert names(data.test) <= names(grown.test)
    assert sum(grown.manifest.counts.values()) == 35


def test_the_files_of_a_table_for_predict(zoo: Path) -> None:
    rows = rows_of(zoo)
    table = write(zoo / "labels.csv", [*rows, rows[0]])
    assert listed_files(table)[:2] == [zoo / "black cat/0.png", zoo / "black cat/1.png"]
    assert len(listed_files(table)) == 36


def test_a_division_is_read_as_it_was_written(zoo: Path) -> None:
    data = open_at(write(zoo / "labels.csv", rows_of(zoo)))
    assert Manifest.loads(data.manifest.dumps()).group_by is None


def test_a_table_that_grew_keeps_no_run_from_its_images(zoo: Path) -> None:
    rows = [[*row, "val" if number % 4 == 0 else "train"] for number, row in enumerate(rows_of(zoo))]
    header = ("file", "label", "split")
    data = open_at(write(zoo / "labels.csv", rows, header))
    for number in range(3):
        picture(9, number).save(zoo / f"new{number}.png")
    new = [
        ["new0.png", "", "train"],
        ["new1.png", "owl", "val"],
        ["new2.png", "fox", "train"],
        ["new2.png", "owl", "train"],
    ]
    path = write(zoo / "labels.csv", rows + new, header)
    grown = open_data(replace(data.location, data=str(path)), data.manifest)
    assert everything(grown) == everything(data)
    assert any("3 rows are left out, without a label or with two" in note for note in grown.notes)


def test_prediction_takes_a_column_of_another_name(zoo: Path) -> None:
    path = write(zoo / "labels.csv", [[row[0]] for row in rows_of(zoo)], ("picture of it",))
    assert find_images([path], "picture of it")[0] == find_images([zoo])[0]
    with pytest.raises(UserError, match="name one with --file-column"):
        find_images([path])
