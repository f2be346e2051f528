"""Tables that people write or export: CSV and TSV as spreadsheets leave them, and Parquet."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hadaptive.errors import UserError, first_line
from hadaptive.packages import require
from hadaptive.text import shown, spelt

SUFFIXES = (".csv", ".tsv", ".parquet")
DELIMITERS = ",;\t|"
BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        path: of its file.
        header: names of the columns.
        read: the cells of a column of that number, the names aside.
        where: what to call a row in a message, by its number from 0.
    """

    path: Path
    header: list[str]
    read: Callable[[int], list[str]]
    where: Callable[[int], str]

    def column(self, flag: str, wanted: str | None, usual: Sequence[str], *, needed: bool) -> int | None:
        """The number of a column: the one of that name, or else the only one that has a usual name.

        Args:
            flag: of the command line, that names it.
            wanted: the name a person gave; None for a usual one.
            usual: names as :func:`plain` has them.
            needed: whether a table without it is a mistake.

        Raises:
            UserError: there is no such column, or more than one.
        """
        names = ", ".join(map(shown, self.header))
        if wanted is not None:
            found = self.named(wanted)
            if found is None:
                raise UserError(f"{self.path} has no column {shown(wanted)!r} ({flag}); its columns are {names}")
            return found
        found = [number for number, name in enumerate(self.header) if plain(name) in usual]
        if len(found) > 1:
            several = " and ".join(shown(self.header[number]) for number in found)
            raise UserError(f"{self.path} has the columns {several}, and each may be meant: say which with {flag}")
        if not found and needed:
            raise UserError(
                f"{self.path} has no column called {', '.join(usual[:4])} or the like; its columns are {names}: "
                f"name one with {flag}"
            )
        return found[0] if found else None

    def named(self, name: str) -> int | None:
        """The number of a column of exactly that name, or of that name but for its spelling.

        Raises:
            UserError: two have it.
        """
        for same in (lambda header: spelt(header) == spelt(name), lambda header: plain(header) == plain(name)):
            found = [number for number, header in enumerate(self.header) if same(header)]
            if len(found) > 1:
                raise UserError(f"{self.path} has {len(found)} columns called {shown(name)!r}: rename all but one")
            if found:
                return found[0]
        return None


def plain(name: str) -> str:
    """A column's name as usual ones are written: lower case, words joined by "_"."""
    return "_".join(spelt(name).strip().lower().replace("-", " ").split())


def is_table(path: Path) -> bool:
    """Whether a path is that of a table, by its suffix."""
    return path.suffix.lower() in SUFFIXES


def read_table(path: Path) -> Table:
    """Read a table of SUFFIXES.

    Raises:
        UserError: it cannot be read, is damaged, in another encoding, or empty; pyarrow is needed and missing.
    """
    try:
        return _parquet(path) if path.suffix.lower() == ".parquet" else _text(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or first_line(error)}") from None


def _text(path: Path) -> Table:
    text = _decoded(path, path.read_bytes())
    first = text.lstrip("\r\n").splitlines()[:1]
    if not first:
        raise UserError(f"{path} is empty: it needs a header such as file,label and a row for each image")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else max(DELIMITERS, key=first[0].count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    lines: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                lines.append((reader.line_num, cells))
    except csv.Error as error:
        raise UserError(f"{path} is damaged in line {reader.line_num}: {error}") from None
    numbers, rows = [number for number, _ in lines[1:]], [cells for _, cells in lines[1:]]
    header = [cell.strip() for cell in lines[0][1]]
    for number, cells in zip(numbers, rows, strict=True):
        if len(cells) != len(header):
            raise UserError(
                f"line {number} of {path} has {len(cells)} cells, and its header has {len(header)}: put a text "
                "that holds the separator into double quotes"
            )
    return Table(path, header, lambda column: [row[column] for row in rows], lambda row: f"line {numbers[row]}")


def _decoded(path: Path, data: bytes) -> str:
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path} is not UTF-8 (line {line}): save it as UTF-8 (in Excel: CSV UTF-8)") from None
    if "\0" in text:
        raise UserError(f"{path} is no table of text: save it as CSV in UTF-8")
    return text


def _parquet(path: Path) -> Table:
    require(("pyarrow.parquet",), str(path), '"hadaptive[parquet]"')
    import pyarrow
    from pyarrow import parquet

    try:
        header = list(parquet.read_schema(path).names)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a Parquet file, or a damaged one: {first_line(error)}") from None

    def read(column: int) -> list[str]:
        try:
            values = parquet.read_table(path, columns=[header[column]]).column(0).to_pylist()
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is damaged: {first_line(error)}") from None
        return [_cell(value, f"the column {shown(header[column])} of {path}") for value in values]

    return Table(path, header, read, lambda row: f"row {row + 1}")


def _cell(value: Any, column: str) -> str:
    if value is None or value != value:  # NaN, which pandas writes for an empty cell
        return ""
    if isinstance(value, bytes | dict | list):
        raise UserError(f"{column} holds {type(value).__name__} values, not names: choose a column of texts")
    if isinstance(value, float) and value.is_integer():  # whole numbers become so beside an empty cell
        return str(int(value))
    return str(value)
