"""Files of results: written whole or not at all, in UTF-8 whatever the machine's locale says.

Bytes of file names that are no UTF-8 stand in text as lone surrogates. JSON has escapes for them; the cells of a
CSV file are written as :func:`hadaptive.text.escaped` gives them, and read back alike.
"""

import csv
import errno
import io
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hadaptive.errors import UserError
from hadaptive.text import escaped, unescaped


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """A full disk and a folder without rights are nobody's fault in the program."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}{_cure(error, path)}") from error


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _cure(error: OSError, path: Path) -> str:
    """What to do about it, where the disk has no room."""
    if error.errno not in FULL:
        return ""
    return f"; make room on the disk of {path.absolute().parent}, where nothing written before was lost"


def umask() -> int:
    """What this process leaves out of the rights of new files."""
    os.umask(mask := os.umask(0))
    return mask


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then put it in place in one step.

    Raises:
        UserError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _told(path):
        try:
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def refuse_existing(path: Path | None, flag: str) -> None:
    """Raise one clear UserError unless a new file can be written at a path that a person gave by a flag."""
    if path is None:
        return
    if path.exists():
        raise UserError(f"{path} exists already and is not overwritten: choose another {flag}")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} into")


def check_new_picture(path: Path, flag: str) -> None:
    """Raise one clear UserError where a PNG cannot be written to `path`, or would overwrite something."""
    if path.suffix.lower() != ".png":
        raise UserError(f"{path} would be a picture: give it a name that ends in .png")
    refuse_existing(path, flag)


def json_text(data: Any, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """Plain data as JSON, which has no word for NaN and infinities: they become null."""
    return json.dumps(_without_nan(data), indent=indent, sort_keys=sort_keys, allow_nan=False)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, data: Any) -> None:
    """Write JSON atomically, as :func:`json_text` has it."""

    def write(temporary: Path) -> None:
        temporary.write_text(json_text(data, indent=1) + "\n", encoding="utf-8")

    write_atomically(path, write)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, none if there is no such file."""
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [{key: _unescaped(value) for key, value in row.items()} for row in csv.DictReader(file)]


def write_csv(path: Path, rows: list[dict[str, Any]], columns: list[str]) -> None:
    """Write a whole CSV file."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(map(_escaped, rows))


def append_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append rows to a CSV file, with a header if it is new.

    Raises:
        UserError: the file has other columns, or cannot be written.
    """
    if not rows:
        return
    new = not path.is_file() or path.stat().st_size == 0
    if not new:
        with open(path, newline="", encoding="utf-8") as file:
            if next(csv.reader(file)) != list(rows[0]):
                raise UserError(f"{path} has other columns, from another version: move it away")
    before = path.stat().st_size if path.is_file() else 0
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    if new:
        writer.writeheader()
    writer.writerows(map(_escaped, rows))
    with _told(path):
        try:
            with open(path, "a", newline="", encoding="utf-8") as file:
                file.write(text.getvalue())
        except OSError:  # half a row is none
            if path.is_file():
                os.truncate(path, before)
            raise


def drop_torn(path: Path) -> None:
    """Cut off a last row that was not written to its end."""
    if path.is_file():
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)


def _escaped(row: dict[str, Any]) -> dict[str, Any]:
    return {key: escaped(value) if isinstance(value, str) else value for key, value in row.items()}


def _unescaped(value: Any) -> Any:
    return unescaped(value) if isinstance(value, str) else value  # a torn last row lacks cells
