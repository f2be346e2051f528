"""A person's own images that a table lists: a label file, with a row for each image.

One column names the file, by its absolute path or by that from the folder of the label file, and one its class;
another may name the part that the image is in. Of several classes an image, the label column names them all, or
each class has a column that says yes or no, or an image has a row for each; they become one label, their set.
"""

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hadaptive.data.files import PART_FOLDERS
from hadaptive.data.label_sets import LabelSets
from hadaptive.data.manifest import some
from hadaptive.data.scan import IMAGE_SUFFIXES, Found, order
from hadaptive.data.sources import FileSource, Listed, Opened
from hadaptive.data.tables import Table, plain, read_table
from hadaptive.errors import UserError
from hadaptive.text import from_disk, here, natural_key, shown, spelt

FILE_COLUMNS = (
    *("file", "filename", "path", "image", "image_path", "file_name", "filepath", "file_path"),
    *("image_file", "image_name", "img", "img_path"),
)
LABEL_COLUMNS = ("label", "class", "target", "category", "class_name", "labels", "classes", "categories", "tags")
SPLIT_COLUMNS = ("split", "set", "subset", "part")
PART_OF = {name: part for part, names in PART_FOLDERS.items() for name in names}


class Columns(NamedTuple):
    """Which columns of a label file to read, by their names; None for one that has a usual name."""

    file: str | None = None
    label: str | None = None
    split: str | None = None


YES, NO = ("1", "1.0", "true", "yes"), ("", "0", "0.0", "false", "no")  # of a class with a column of its own


def open_labels(
    path: Path, columns: Columns, group_by: str | None = None, *, several: str | None = None, again: bool = False
) -> Opened:
    """The images that a label file lists, in the order of a folder's: that of the rows does not matter.

    Args:
        path: of the table, one of :data:`hadaptive.data.tables.SUFFIXES`.
        columns: of it.
        group_by: a column whose cells tell which images belong together, if there is one of that name.
        several: what stands between the classes of an image that may have any number of them; None for one class.
        again: a run had these images: rows that are amiss are left out, for the run says what it misses itself.

    Raises:
        UserError: a column, a file or a label is missing, one file has two labels or two parts, there are fewer
            than two classes, or the table cannot be read.
    """
    table = read_table(path)
    file_column, label_columns = _needed(table, columns, several)
    places = _places(table, file_column, again)
    if several is None:
        labels = [spelt(cell.strip()) for cell in table.read(label_columns[0])]
    else:
        labels = _sets(table, label_columns, several)
    parts, notes = _parts(table, columns.split)
    group_column = None if group_by is None else table.named(group_by)
    groups = None if group_column is None else [spelt(cell.strip()) for cell in table.read(group_column)]
    rows, more = _settled(table, places, labels, parts, several, again)
    notes += more
    classes, more = _classes(table, rows, labels, parts, several, again)
    notes += more
    outside = sum(os.path.isabs(places[row]) or places[row].startswith(os.pardir + os.sep) for row in rows)
    if outside:
        said = "1 image lies" if outside == 1 else f"{outside:,} images lie"
        notes.append(f"{said} outside the folder of {path.name}: they have to stay where they are")
    numbers = {name: number for number, name in enumerate(classes)}
    opened = Opened({}, classes, notes=notes, columns=table.header)
    found = {row: order(Found(spelt(from_disk(places[row])), 0, 0, places[row])) for row in rows}
    rows.sort(key=found.__getitem__)
    by_part: dict[str, list[int]] = {part: [r for r in rows if parts[r] == part] for part in PART_FOLDERS}
    sources: dict[str, Listed] = {
        part: FileSource(
            path.parent, [places[row] for row in mine], np.array([numbers[labels[row]] for row in mine], np.int64)
        )
        for part, mine in by_part.items()
        if mine
    }
    opened.parts = sources
    if groups is not None:
        opened.groups = {part: [groups[row] for row in mine] for part, mine in by_part.items() if mine}
    return opened


def listed_files(path: Path, column: str | None = None) -> list[Path]:
    """The files that a label file names, each once, in natural order.

    Args:
        path: of the table.
        column: that names them; None for one of a usual name.

    Raises:
        UserError: it has no column of files, or one is missing.
    """
    table = read_table(path)
    number = table.column("--file-column", column, FILE_COLUMNS, needed=True)
    assert number is not None
    places = {place: order(Found(spelt(from_disk(place)), 0, 0, place)) for place in _places(table, number, False)}
    return [path.parent / place for place in sorted(places, key=places.__getitem__)]


def _needed(table: Table, columns: Columns, several: str | None) -> tuple[int, list[int]]:
    """The column of files, and that of labels or one for each class."""
    given: list[str | None] = [columns.label]
    if several is not None and columns.label is not None and table.named(columns.label) is None:
        given = [*LabelSets.named(columns.label, several)] or given
    try:
        file = table.column("--file-column", columns.file, FILE_COLUMNS, needed=True)
        labels = [table.column("--label-column", name, LABEL_COLUMNS, needed=True) for name in given]
    except UserError:
        first = next((name for name in table.header if Path(name).suffix.lower() in IMAGE_SUFFIXES), None)
        if first is None:
            raise
        raise UserError(
            f"{table.path} has no header, for its first line names the file {shown(first)}: write a line above it "
            "such as file,label"
        ) from None
    found = [label for label in labels if label is not None]
    assert file is not None
    if file in found:
        raise UserError(f"the column {shown(table.header[file])} of {table.path} cannot be both file and label")
    return file, found


def _sets(table: Table, columns: list[int], separator: str) -> list[str]:
    """The label of each row, all its classes in their order: from one column that names them, or one for each."""
    if len(columns) == 1:
        return [_joined(LabelSets.named(cell, separator), separator) for cell in table.read(columns[0])]
    names: list[list[str]] = [[] for _ in table.read(columns[0])]
    for column in columns:
        for row, cell in enumerate(table.read(column)):
            if (said := cell.strip().lower()) in YES:
                names[row].append(table.header[column])
            elif said not in NO:
                raise UserError(
                    f"{table.where(row)} of {table.path} has {shown(cell)!r} in its column "
                    f"{shown(table.header[column])}: write 1 where the image has that class, and 0 where not"
                )
    return [_joined(row, separator) for row in names]


def _joined(names: Iterable[str], separator: str) -> str:
    return separator.join(sorted({spelt(name) for name in names}, key=lambda name: (natural_key(name), name)))


def _places(table: Table, column: int, again: bool) -> list[str]:
    """The path of each row's file, from the folder of the table; empty where one is missing and may be."""
    folder = str(table.path.parent)
    cells, places, missing = table.read(column), [], []
    if not cells:
        raise UserError(f"{table.path} has a header and no rows: add one for each image")
    for row, cell in enumerate(cells):
        if not cell.strip():
            raise UserError(f"{table.where(row)} of {table.path} names no file: fill it in, or take the row out")
        place = next((place for place in _spellings(cell) if os.path.isfile(os.path.join(folder, place))), "")
        if not place:
            missing.append(cell.strip())
        elif os.path.isabs(place) and os.path.commonpath((within := os.path.abspath(folder), place)) == within:
            place = os.path.relpath(place, within)
        places.append(place)
    if len(missing) == len(cells) or (missing and not again):
        said = "1 file is" if len(missing) == 1 else f"{len(missing):,} files are"
        raise UserError(
            f"{said} not there that {table.path} names ({some(missing)}): paths count from the folder it lies in"
            f"{_suffix_hint(folder, missing[0])}; mend them, or take out their rows"
        )
    return places


def _spellings(cell: str) -> Iterator[str]:
    """The paths that a cell may mean: as it stands first, then as other systems write it."""
    for text in dict.fromkeys((cell, cell.strip(), cell.strip().replace("\\", "/"))):
        for form in dict.fromkeys((text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text))):
            yield os.path.normpath(here(form))


def _suffix_hint(folder: str, cell: str) -> str:
    path = os.path.join(folder, cell)
    found = next((suffix for suffix in IMAGE_SUFFIXES if os.path.isfile(path + suffix)), None)
    return "" if found is None else f", with their suffix (there is {shown(cell + found)})"


def _parts(table: Table, wanted: str | None) -> tuple[list[str], list[str]]:
    """The part of each row, "train" where nothing divides them, and what is to be said of it."""
    column = table.column("--split-column", wanted, SPLIT_COLUMNS, needed=False)
    cells = table.read(0) if column is None else table.read(column)
    if column is None:
        return ["train"] * len(cells), []
    parts = [PART_OF.get(plain(cell), "") for cell in cells]
    name, known = shown(table.header[column]), ", ".join(PART_OF)
    if wanted is None and not any(parts):
        return ["train"] * len(cells), [
            f"the column {name} is not used, for none of its values is a part ({known})"
        ]
    strange = [cell for cell, part in zip(cells, parts, strict=True) if not part]
    if strange:
        row = parts.index("")
        value = repr(shown(strange[0])) if strange[0].strip() else "nothing"
        raise UserError(
            f"{table.where(row)} of {table.path} has {value} in its column {name}, which is no part: write one of "
            f"{known}{'' if wanted else ', or rename the column if it tells something else'}"
        )
    if "train" not in parts:
        raise UserError(f"no row of {table.path} has train in its column {name}: there is nothing to learn from")
    return parts, []


def _settled(
    table: Table, places: list[str], labels: list[str], parts: list[str], several: str | None, again: bool
) -> tuple[list[int], list[str]]:
    """The rows to use, one for each file, and what is to be said of others; of several classes, they are joined.

    Raises:
        UserError: a row has no label, or two rows of one file do not agree.
    """
    empty = [row for row, label in enumerate(labels) if not label and several is None]
    amiss = set(empty)
    if empty and not again:
        more = "" if len(empty) == 1 else f" (and so for {len(empty) - 1:,} more)"
        raise UserError(
            f"{table.where(empty[0])} of {table.path} has no label: fill it in, or take the row out{more}"
        )
    by_file: dict[str, list[int]] = defaultdict(list)
    for row, place in enumerate(places):
        if place and row not in amiss:
            by_file[spelt(place)].append(row)
    if several is not None:
        for rows in by_file.values():
            labels[rows[0]] = _joined((n for row in rows for n in LabelSets.named(labels[row], several)), several)
            for row in rows[1:]:
                labels[row] = labels[rows[0]]
    for rows in by_file.values():
        for what, of in (("labels", labels), ("parts", parts)):
            other = next((row for row in rows if of[row] != of[rows[0]]), None)
            if other is not None and again:
                amiss |= {*rows}
            elif other is not None:
                raise UserError(
                    f"{table.path} gives {shown(places[other])} two {what}, {shown(of[rows[0]])!r} in "
                    f"{table.where(rows[0])} and {shown(of[other])!r} in {table.where(other)}: leave one"
                )
    notes = []
    if amiss:
        said = "1 row is" if len(amiss) == 1 else f"{len(amiss):,} rows are"
        notes.append(f"{said} left out, without a label or with two: first {table.where(min(amiss))}")
    kept = [rows[0] for rows in by_file.values() if rows[0] not in amiss]
    repeated = sum(len(rows) - 1 for rows in by_file.values() if rows[0] not in amiss)
    if not repeated:
        return kept, notes
    first = next(rows for rows in by_file.values() if len(rows) > 1)
    said = "1 row names" if repeated == 1 else f"{repeated:,} rows name"
    example = f"{shown(places[first[1]])} in {table.where(first[1])}"
    how = "counts once" if several is None else "adds its classes"
    return kept, [*notes, f"{said} a file once more and {how}: {example}"]


def _classes(
    table: Table, rows: list[int], labels: list[str], parts: list[str], several: str | None, again: bool
) -> tuple[list[str], list[str]]:
    """The names of the classes, or sets of them, in their order, and what is to be said of them.

    Raises:
        UserError: there are fewer than two, or training lacks one that another part has.
    """
    of_part: dict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        of_part[parts[row]].update([labels[row]] if several is None else LabelSets.named(labels[row], several))
    classes = sorted(of_part["train"], key=lambda name: (natural_key(name), name))
    for part, counts in of_part.items():
        unknown = [name for name in counts if name not in of_part["train"]]
        if unknown and again:  # which are new since, as are their images
            classes = sorted({*classes, *unknown}, key=lambda name: (natural_key(name), name))
        elif unknown:
            raise UserError(
                f"{table.path} has classes in its {part} part that its train part lacks: {some(unknown)}"
            )
    if len(classes) < 2 and several is None:
        raise UserError(f"{table.path} has only one class, {shown(classes[0])!r}: two at least are needed")
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        spellings[plain(name)].append(name)
    alike = [" and ".join(map(shown, names)) for names in spellings.values() if len(names) > 1]
    if several is not None:
        classes = sorted({labels[row] for row in rows}, key=lambda name: (natural_key(name), name))
    return classes, [f"classes that differ in their spelling only: {some(alike)}"] if alike else []
